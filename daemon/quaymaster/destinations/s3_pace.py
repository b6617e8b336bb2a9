"""How many parts travel to one endpoint at once, those of all files together.

More connections help as long as each is held back by its way: latency, or a rate of its own. A server that works as
fast as it can only gets slower with them (SeaweedFS took 1.4 times the CPU for 8 at once that it took for 4, and 1.4
times that for 32). So it begins with a few, takes twice as many for as long as that moves more bytes, later half as
many more, and looks every now and then whether fewer would do.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STEP, _FIRST_STEP = 1.5, 2.0
_PAYS, _COSTS = 1.2, 0.95
"""More are kept when they move so many times the bytes a second; fewer, when they still move so many times."""
_WINDOW = 1.0
"""Seconds that a rate is measured over, at least; and at least until as many parts have arrived as travel at once."""
_REST = 15
"""Windows between two tries."""


class Climb:
    """The search for the best number: told the rate (bytes/s) of each window, it has the number for the next one."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, max(least, most)
        self.limit = least
        self._before = 0
        """The number that a try began from; 0 while none is under way."""
        self._rate = 0.0
        self._up = True
        self._rest = 1
        self._step = _FIRST_STEP  # until something was found not to pay

    def measured(self, rate: float) -> None:
        if not self._before:
            self._rest -= 1
            if self._rest <= 0:
                self._try(rate)
        elif rate >= self._rate * (_PAYS if self._up else _COSTS):
            self._try(rate)
        else:
            self.limit, self._before, self._step = self._before, 0, _STEP
            self._up, self._rest = not self._up, _REST

    def _try(self, rate: float) -> None:
        """The next step in the same direction; at its end a rest, and then the other one."""
        to = (
            min(self.most, int(self.limit * self._step + 0.5)) if self._up else max(self.least, int(self.limit / _STEP))
        )
        if to == self.limit:
            self._before, self._up, self._rest = 0, not self._up, _REST
        else:
            self._before, self._rate, self.limit = self.limit, rate, to


class Pace:
    """Turns for parts: the file with the fewest under way comes first, then who waits longest. Thread-safe."""

    def __init__(self, least: int, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._climb = Climb(least, most)
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: list[tuple[threading.Event, threading.Event]] = []
        """(the file's, the turn's), in the order of coming."""
        self._moving: Counter[threading.Event] = Counter()
        self._settling = self._waited = True
        self._restart()

    @property
    def limit(self) -> int:
        return self._climb.limit

    @property
    def waiting(self) -> int:
        with self._lock:
            return len(self._queue)

    @contextmanager
    def turn(self, size: int, stopped: threading.Event) -> Iterator[bool]:
        """Wait for a turn to move ``size`` bytes of the file whose end ``stopped`` tells; False when it was set while
        waiting."""
        if not self._entered(stopped):
            yield False
            return
        moved = 0
        try:
            yield True
            moved = size
        finally:
            self._leave(moved, stopped)

    def _entered(self, file: threading.Event) -> bool:
        with self._lock:
            if not self._moving:
                self._settling = True
                self._restart()
            turn = threading.Event()
            self._queue.append((file, turn))
            self._give()
        while not turn.wait(1):
            with self._lock:
                if file.is_set() and not turn.is_set():
                    self._queue.remove((file, turn))
                    return False
        return True

    def _leave(self, moved: int, file: threading.Event) -> None:
        with self._lock:
            self._moving[file] -= 1
            if not self._moving[file]:
                del self._moving[file]
            self._bytes += moved
            self._parts += 1
            self._waited = self._waited and bool(self._queue)
            self._look()
            self._give()

    def _give(self) -> None:
        while self._queue and self._moving.total() < self.limit:
            first = min(self._queue, key=lambda waiting: self._moving[waiting[0]])
            self._queue.remove(first)
            self._moving[first[0]] += 1
            first[1].set()

    def _look(self) -> None:
        """At the end of a window. One in which not all turns were wanted says nothing, nor does the first of a new
        number or after a pause, whose parts were begun beside others."""
        seconds = self._clock() - self._since
        if not self._waited:
            self._restart()
        elif seconds >= _WINDOW and self._parts >= self.limit:
            before = self.limit
            if not self._settling:
                self._climb.measured(self._bytes / seconds)
            self._settling = self.limit != before
            self._restart()

    def _restart(self) -> None:
        self._since, self._bytes, self._parts, self._waited = self._clock(), 0, 0, True
