"""The part of a pass that takes long: the jobs of its files, until each has come to its end (PRODUCT I1).

While a service (or another pass) holds the state directory, that one does the work, and this one follows. When it ends,
this one takes its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quaymaster.model import Event, FileVersion, Level, State
from quaymaster.service.lock import Lock, holder, take
from quaymaster.service.summary import Moment, Summary
from quaymaster.source import Root
from quaymaster.store import Outcome, Store

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.pipeline.worker import Workers
    from quaymaster.service.crew import Carriers
    from quaymaster.service.station import Station

_LOOK = 0.1
"""Seconds between two looks at the queue, and ..."""
_SHARE = 20
"""... at least so many times what a look takes: a long queue is looked at more rarely."""
_STOP = 5.0
"""Seconds that files in flight have to end when the pass is broken off."""


@dataclass(slots=True)
class Sending:
    config: Config
    store: Store
    stations: Mapping[str, Station]
    """Of the watches of this pass."""
    summary: Summary
    jobs: list[int]
    since: float
    """When the pass began (seconds since the epoch)."""
    patience: int
    complete: Collection[FileVersion]
    """Versions that were found at every destination: when their jobs are done, nothing was sent."""
    tell: Callable[[str], None]
    progress: Callable[[Moment], None]
    _taken: Lock | None = None
    """The lock, if it became ours while this ran."""
    _carried: int = 0
    _pending: set[int] = field(default_factory=set)
    _sizes: dict[int, int] = field(default_factory=dict)
    _bytes_done: int = 0
    _carriers: Carriers | None = None
    _workers: Workers | None = None

    def run(self, lock: Lock | None) -> None:
        """``lock``: the queue is in our hands. Returns when every job has come to its end."""
        self._pending = set(self.jobs)
        self._sizes = {outcome.job: outcome.version.size for outcome in self.store.outcomes(self.jobs, self.since)}
        if lock is not None:
            self._start()
        else:
            number = holder(self.config.service.state_dir)
            who = f"process {number}" if number and number > 0 else "another process"
            self.tell(f"the queue is in the hands of {who}, which does the sending; this follows")
        try:
            while True:
                began = time.monotonic()
                self._take_place()
                self._look()
                self.progress(self._moment())
                if not self._pending:
                    return
                looked = time.monotonic() - began
                time.sleep(max(_LOOK, looked * _SHARE))
                self._sample(time.monotonic() - began)
        except BaseException:
            self._stop(_STOP)
            raise
        finally:
            self._stop(self.config.service.stop_timeout)
            if self._taken is not None:
                self._taken.release()

    # -- who carries --

    def _take_place(self) -> None:
        """Carry the files ourselves, once nobody else does."""
        if self._workers is not None:
            return
        self._taken = take(self.config.service.state_dir)
        if self._taken is not None:
            self.store.recover()
            self.tell("the other process has ended; this goes on in its place")
            self._start()

    def _start(self) -> None:
        from quaymaster.service.crew import Carriers  # a pass that finds nothing to send does without

        self._carriers = Carriers(self.config, self.store, self._event)
        self._workers = self._carriers.workers(self.stations)
        self._workers.start()

    def _stop(self, timeout: float) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.stop(timeout)
        if self._carriers is not None:
            self._carriers.close()
            self._carriers = None

    def _event(self, event: Event) -> None:
        if event.kind in ("store-failing", "destination-downgrade") and event.level <= Level.WARNING:
            self.tell(event.message)

    # -- how far it is --

    def _look(self) -> None:
        """Count what has come to its end since the last look."""
        open_now: dict[int, State] = {}
        for name in self.stations:
            open_now |= self.store.open_of(name)
        ended = [job for job in self._pending if open_now.get(job, State.DONE) not in (State.QUEUED, State.RUNNING)]
        for outcome in self.store.outcomes(ended, self.since):
            if self._count(outcome):
                self._pending.discard(outcome.job)
                self._bytes_done += outcome.version.size
        self._give_up_away()

    def _count(self, outcome: Outcome) -> bool:
        """True when the job has come to its end, as far as this pass goes."""
        summary = self.summary
        match outcome.state:
            case State.DONE:
                self._delivered(outcome)
            case State.WAITING if not outcome.error_code and outcome.copies:
                self._delivered(outcome)  # only what becomes of the source is still to come
            case State.WAITING if outcome.attempts < self.patience:
                return False
            case State.SUPERSEDED:
                summary.writing += 1
            case State.DROPPED:
                self._fail(outcome, "dropped", "given up by an operator")
            case State.WAITING:
                self._fail(outcome, outcome.error_code, f"{outcome.error}. It stays queued: the next pass tries again")
            case State.PARKED:
                self._fail(outcome, outcome.error_code, outcome.error)
            case _:
                return False
        return True

    def _delivered(self, outcome: Outcome) -> None:
        summary = self.summary
        if outcome.copies:
            summary.sent += 1
            summary.bytes_in += outcome.version.size
            summary.bytes_out += outcome.stored
            self._carried += outcome.version.size * outcome.copies
            summary.ratio = self._carried / summary.bytes_out if summary.bytes_out else None
        elif outcome.version in self.complete:
            pass  # counted when it was adopted
        elif outcome.earlier:
            summary.skipped += 1  # another process had just sent it when this pass began
        else:
            summary.left += 1

    def _fail(self, outcome: Outcome, code: str, text: str) -> None:
        watch = self.config.watches[outcome.version.watch]
        self.summary.fail(Root(watch.path).shown(outcome.version.path), code, text)

    def _give_up_away(self) -> None:
        """Of a watch that went away meanwhile, nothing more will come."""
        for name, station in self.stations.items():
            if not station.away:
                continue
            mine = [job for job in self.store.open_of(name) if job in self._pending]
            for outcome in self.store.outcomes(mine, self.since):
                self._fail(outcome, "source-unavailable", station.away)
                self._pending.discard(outcome.job)

    def _moment(self) -> Moment:
        running = self._running()
        done, total = len(self.jobs) - len(self._pending), sum(self._sizes.values())
        part = sum(read for _, read, _, _ in running)
        flight = tuple((path, read, size) for path, read, size, _ in running)
        return Moment("send", done, len(self.jobs), min(total, self._bytes_done + part), total, flight)

    def _running(self) -> list[tuple[str, int, int, str]]:
        """(path, bytes read, size, stage) of this pass's files in flight, the largest first."""
        if self._workers is not None:
            found = [
                (_name(job.job.version.path), job.source_bytes, job.job.version.size, job.stage.value)
                for number, job in dict(self._workers.running).items()
                if number in self._pending
            ]
        else:
            said = self.store.reports().get("progress", (0.0, {}))[1].get("jobs", {})
            mine = {int(number): job for number, job in said.items() if int(number) in self._pending}
            names = {outcome.job: _name(outcome.version.path) for outcome in self.store.outcomes([*mine], self.since)}
            found = [
                (names[number], int(job["source_bytes"]), int(job["size"]), str(job["stage"]))
                for number, job in mine.items()
                if number in names
            ]
        return sorted(found, key=lambda one: -one[2])

    def _sample(self, seconds: float) -> None:
        stages = self.summary.stages
        for *_, stage in self._running():
            stages[f"in-{stage}"] = stages.get(f"in-{stage}", 0.0) + seconds


def _name(path: bytes) -> str:
    return Root("").shown(path.rpartition(b"/")[2]) if path else ""
