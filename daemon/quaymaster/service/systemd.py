"""What the service tells systemd: sd_notify(3). Silent when nobody listens."""

from __future__ import annotations

import os
from contextlib import suppress


def notify(*lines: str) -> None:
    """Send e.g. ``READY=1`` or ``STATUS=…``; does nothing outside systemd. That nobody listens (any more) is no
    reason to stop working."""
    if os.environ.get("NOTIFY_SOCKET"):
        from systemd import daemon

        with suppress(OSError):
            daemon.notify("\n".join(lines))
