"""What all jobs together may use: memory for buffers, threads for compression, room for staging (PRODUCT P12).

At a ceiling a job waits; it does not fail. Only a job that could never fit is refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quaymaster.errors import OutOfSpace


class Cancelled(Exception):
    """The service is stopping: the job goes back to the queue."""


class Pool:
    """A number of bytes that are lent out. Lenders wait in order, so that a large request is not starved."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self._used = 0
        self._turn = 0
        self._next = 0
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        return self._used

    @contextmanager
    def lend(self, amount: int, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Hold ``amount`` bytes, waiting for them as long as needed. One that is larger than the whole pool waits to
        be alone. Raises Cancelled."""
        amount = min(amount, self.ceiling)
        if not amount:  # nothing is wanted, so nobody is waited for
            yield
            return
        with self._changed:
            mine, self._next = self._next, self._next + 1
            try:
                while self._turn != mine or self._used + amount > self.ceiling:
                    if cancelled() and self._turn == mine:
                        raise Cancelled
                    self._changed.wait(0.5)
                self._used += amount
            finally:
                # Turns are taken strictly in order, so each one passes exactly once.
                self._turn = mine + 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


class Staging:
    """The local directory that network sources are copied to first."""

    def __init__(self, directory: str, *, ceiling: int | None, floor: int) -> None:
        """``ceiling``: bytes that staged copies may take together; ``floor``: bytes that stay free on that disk."""
        self.directory = directory
        self._ceiling = ceiling
        self._floor = floor
        self._used = 0  # reserved for copies that exist or are being made
        self._unwritten = 0  # of that, not on the disk yet
        self._lock = threading.Lock()

    @contextmanager
    def reserve(self, size: int) -> Iterator[Callable[[int], None]]:
        """Room for one copy; yields a function to be told of bytes as they are written. Raises OutOfSpace (tried
        again later) when there is no room now."""
        with self._lock:
            if self._ceiling is not None and self._used and self._used + size > self._ceiling:
                raise OutOfSpace(
                    f"Staging holds {self._used} bytes and {size} more would pass limits.staging ({self._ceiling})",
                    "It goes on when others have finished",
                )
            free = self._free() - self._unwritten
            if free - size < self._floor:
                raise OutOfSpace(
                    f"{self.directory} has {free} bytes free; {size} are needed and {self._floor} must stay free",
                    "Make room there, or set service.staging_dir to a larger disk or limits.staging_free lower",
                )
            self._used += size
            self._unwritten += size
        left = size

        def wrote(amount: int) -> None:
            nonlocal left
            amount = min(amount, left)
            left -= amount
            with self._lock:
                self._unwritten -= amount

        try:
            yield wrote
        finally:
            wrote(left)
            with self._lock:
                self._used -= size

    def _free(self) -> int:
        try:
            status = os.statvfs(self.directory)
        except OSError as error:
            raise OutOfSpace(
                f"The staging directory {self.directory} cannot be used ({error.strerror})",
                "Look at its disk, or set service.staging_dir to another local one",
            ) from None
        return status.f_bavail * status.f_frsize
