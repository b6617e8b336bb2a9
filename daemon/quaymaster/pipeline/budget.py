"""What all jobs together may use: memory for buffers, threads for compression, room for staging (PRODUCT P12).

At a ceiling a job waits; it does not fail. Only a job that could never fit is refused.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from quaymaster.errors import OutOfSpace


class Cancelled(Exception):
    """The service is stopping: the job goes back to the queue."""


_SMALL = 16
"""What asks for no more than this part of a pool may go before others, when there is room for it ..."""
_PASSED = 64
"""... but no more than so many before the one that has waited longest."""


@dataclass(eq=False, slots=True)
class _Request:
    amount: int
    passed: int = 0
    """How many went before it although they came later."""


class Pool:
    """A number of bytes (or threads) that are lent out. Who asks waits in order, so that a large request is not
    starved; only what is small beside the pool may slip in, a bounded number of times."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self._used = 0
        self._line: deque[_Request] = deque()
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        return self._used

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._line)

    def set(self, ceiling: int) -> None:
        """Another ceiling from now on. What is lent beyond it comes back in its own time."""
        with self._changed:
            self.ceiling = ceiling
            self._changed.notify_all()

    @contextmanager
    def lend(self, amount: int, cancelled: Callable[[], bool], most: int = 0) -> Iterator[int]:
        """Hold ``amount`` bytes, waiting for them as long as needed, or up to ``most`` when so many are free; yields
        how many. One that is larger than the whole pool waits to be alone. Raises Cancelled."""
        if not amount:  # nothing is wanted, so nobody is waited for
            yield 0
            return
        with self._changed:
            mine = _Request(amount)
            self._line.append(mine)
            try:
                while not self._fits(mine):
                    self._changed.wait(0.5)
                    if cancelled():
                        raise Cancelled
                for other in self._line:
                    if other is mine:
                        break
                    other.passed += 1
                lent = max(min(amount, self.ceiling), min(most, self.ceiling - self._used))
                self._used += lent
            finally:
                self._line.remove(mine)
                self._changed.notify_all()
        try:
            yield lent
        finally:
            with self._changed:
                self._used -= lent
                self._changed.notify_all()

    def _fits(self, mine: _Request) -> bool:
        amount = min(mine.amount, self.ceiling)
        if self._used + amount > self.ceiling:
            return False
        first = self._line[0]
        return first is mine or (amount * _SMALL <= self.ceiling and first.passed < _PASSED)


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

    @property
    def used(self) -> int:
        return self._used

    @property
    def ceiling(self) -> int | None:
        return self._ceiling

    def set(self, ceiling: int | None, floor: int) -> None:
        """Other bounds, from the next copy on."""
        self._ceiling, self._floor = ceiling, floor

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
