"""What the running service keeps of its own work, for the read model: how far each job is, and how much has
moved. Everything is bounded, whatever the number of files; told once a second, and nothing while nothing happens.

    Live (in the service)  ──report──►  the store  ──►  snapshot (in any process)
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from quaymaster.model import Event, Stage
from quaymaster.pipeline.worker import Running
from quaymaster.service.view.records import Record

SLOT = 5
"""Seconds that are added up in one slot, of which the last minute has twelve."""
MINUTE = 60
_SLOTS, _MINUTES = 60 // SLOT + 1, 60
_REPORT_EVERY = 10.0
"""Seconds between two reports of what has moved."""
_PACE = 10
"""Seconds over which the rate of one job is the mean."""

HEARD = frozenset({"delivered", "retry", "parked"})
"""The kinds of events that :meth:`Live.heard` counts."""

Amounts = list[int]
"""Files delivered, source bytes read, stored bytes sent."""


class Live:
    """Thread-safe. ``wall`` gives seconds since the epoch, ``monotonic`` those of a clock that only goes forward."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._lock = threading.Lock()
        self._counted: dict[int, tuple[int, int]] = {}
        """Of each job in flight, the source and stored bytes that are in the slots already."""
        self._finished: dict[int, None] = {}
        """Jobs in flight whose source is counted whole."""
        self._paces: dict[int, deque[tuple[float, Stage, int]]] = {}
        self._slots: dict[int, Amounts] = {}
        """Beginning of a slot (seconds since the epoch) -> what moved in it."""
        self._minutes: dict[int, Amounts] = {}
        self._delivered: Counter[tuple[str, str, str]] = Counter()
        """(watch, destination, what) -> number; what is ``files``, ``source_bytes`` or ``stored_bytes``."""
        self._failures: Counter[tuple[str, str]] = Counter()
        """(``retry`` or ``parked``, error code) -> number."""
        self._since = wall()
        self._reported_at = float("-inf")
        self._dirty = False

    def remember(self, said: Mapping[str, Any]) -> None:
        """Go on from what an earlier life reported, so that a restart leaves no gap in the last hour."""
        oldest = self._wall() - _MINUTES * MINUTE
        for at, *amounts in said.get("minutes", ()):
            if at > oldest and len(amounts) == 3:
                self._minutes[int(at)] = [int(amount) for amount in amounts]

    # -- what happens --

    def heard(self, event: Event, running: Mapping[int, Running]) -> None:
        """To be called with every event of the kinds in HEARD, while its job is still in ``running``."""
        with self._lock:
            if event.kind != "delivered":
                self._failures[(event.kind, event.code)] += 1
                self._dirty = True
            else:
                self._delivery(event, running.get(event.job))

    def _delivery(self, event: Event, job: Running | None) -> None:
        size = job.job.version.size if job else 0
        source, stored = self._counted.get(event.job, (0, 0))
        sent = max(0, event.size - stored)
        again = event.job in self._finished  # at another destination: it was read once
        self._move([0, 0, sent] if again else [1, max(0, size - source), sent])
        self._counted[event.job] = (max(source, size), max(stored, event.size))
        self._finished[event.job] = None
        for what, amount in (("files", 1), ("source_bytes", size), ("stored_bytes", max(0, event.size))):
            self._delivered[(event.watch, event.destination, what)] += amount

    def _move(self, amounts: Amounts) -> None:
        now = int(self._wall())
        for slots, length, most in ((self._slots, SLOT, _SLOTS), (self._minutes, MINUTE, _MINUTES)):
            slot = slots.setdefault(now - now % length, [0, 0, 0])
            for index, amount in enumerate(amounts):
                slot[index] += amount
            for old in [at for at in slots if at <= now - now % length - most * length]:
                del slots[old]
        self._dirty = True

    def tick(self, running: Mapping[int, Running]) -> None:
        """To be called about once a second."""
        now = self._monotonic()
        with self._lock:
            moved = [0, 0, 0]
            for number, job in running.items():
                source, stored = self._counted.get(number, (0, 0))
                said = (job.source_bytes if job.stage is not Stage.FETCH else 0, job.stored_bytes)
                if number not in self._finished:  # a pass that starts over starts at 0
                    moved[1] += max(0, said[0] - source)
                    moved[2] += max(0, said[1] - stored)
                    self._counted[number] = said
                self._pace(number, job, now)
            for known in (self._counted, self._finished, self._paces):
                for number in known.keys() - running.keys():
                    del known[number]
            if any(moved):
                self._move(moved)

    def _pace(self, number: int, job: Running, now: float) -> None:
        pace = self._paces.setdefault(number, deque(maxlen=_PACE + 1))
        if pace and (pace[-1][1] is not job.stage or pace[-1][2] > job.source_bytes):
            pace.clear()
        pace.append((now, job.stage, job.source_bytes))

    # -- what is said of it --

    def progress(self, running: Mapping[int, Running]) -> Record:
        """How far each job is, as of now."""
        with self._lock:
            return {str(number): self._progress_of(number, job) for number, job in running.items()}

    def _progress_of(self, number: int, job: Running) -> Record:
        first, *_, last = pace if len(pace := self._paces.get(number, deque())) > 1 else [(0.0, job.stage, 0)] * 2
        seconds = last[0] - first[0]
        return {
            "stage": job.stage.value,
            "source_bytes": job.source_bytes,
            "size": job.job.version.size,
            "stored_bytes": job.stored_bytes,
            "since": job.since,
            "rate": (last[2] - first[2]) / seconds if seconds > 0 else None,
        }

    def rates(self) -> Record | None:
        """What has moved, when it is time to report it again; else None."""
        with self._lock:
            if not self._dirty or self._monotonic() - self._reported_at < _REPORT_EVERY:
                return None
            self._dirty, self._reported_at = False, self._monotonic()
            per_pair: dict[tuple[str, str], dict[str, int]] = {}
            for (watch, destination, what), amount in self._delivered.items():
                per_pair.setdefault((watch, destination), {})[what] = amount
            return {
                "since": self._since,
                "slots": [[at, *amounts] for at, amounts in sorted(self._slots.items())],
                "minutes": [[at, *amounts] for at, amounts in sorted(self._minutes.items())],
                "delivered": [{"watch": w, "destination": d, **amounts} for (w, d), amounts in per_pair.items()],
                "failures": [{"kind": k, "error_code": c, "jobs": n} for (k, c), n in self._failures.items()],
            }
