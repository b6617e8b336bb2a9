"""How the work stands, in one line: what ``systemctl status`` shows (sd_notify(3), STATUS=)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping

from quaymaster.intake.intake import WatchStatus
from quaymaster.model import Event, State
from quaymaster.pipeline.worker import Running

_WINDOW = 10.0
"""Seconds over which the rate is the mean."""


class Rate:
    """Bytes a second that go to destinations, over the last ten seconds: what running jobs say of themselves, and the
    rest of a file when it is delivered. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: dict[int, int] = {}
        """Of each job in flight, the bytes that are in ``_fresh`` already."""
        self._fresh = 0
        self._taken: deque[tuple[float, int]] = deque()

    def delivered(self, event: Event) -> None:
        with self._lock:
            self._fresh += max(0, event.size - self._counted.pop(event.job, 0))

    def per_second(self, running: Mapping[int, Running], now: float) -> float:
        """To be asked about once a second; ``now`` in seconds of any clock that only goes forward."""
        with self._lock:
            for number, job in running.items():
                # A pass that starts over starts at 0.
                self._fresh += max(0, job.stored_bytes - self._counted.get(number, 0))
                self._counted[number] = job.stored_bytes
            for number in self._counted.keys() - running.keys():
                del self._counted[number]
            self._taken.append((now, self._fresh))
            self._fresh = 0
        while self._taken[0][0] < now - _WINDOW:
            self._taken.popleft()
        return sum(size for _, size in self._taken) / _WINDOW


def line(
    running: int, rate: float, open_jobs: Mapping[State, int], watches: Iterable[WatchStatus], stalled: str = ""
) -> str:
    """E.g. ``3 running at 84.1 MiB/s, 120 queued, 2 waiting, 1 parked; 1 of 2 watches is away``."""
    parts = [f"{running:,} running at {rate / 2**20:.1f} MiB/s"] if running else []
    for state in (State.QUEUED, State.WAITING, State.PARKED):
        if number := open_jobs.get(state, 0):
            parts.append(f"{number:,} {state}")
    states = [status.state for status in watches]
    text = ", ".join(parts) if running else ", ".join(["idle", *parts])
    if away := states.count("outage"):
        text += f"; {away} of {len(states)} watches {'is' if away == 1 else 'are'} away"
    return f"{text}; {stalled}" if stalled else text
