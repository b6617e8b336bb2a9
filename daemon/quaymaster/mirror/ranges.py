"""One large object in ranges: several requests at once, each straight into a buffer, and the buffers in their order.

Buffers are used again and again: fresh memory for each range costs as much as receiving it. They begin on a page, so
that what they hold can be written past the page cache.

Ranges begin small, and grow while they come quickly: what a line that breaks again and again has brought whole is kept.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue

Fill = Callable[[int, memoryview], None]
"""Fetches the bytes from an offset on, as many as the buffer holds."""
_QUICK, _SLOW = 1.0, 4.0
"""Seconds that a range takes: below, the next ones are twice as long; above, half as long."""
_GROWTH = 8
"""How many times as long as the shortest the longest are."""


@dataclass(slots=True)
class Range:
    """One that has come. Whoever needs its bytes no longer gives it back; they are gone after ``uses`` times."""

    data: memoryview
    _ranges: Ranges
    _buffer: memoryview
    _uses: int

    def give_back(self) -> None:
        self._ranges.take_back(self)


class Ranges:
    """From ``start`` to ``size``, at most ``length`` bytes each, through ``buffers`` buffers. Each range is given back
    ``uses`` times. Iterated over by one thread; raises what ``fill`` raises."""

    def __init__(
        self,
        fill: Fill,
        start: int,
        size: int,
        length: int,
        *,
        at_once: int,
        buffers: int,
        uses: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fill, self._start, self._size, self._uses, self._monotonic = fill, start, size, uses, monotonic
        self._longest = length
        self._shortest = self._length = max(1, length // _GROWTH // mmap.PAGESIZE) * mmap.PAGESIZE
        self._next = start
        most = -(-(size - start) // self._shortest)
        self._free: SimpleQueue[memoryview | None] = SimpleQueue()
        for _ in range(min(buffers, most)):
            self._free.put(memoryview(mmap.mmap(-1, length)))
        self._came: dict[int, Range | BaseException] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._fetchers = min(at_once, buffers, most)
        for number in range(self._fetchers):
            threading.Thread(target=self._fetch, name=f"range-{number}", daemon=True).start()

    def __iter__(self) -> Iterator[Range]:
        offset = self._start
        while offset < self._size:
            with self._changed:
                while offset not in self._came:
                    self._changed.wait()
                came = self._came.pop(offset)
            if isinstance(came, BaseException):
                raise came
            offset += len(came.data)
            yield came

    def take_back(self, used: Range) -> None:
        with self._changed:
            used._uses -= 1
            last = used._uses == 0
        if last:
            self._free.put(used._buffer)

    def close(self) -> None:
        """Nothing more is asked for. Requests that are running end by themselves."""
        self._closed = True
        for _ in range(self._fetchers):
            self._free.put(None)

    def _fetch(self) -> None:
        # A buffer first: then every offset that is taken has one, and the first of them is on its way.
        while (buffer := self._free.get()) is not None and not self._closed:
            with self._changed:
                offset, length = self._next, min(self._length, self._size - self._next)
                self._next += length
            if not length:
                return
            data, began = buffer[:length], self._monotonic()
            came: Range | BaseException = Range(data, self, buffer, self._uses)
            try:
                self._fill(offset, data)
            except BaseException as error:
                came = error
            with self._changed:
                self._adapt(length, self._monotonic() - began)
                self._came[offset] = came
                self._changed.notify_all()

    def _adapt(self, length: int, took: float) -> None:
        if length != self._length:
            return  # asked for before the length was changed
        if took < _QUICK:
            self._length = min(2 * length, self._longest)
        elif took > _SLOW:
            self._length = max(length // 2 // mmap.PAGESIZE * mmap.PAGESIZE, self._shortest)
