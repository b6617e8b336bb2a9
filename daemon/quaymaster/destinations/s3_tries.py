"""How often a request is made again, and after which pause."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from quaymaster.destinations.s3_wire import Busy, UploadGone
from quaymaster.errors import IntegrityError, TemporaryError, TransferError

TRIES = 3
_LONGEST_PATIENCE = 10.0  # seconds; a longer Retry-After is left to the job's own retry

_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class Tries:
    """Those of one upload. Thread-safe."""

    jitter: Callable[[], float]
    """At least 0, below 1."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set: nothing is tried again, and no pause lasts."""

    def run(
        self, action: Callable[[], _Answer], again: tuple[type[TransferError], ...] = (TemporaryError, IntegrityError)
    ) -> _Answer:
        """Up to three times, when the failure may be one of the moment."""
        attempt = 1
        while True:
            try:
                return action()
            except UploadGone:
                raise
            except again as error:
                if attempt == TRIES or self.stop.is_set():
                    raise
                self.pause(attempt, error)
                attempt += 1

    def pause(self, attempt: int, error: TransferError | None = None) -> None:
        """After the attempt of this number, from 1, which failed with ``error``."""
        asked = min(error.retry_after, _LONGEST_PATIENCE) if isinstance(error, Busy) else 0.0
        self.stop.wait(max(asked, 0.2 * 2 ** (attempt - 1) * (0.5 + self.jitter())))
