"""What is being read now, and how far each of it is: for those who show progress."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class _Flight:
    name: str
    size: int
    done: int = 0


class Flights:
    """Thread-safe."""

    def __init__(self) -> None:
        self._under_way: dict[int, _Flight] = {}
        self._numbers = itertools.count()
        self.landed = 0
        """How many have come to their end, and ..."""
        self._bytes = 0
        """... their bytes."""
        self._lock = threading.Lock()

    @contextmanager
    def one(self, name: str, size: int) -> Iterator[Callable[[int], None]]:
        """While a file of ``size`` bytes is on its way; yields what is to be told of bytes as they come. Bytes of one
        that failed do not count."""
        number, flight = next(self._numbers), _Flight(name, size)

        def moved(length: int) -> None:
            flight.done += length

        with self._lock:
            self._under_way[number] = flight
        try:
            yield moved
        except BaseException:
            flight.done = 0
            raise
        finally:
            with self._lock:
                del self._under_way[number]
                self._bytes += flight.done
                self.landed += 1

    def now(self) -> list[tuple[str, int, int]]:
        """(name, bytes done, size) of each that is on its way, the largest first."""
        with self._lock:
            found = [(flight.name, flight.done, flight.size) for flight in self._under_way.values()]
        return sorted(found, key=lambda flight: -flight[2])

    def moved(self) -> int:
        """Bytes of all that landed, and of what is on its way."""
        with self._lock:
            return self._bytes + sum(flight.done for flight in self._under_way.values())
