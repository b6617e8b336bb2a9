"""Bandwidth: bytes on their way to destinations, held to a rate and shared fairly between the files (PRODUCT P12).

A limit is put around a destination's upload, not into it. It counts what is given to the upload: parts that an
interrupted upload finds at the server count too, and a part that had to be sent twice counts once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quaymaster.destinations.base import Upload
from quaymaster.model import Digests, Stored
from quaymaster.pipeline.budget import Cancelled

if TYPE_CHECKING:
    from quaymaster.config.bandwidth import Bandwidth

_SLICE_SECONDS = 0.05
_LEAST_SLICE, _MOST_SLICE = 16 << 10, 256 << 10
_SAVED_SECONDS = 0.5
"""How much a pause may save up, for the next moment: 1.7 % of 30 s."""
_LOOK = 0.5
"""Seconds between looks at whether to go on."""
_WINDOW = 10.0
"""Seconds over which the rate that is told is the mean."""


def local_minute(at: float) -> int:
    """The minute of the day, in local time."""
    now = time.localtime(at)
    return now.tm_hour * 60 + now.tm_min


@dataclass(eq=False, slots=True)
class _Ticket:
    """What one file wants to send now."""

    left: int
    turn: threading.Condition


class Meter:
    """A token bucket whose tokens are given out in slices, to one file after the other. Thread-safe."""

    def __init__(
        self,
        limit: Bandwidth,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        minute: Callable[[float], int] = local_minute,
    ) -> None:
        self._limit = limit
        self._clock, self._monotonic, self._minute = clock, monotonic, minute
        self._lock = threading.Lock()
        self._line: deque[_Ticket] = deque()
        self._tokens = 0.0
        self._filled = monotonic()
        self._sent: deque[tuple[float, int]] = deque([(self._filled, 0)])
        self._looked = float("-inf")
        self._rate: int | None = None

    def set(self, limit: Bandwidth) -> None:
        """From now on, also for what waits already."""
        with self._lock:
            if limit != self._limit:
                self._limit, self._looked = limit, float("-inf")
                self._tokens = min(self._tokens, 0.0)
            for ticket in self._line:
                ticket.turn.notify()

    @property
    def limits(self) -> bool:
        """Whether there is a limit at this moment."""
        with self._lock:
            return self._allowed() is not None

    @property
    def waiting(self) -> int:
        """Files that wait for their turn."""
        return len(self._line)

    def now(self) -> tuple[float, int | None, int | None]:
        """Bytes a second of late, the rate that is allowed (None: any), and the minute of the day until which."""
        with self._lock:
            now = self._monotonic()
            rate, until = self._limit.at(self._minute(self._clock()))
            self._forget(now)
            seconds = min(_WINDOW, max(1.0, now - self._sent[0][0])) if self._sent else _WINDOW
            return sum(size for _, size in self._sent) / seconds, rate, until

    def take(self, amount: int, cancelled: Callable[[], bool]) -> None:
        """Return when ``amount`` bytes may go out. ``cancelled`` is asked while it waits. Raises Cancelled."""
        with self._lock:
            if self._allowed() is None:
                self._count(amount)
                return
            ticket = _Ticket(amount, threading.Condition(self._lock))
            self._line.append(ticket)
            try:
                while not self._serve(ticket):
                    wait = -self._tokens / (self._rate or 1) if self._line[0] is ticket else _LOOK
                    ticket.turn.wait(max(0.001, min(wait, _LOOK)))
                    if cancelled():
                        raise Cancelled
            finally:
                self._line.remove(ticket)
                if self._line:
                    self._line[0].turn.notify()
            self._count(amount)

    def _serve(self, ticket: _Ticket) -> bool:
        """Give the ticket a slice if it is its turn and there is something; True when it has all that it wants."""
        rate = self._allowed()
        if rate is None:
            return True
        slice_size = int(max(_LEAST_SLICE, min(rate * _SLICE_SECONDS, _MOST_SLICE)))
        while self._line[0] is ticket and self._tokens > 0:
            # The last token of the bucket is worth a whole slice: what is too much is owed.
            given = min(ticket.left, slice_size)
            self._tokens -= given
            ticket.left -= given
            if not ticket.left:
                return True
            self._line.rotate(-1)
            self._line[0].turn.notify()
        return False

    def _allowed(self) -> int | None:
        """The rate at this moment; adds the tokens that have come since the last time."""
        now = self._monotonic()
        if now - self._looked >= 1.0:
            self._looked, self._rate = now, self._limit.at(self._minute(self._clock()))[0]
        rate = self._rate
        if rate is not None:
            self._tokens = min(self._tokens + (now - self._filled) * rate, rate * _SAVED_SECONDS)
        self._filled = now
        return rate

    def _count(self, amount: int) -> None:
        now = self._monotonic()
        if self._sent and now - self._sent[-1][0] < 0.25:
            self._sent[-1] = (self._sent[-1][0], self._sent[-1][1] + amount)
        else:
            self._sent.append((now, amount))
            self._forget(now)

    def _forget(self, now: float) -> None:
        while self._sent and self._sent[0][0] < now - _WINDOW:
            self._sent.popleft()


@dataclass(slots=True)
class Traffic:
    """The meters of a configuration: one for all destinations together, and one for each."""

    total: Meter
    of: dict[str, Meter] = field(default_factory=dict)

    def set(self, total: Bandwidth, of: Mapping[str, Bandwidth]) -> None:
        """Take another configuration over, also for the files that are in flight."""
        self.total.set(total)
        for name, limit in of.items():
            if name in self.of:
                self.of[name].set(limit)
            else:
                self.of[name] = Meter(limit)

    def limits(self, destination: str) -> bool:
        """Whether what goes there is held to a rate at this moment."""
        return any(meter.limits for meter in self._meters(destination))

    def limited(self, upload: Upload, destination: str, cancelled: Callable[[], bool]) -> Upload:
        """The same upload, held to the rate of its destination and to that of all."""
        return _LimitedUpload(upload, self._meters(destination), cancelled)

    def limited_apart(self, upload: Upload, destination: str, cancelled: Callable[[], bool]) -> Upload:
        """The same, held to the rate of its destination alone."""
        return _LimitedUpload(upload, self._meters(destination)[1:], cancelled)

    def limited_together(self, upload: Upload, cancelled: Callable[[], bool]) -> Upload:
        """The same, held to the rate of all destinations together."""
        return _LimitedUpload(upload, [self.total], cancelled)

    def take(self, destination: str, amount: int, cancelled: Callable[[], bool]) -> None:
        """Return when ``amount`` bytes may come from there. Raises Cancelled."""
        for meter in self._meters(destination):
            meter.take(amount, cancelled)

    def _meters(self, destination: str) -> list[Meter]:
        return [self.total, *(meter for name, meter in self.of.items() if name == destination)]


@dataclass(slots=True)
class _LimitedUpload:
    """An :class:`~quaymaster.destinations.base.Upload` with meters before it."""

    upload: Upload
    meters: list[Meter]
    cancelled: Callable[[], bool]

    def write(self, data: bytes | memoryview) -> None:
        for meter in self.meters:
            meter.take(len(data), self.cancelled)
        self.upload.write(data)

    def publish(self, digests: Digests, metadata: Mapping[str, str]) -> Stored:
        return self.upload.publish(digests, metadata)

    @property
    def resume_token(self) -> str:
        return self.upload.resume_token

    def suspend(self) -> None:
        self.upload.suspend()

    def abort(self) -> None:
        self.upload.abort()
