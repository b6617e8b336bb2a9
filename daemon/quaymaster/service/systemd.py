"""What the service tells systemd: sd_notify(3). Silent when nobody listens."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

_ASKED = 30.0
"""Seconds that are asked for at a time while a start or a stop goes on."""
_AGAIN = 10.0
"""Seconds between two requests: well before what was asked for has passed."""


def notify(*lines: str) -> None:
    """Send e.g. ``READY=1`` or ``STATUS=…``; does nothing outside systemd. That nobody listens (any more) is no
    reason to stop working."""
    if os.environ.get("NOTIFY_SOCKET"):
        from systemd import daemon

        with suppress(OSError):
            daemon.notify("\n".join(lines))


def watchdog_period(environ: Mapping[str, str], pid: int) -> float:
    """Seconds within which systemd wants a sign of life; 0 when it wants none (sd_watchdog_enabled(3))."""
    text, meant = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not text.isdigit() or (meant and meant != str(pid)):
        return 0.0
    return int(text) / 1e6


@contextmanager
def taking_time(limit: float, *, asked: float = _ASKED, again: float = _AGAIN) -> Iterator[None]:
    """Ask for more time, again and again for up to ``limit`` seconds, while the body runs: systemd's limits for
    starting and stopping are for services that hang, not for one with a large database or long transfers."""
    ended = threading.Event()
    until = time.monotonic() + limit

    def ask() -> None:
        while (left := until - time.monotonic()) > 0:
            notify(f"EXTEND_TIMEOUT_USEC={int(max(again, min(asked, left)) * 1e6)}")
            if ended.wait(again):
                return

    thread = threading.Thread(target=ask, name="taking-time", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
