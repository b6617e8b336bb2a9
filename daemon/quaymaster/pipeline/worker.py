"""Workers: claim a job, run it, and finish, retry or park it (PRODUCT Q3, P13).

The shared threads claim the jobs of local watches and carry each from its source to the end. Of a watch that may hang
they only get what its own threads (fetch.py) have copied to staging, and give back what is to become of the source.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from quaymaster.errors import (
    SourceChanged,
    SourceUnavailable,
    SourceVanished,
    StoreError,
    TransferError,
)
from quaymaster.model import Emit, Event, Job, Level, Stage, State
from quaymaster.pipeline import conclusion, leftovers, small
from quaymaster.pipeline.budget import Cancelled
from quaymaster.pipeline.fetch import STAGED, Copy, Errand, Fetchers, fetch
from quaymaster.pipeline.lane import Lane, Running
from quaymaster.pipeline.publication import delivered
from quaymaster.pipeline.retry import decide, defect, told
from quaymaster.pipeline.route import Bounds
from quaymaster.pipeline.transfer import Transfer
from quaymaster.store import Store

__all__ = ["Lane", "Running", "Workers"]

_LONG_WAY = 64 << 20
"""Bytes from which on a file's way takes long enough to say when it begins; of smaller ones only the end is told."""
_FETCHED_AT_ONCE = 8
"""Pieces of a file on a network filesystem that are asked for at a time: each answer comes late, and several together
come no later."""
_SWEEP_STOP = 1.0
"""Seconds that the look at leftovers has to end; its destination may hang."""
_STORE_PAUSE = 2.0
"""Seconds between tries while the store cannot be written (its disk is full)."""


@dataclass(slots=True)
class Workers:
    """A fixed number of threads, one file each, and one that claims for them."""

    store: Store
    bounds_of: Callable[[Callable[[], int]], Bounds]
    lanes: Mapping[str, Lane]
    files: int
    emit: Emit
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    randomness: Callable[[], float] = random.random
    running: dict[int, Running] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()
    """Watches of which nothing more is claimed."""
    _wake: threading.Event = field(default_factory=threading.Event)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _handed: queue.SimpleQueue[Errand | list[Job] | None] = field(default_factory=queue.SimpleQueue)
    _fetched: deque[Errand] = field(default_factory=deque)
    _groups: small.Groups = field(default_factory=small.Groups)
    _turn: int = 0
    _fetchers: dict[str, Fetchers] = field(default_factory=dict)
    _carriers: dict[str, queue.SimpleQueue[Errand | None]] = field(default_factory=dict)
    _threads: list[threading.Thread] = field(default_factory=list)
    _dispatcher: threading.Thread | None = None
    _sweeper: threading.Thread | None = None
    _free: int = 0
    _backlog: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _bounds: Bounds = field(init=False)

    def start(self) -> None:
        self._bounds = self.bounds_of(self._waiting)
        self._free = self.files
        self._dispatcher = threading.Thread(target=self._dispatch, name="dispatch", daemon=True)
        self._dispatcher.start()
        sweep = partial(leftovers.sweep, self.store, self.lanes, self._stopping.wait)
        self._sweeper = threading.Thread(target=sweep, name="sweep", daemon=True)
        self._sweeper.start()

    def wake(self) -> None:
        """There may be something to claim."""
        self._wake.set()
        for fetchers in list(self._fetchers.values()):
            fetchers.wake()

    def stop(self, timeout: float) -> bool:
        """Claim nothing more, let what runs finish for ``timeout`` seconds, then cancel it back into the queue. True
        when every thread has ended. What hangs with its filesystem is not waited for."""
        deadline = self.monotonic() + timeout
        self._end_claiming(max(0.1, timeout))
        self._await_moving(deadline)
        self._cancelled.set()
        end = self.monotonic() + 5.0
        self._await_moving(end)
        for thread in self._threads:
            thread.join(max(0.0, end - self.monotonic()))
        if self._sweeper is not None:
            self._sweeper.join(_SWEEP_STOP)
        left = [r.job for r in list(self.running.values())]
        if left:
            with suppress(StoreError):  # then the next start puts them back
                self.store.release(left)
        return not left

    def retire(self) -> None:
        """Claim nothing more; each thread ends with what it runs now. Returns at once."""
        self._end_claiming(None)

    def _end_claiming(self, timeout: float | None) -> None:
        self._stopping.set()
        self._wake.set()
        if self._dispatcher is not None:
            self._dispatcher.join(timeout)
        for job in [*self._groups.end(), *(job for fetchers in self._fetchers.values() for job in fetchers.end())]:
            with suppress(StoreError):
                self.store.release([job])
            self.running.pop(job.id, None)
        for carrier in self._carriers.values():
            carrier.put(None)
        for _ in self._threads:
            self._handed.put(None)

    def _await_moving(self, deadline: float) -> None:
        while self.monotonic() < deadline:
            if all(each.apart and not self._is_here(each.job) for each in list(self.running.values())):
                return
            time.sleep(0.05)

    def _is_here(self, job: Job) -> bool:
        return self.lanes[job.version.watch].route.standing.here()

    def _waiting(self) -> int:
        return len(self.running) + self._backlog

    # -- claiming --

    def _dispatch(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                claimed = self._claim()
            except StoreError as error:
                self._store_trouble(error)
                continue
            if not claimed:
                self._wake.wait(self._pause())

    def _claim(self) -> int:
        self._start_fetchers()
        self._send_together()
        with self._lock:
            free = self._free
        if free <= 0:
            return 0
        # Half of the free threads for what was fetched, half for what is local; the rest of one for the other.
        self._turn = 1 - self._turn
        free_for_local = free - min(len(self._fetched), (free + self._turn) // 2)
        queues = [lane.queue for name, lane in self.lanes.items() if lane.shared and name not in self.paused]
        jobs = self.store.claim(free_for_local, queues) if queues and free_for_local else []
        errands = [self._begin(job) for job in jobs]
        while self._fetched and len(errands) < free:
            errand = self._fetched.popleft()
            if errand.take():
                self.running[errand.job.id].apart = False
                errands.append(errand)
        with self._lock:
            self._free -= len(errands)
            self._backlog = len(jobs) if jobs and len(jobs) == free_for_local else 0
            busy = min(self.files, self.files - self._free)
        for errand in errands:
            if errand.copy or not self._groups.join(errand.job, self.lanes[errand.job.version.watch], self._bounds):
                self._handed.put(errand)
        self._send_together()
        while len(self._threads) < busy:
            thread = threading.Thread(target=self._work, name=f"worker-{len(self._threads) + 1}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return len(errands)

    def _begin(self, job: Job, *, apart: bool = False) -> Errand:
        with self._lock:
            self.running[job.id] = Running(job, self.clock(), moved_at=self.monotonic(), apart=apart)
        return Errand(job)

    def _end(self, mine: Running) -> None:
        """This run is over. The job may have been claimed again the moment it was put back: that run goes on."""
        with self._lock:
            if self.running.get(mine.job.id) is mine:
                del self.running[mine.job.id]

    def _send_together(self) -> None:
        """Each of the small files that wait held one of the free threads until now; a group takes one."""
        while group := self._groups.next():
            with self._lock:
                self._free += len(group) - 1
            self._handed.put(group)

    def _start_fetchers(self) -> None:
        for name, lane in self.lanes.items():
            if name in self._fetchers or not lane.fetched:
                continue
            claim = partial(self._claim_apart, name)
            fetchers = Fetchers(name, lane.route.watch.fetchers, claim, self._run_apart, self._pause)
            self._fetchers[name] = fetchers
            fetchers.start()

    def _claim_apart(self, name: str) -> Job | None:
        if not self.lanes[name].fetched or name in self.paused:
            return None
        try:
            for job in self.store.claim(1, (self.lanes[name].queue,)):
                self._begin(job, apart=True)
                return job
        except StoreError as error:
            self._store_trouble(error)
        return None

    def _pause(self) -> float:
        """Seconds until the queue is looked at again without being woken. Other processes (``jobs retry``) write to it
        too."""
        try:
            due = self.store.next_retry()
        except StoreError:
            due = None
        return 1.0 if due is None else min(1.0, max(0.01, due - self.clock()))

    # -- running --

    def _work(self) -> None:
        while (errand := self._handed.get()) is not None:
            try:
                if isinstance(errand, Errand):
                    self._run_until_recorded(errand.job, partial(self._carry, errand))
                else:
                    self._carry_together(errand)
            finally:
                with self._lock:
                    self._free += 1
                self._wake.set()

    def _carry_together(self, jobs: list[Job]) -> None:
        """Small files of one watch, with as many more of them as there are now."""
        lane = self.lanes[jobs[0].version.watch]
        group = small.Group(
            lane,
            self.store,
            self._bounds,
            self.emit,
            self._cancelled.is_set,
            self._failed,
            self._end,
            lambda job: self._run_until_recorded(job, partial(self._conclude, job, lane)),
            {job.id: self.running[job.id] for job in jobs},
            self.clock,
        )
        try:
            if self._cancelled.is_set() or not lane.shared:
                raise Cancelled
            if not self._stopping.is_set():
                for job in small.more(self.store, lane, self._bounds, len(jobs)):
                    group.left[job.id] = self.running[self._begin(job).job.id]
            alone = group.run()
            if self._stopping.is_set():
                raise Cancelled
            with self._lock:
                self._free -= len(alone)
            for job in alone:
                del group.left[job.id]
                self._handed.put(Errand(job))
        except Cancelled:
            with suppress(StoreError):  # then the next start puts them back
                self.store.release(group.jobs())
        except StoreError as error:
            self._store_trouble(error)
            self._put_back(*group.jobs())
        except Exception as error:
            for job in group.jobs():
                self._failed(job, defect(error))
        finally:
            self._groups.ended()
            for running in group.left.values():
                self._end(running)

    def _run_apart(self, job: Job) -> None:
        self._run_until_recorded(job, partial(self._carry_apart, job))

    def _run_until_recorded(self, job: Job, act: Callable[[], bool]) -> None:
        """Run a job, or as much of it as ``act`` does, which is True when another thread goes on with it. While the
        store cannot be written its outcome cannot be recorded: then the job is put back as soon as it can, and runs
        again from its last checkpoint."""
        goes_on, mine = False, self.running[job.id]
        try:
            goes_on = self._run(job, act)
        except StoreError as error:
            self._store_trouble(error)
            self._put_back(job)
        finally:
            if not goes_on:
                self._end(mine)

    def _put_back(self, *jobs: Job) -> None:
        """What cannot be put back before the end stays as it is: the next start does it."""
        while True:
            try:
                return self.store.release(jobs)
            except StoreError as error:
                if self._cancelled.is_set():
                    return None
                self._store_trouble(error)

    def _store_trouble(self, error: StoreError) -> None:
        self.emit(Event("store-failing", str(error), Level.ERROR, code=error.code))
        self._cancelled.wait(_STORE_PAUSE)

    def _run(self, job: Job, act: Callable[[], bool]) -> bool:
        try:
            if self._cancelled.is_set():
                raise Cancelled
            return act()
        except Cancelled:
            self.store.release([job])
        except TransferError as error:
            self._failed(job, error)
        except StoreError:
            raise
        except Exception as error:  # a defect of ours: the job is kept, the service goes on
            self._failed(job, defect(error))
        return False

    def _carry(self, errand: Errand) -> bool:
        """On a shared thread: the whole of a local job, or the part of another that does not touch its source."""
        job, copy = errand.job, errand.copy
        lane = self.lanes[job.version.watch]
        if copy is None:
            if not lane.shared:  # the watch has moved to a network share, or went away
                self.store.release([job])
                return False
            self._tell_taken(job)
        self._progress_of(job)(Stage.TRANSFER, 0, 0)
        keep = False
        try:
            self._transfer(job, lane, copy)
        except Cancelled:
            keep = True
            raise
        finally:
            if copy is not None:
                copy.release(keep=keep)
        return self._conclude(job, lane, apart=copy is not None)

    def _carry_apart(self, job: Job) -> bool:
        """On a thread of the watch: the way to staging, or what becomes of the source of a delivered job."""
        lane = self.lanes[job.version.watch]
        if lane.route.destinations.keys() <= delivered(self.store, job).keys():
            return self._conclude(job, lane)
        self._tell_taken(job)
        if not lane.route.staged:
            self._transfer(job, lane)
            return self._conclude(job, lane)
        job, copy = self._fetch(job, lane)
        return self._hand_over(Errand(job, copy), lane)

    def _fetch(self, job: Job, lane: Lane) -> tuple[Job, Copy]:
        progress, left = self._progress_of(job), dict(job.checkpoint)
        progress(Stage.FETCH, 0, 0)

        def done(sha256: str) -> None:
            left[STAGED] = sha256
            self.store.checkpoint(job, Stage.TRANSFER, left)

        copy = fetch(
            job,
            lane.route.root,
            self._bounds.staging,
            self._cancelled.is_set,
            lambda read: progress(Stage.FETCH, read, 0),
            done,
            _FETCHED_AT_ONCE if lane.route.standing.network() else 1,
        )
        return replace(job, checkpoint=left), copy

    def _hand_over(self, errand: Errand, lane: Lane) -> bool:
        """Wait until another thread takes the copy, so that no more is staged ahead than is being fetched."""
        if lane.route.beside and lane.route.standing.network():
            self._carrier(lane).put(errand)  # the destination hangs with the source
        else:
            self._fetched.append(errand)
            self._wake.set()
        running = self.running[errand.job.id]
        while not errand.taken.wait(0.5):
            running.moved_at = self.monotonic()
            if self._stopping.is_set() and errand.take():
                if errand.copy is not None:
                    errand.copy.release(keep=True)
                self.store.release([errand.job])
                return False
        return True

    def _carrier(self, lane: Lane) -> queue.SimpleQueue[Errand | None]:
        """Leads to threads of the watch that compress and publish beside the source, while others fetch."""
        with self._lock:
            found = self._carriers.get(lane.route.watch.name)
            if found is None:
                found = self._carriers[lane.route.watch.name] = queue.SimpleQueue()
                for number in range(lane.route.watch.uploaders):
                    name = f"carry-{lane.route.watch.name}-{number + 1}"
                    threading.Thread(target=self._work_beside, args=(found,), name=name, daemon=True).start()
        return found

    def _work_beside(self, errands: queue.SimpleQueue[Errand | None]) -> None:
        while (errand := errands.get()) is not None:
            if errand.take():
                self._run_until_recorded(errand.job, partial(self._carry, errand))
        errands.put(None)  # for the next thread

    def _transfer(self, job: Job, lane: Lane, copy: Copy | None = None) -> None:
        cancelled, progress = self._cancelled.is_set, self._progress_of(job)
        Transfer(job, lane.route, self.store, self._bounds, self.emit, cancelled, progress, self.clock, copy).run()

    def _conclude(self, job: Job, lane: Lane, *, apart: bool = False) -> bool:
        """What is to be done after the delivery; ``apart``: this thread must not touch the source."""
        deliveries = conclusion.due(self.store, job, lane, self.clock())
        if not deliveries:
            return False
        self._progress_of(job)(Stage.DISPOSE, job.version.size, 0)
        if apart:
            return self._give_back(job)
        outcome = conclusion.carry_out(self.store, job, lane, deliveries, self._cancelled.is_set)
        self._tell(job, "disposed", f"source {outcome}")
        return False

    def _give_back(self, job: Job) -> bool:
        self.running[job.id].apart = True
        if self._fetchers[job.version.watch].give(job):
            return True
        self.store.release([job])  # these threads have ended: the next ones see that it is delivered
        return False

    def _progress_of(self, job: Job) -> Callable[[Stage, int, int], None]:
        running = self.running.get(job.id)

        def progress(stage: Stage, source_bytes: int, stored_bytes: int) -> None:
            if running is not None:
                running.stage, running.source_bytes, running.stored_bytes = stage, source_bytes, stored_bytes
                running.moved_at = self.monotonic()

        return progress

    # -- failing --

    def _failed(self, job: Job, error: TransferError) -> None:
        if isinstance(error, SourceVanished | SourceUnavailable | SourceChanged) and self._is_away(job):
            self.store.release([job])
            self._tell(job, "put-back", f"{error}. It waits until its watch is back", Level.DEBUG)
            return
        if isinstance(error, SourceVanished) and conclusion.done_by_another(
            self.store, job, self.lanes[job.version.watch], self._progress_of(job)
        ):
            self._tell(job, "adopted", "another host has delivered it and removed its source; the copy is whole")
            return
        if isinstance(error, SourceVanished) and (new := self.store.renamed(job)) is not None:
            where = self.lanes[job.version.watch].route.root.shown(new)
            error = SourceChanged(f"The file was renamed to {where}", "It is taken under its new name")
        decision = decide(error, job, self.randomness)
        retry_at = self.clock() + decision.wait if decision.state is State.WAITING else None
        self.store.fail(job, decision.state, error.code, str(error), retry_at=retry_at, strike=decision.strike)
        running = self.running.get(job.id)
        self.emit(told(decision, error, job, running.stage.value if running else ""))

    def _is_away(self, job: Job) -> bool:
        """Whether the whole watch is away: then what is missing was not removed, and what differs is not newer."""
        try:
            self.lanes[job.version.watch].route.standing.confirm()
        except SourceUnavailable:
            return True
        return False

    def _tell_taken(self, job: Job) -> None:
        waited = max(0.0, self.clock() - job.queued_at)
        message = f"taken {waited:.1f} s after it was queued" + (f", for try {job.attempts + 1}" * bool(job.attempts))
        self._tell(job, "taken", message, Level.INFO if job.version.size >= _LONG_WAY else Level.DEBUG)

    def _tell(self, job: Job, kind: str, message: str, level: Level = Level.INFO) -> None:
        v, running = job.version, self.running.get(job.id)
        stage = running.stage.value if running else ""
        self.emit(Event(kind, message, level, watch=v.watch, path=v.path, job=job.id, stage=stage, size=v.size))
