"""Freed memory goes back to the system.

glibc keeps what was freed for the next request, in up to eight arenas for each processor: after a burst of small files
an idle service would hold 15 MB that nobody uses, after large uploads 150 MB (malloc_trim(3)). musl has no such call,
and needs none.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

EVERY = 30.0
"""Seconds. It takes a few milliseconds, and what is needed again has to be fetched again."""


@functools.cache  # each CDLL makes types of its own, which only the collector of cycles removes
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    if trim := _malloc_trim():
        trim(0)


class Freed:
    """Gives back what work has left, now and then while there is work, and once after it. Nothing while idle."""

    def __init__(self, now: float, give_back: Callable[[], None] = give_back) -> None:
        self._give_back = give_back
        self._given_at = now
        self._worked = False

    def work(self) -> None:
        """Something was done, in whatever thread."""
        self._worked = True

    def tick(self, now: float) -> None:
        """To be called about once a second; ``now`` in seconds of a clock that only goes forward."""
        if self._worked and now - self._given_at >= EVERY:
            self._worked, self._given_at = False, now
            self._give_back()
