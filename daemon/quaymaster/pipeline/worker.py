"""Workers: claim a job, run it, and finish, retry or park it (PRODUCT Q3, P13)."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from quaymaster.errors import InternalError, SourceChanged, SourceVanished, StoreError, TransferError
from quaymaster.model import Emit, Event, Job, Level, Stage, State
from quaymaster.pipeline.budget import Cancelled
from quaymaster.pipeline.dispose import Disposal, dispose
from quaymaster.pipeline.retry import decide
from quaymaster.pipeline.transfer import Bounds, Route, Transfer
from quaymaster.store import Filter, Store

_log = logging.getLogger(__name__)
_SWEEP_EVERY = 60.0
"""Seconds between looks for what uploads left behind."""
_STORE_PAUSE = 2.0
"""Seconds between tries while the store cannot be written (its disk is full)."""


@dataclass(slots=True)
class Running:
    """What one job is doing now, for status."""

    job: Job
    since: float
    stage: Stage = Stage.TRANSFER
    source_bytes: int = 0
    stored_bytes: int = 0
    moved_at: float = 0.0
    """When it last made progress (monotonic), for the watchdog."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One watch as the workers see it."""

    route: Route
    disposal: Disposal
    grace: float = 0.0
    """Seconds between the last proof and the disposal."""


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
    _wake: threading.Event = field(default_factory=threading.Event)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _handed: queue.SimpleQueue[Job | None] = field(default_factory=queue.SimpleQueue)
    _threads: list[threading.Thread] = field(default_factory=list)
    _dispatcher: threading.Thread | None = None
    _free: int = 0
    _backlog: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _bounds: Bounds = field(init=False)

    def start(self) -> None:
        self._bounds = self.bounds_of(self._waiting)
        self._free = self.files
        self._dispatcher = threading.Thread(target=self._dispatch, name="dispatch", daemon=True)
        self._dispatcher.start()
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    def wake(self) -> None:
        """There may be something to claim."""
        self._wake.set()

    def stop(self, timeout: float) -> bool:
        """Claim nothing more, let what runs finish for ``timeout`` seconds, then cancel it back into the queue. True
        when every thread has ended."""
        self._stopping.set()
        self._wake.set()
        deadline = self.monotonic() + timeout
        if self._dispatcher is not None:
            self._dispatcher.join(max(0.1, timeout))
        while self.running and self.monotonic() < deadline:
            time.sleep(0.05)
        self._cancelled.set()
        for _ in self._threads:
            self._handed.put(None)
        end = self.monotonic() + 5.0
        for thread in self._threads:
            thread.join(max(0.0, end - self.monotonic()))
        left = [r.job for r in list(self.running.values())]
        if left:
            with suppress(StoreError):  # then the next start puts them back
                self.store.release(left)
        return not left

    def retire(self) -> None:
        """Claim nothing more; each thread ends with what it runs now. Returns at once."""
        self._stopping.set()
        self._wake.set()
        if self._dispatcher is not None:
            self._dispatcher.join()
        for _ in self._threads:
            self._handed.put(None)

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
        with self._lock:
            free = self._free
        if not free:
            return 0
        jobs = self.store.claim(free, tuple(self.lanes))
        with self._lock:
            self._free -= len(jobs)
            self._backlog = len(jobs) if len(jobs) == free else 0
        for job in jobs:
            self.running[job.id] = Running(job, self.clock(), moved_at=self.monotonic())
            self._handed.put(job)
        while len(self._threads) < min(self.files, len(self.running)):
            thread = threading.Thread(target=self._work, name=f"worker-{len(self._threads) + 1}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return len(jobs)

    def _pause(self) -> float:
        """Seconds until the queue is looked at again without being woken. Other processes (``jobs retry``) write to it
        too."""
        due = self.store.next_retry()
        return 1.0 if due is None else min(1.0, max(0.01, due - self.clock()))

    # -- running --

    def _work(self) -> None:
        while (job := self._handed.get()) is not None:
            try:
                self._run_until_recorded(job)
            finally:
                self.running.pop(job.id, None)
                with self._lock:
                    self._free += 1
                self._wake.set()

    def _run_until_recorded(self, job: Job) -> None:
        """Run a job. While the store cannot be written its outcome cannot be recorded: then the job is put back as
        soon as it can, and runs again from its last checkpoint."""
        try:
            self._run(job)
            return
        except StoreError as error:
            self._store_trouble(error)
        while not self._cancelled.is_set():
            try:
                self.store.release([job])
                return
            except StoreError as error:
                self._store_trouble(error)

    def _store_trouble(self, error: StoreError) -> None:
        self.emit(Event("store-failing", str(error), Level.ERROR, code=error.code))
        self._cancelled.wait(_STORE_PAUSE)

    def _run(self, job: Job) -> None:
        lane = self.lanes[job.version.watch]
        try:
            self._deliver_and_dispose(job, lane)
        except Cancelled:
            self.store.release([job])
        except TransferError as error:
            self._failed(job, error)
        except StoreError:
            raise
        except Exception as error:  # a defect of ours: the job is kept, the service goes on
            _log.debug("job %d", job.id, exc_info=True)
            self._failed(job, InternalError(f"Internal error: {type(error).__name__}: {error}", "Please report it"))

    def _deliver_and_dispose(self, job: Job, lane: Lane) -> None:
        if self._cancelled.is_set():
            raise Cancelled
        Transfer(
            job,
            lane.route,
            self.store,
            self._bounds,
            self.emit,
            self._cancelled.is_set,
            self._progress_of(job),
            self.clock,
        ).run()
        proofs = [d.proof for d in self.store.deliveries_of(job)]
        if lane.disposal.after == "keep" or len(proofs) < len(lane.route.destinations):
            self.store.finish(job, "kept" if proofs else "")
            return
        due = max(proof.delivered_at for proof in proofs) + lane.grace
        if self.clock() < due:
            self.store.postpone(job, due)
            return
        self._progress_of(job)(Stage.DISPOSE, job.version.size, 0)
        pairs = [(proof, lane.route.destinations[proof.destination]) for proof in proofs]
        outcome = dispose(
            job,
            lane.route.root,
            lane.disposal,
            pairs,
            self._cancelled.is_set,
            lambda: self.store.checkpoint(job, Stage.DISPOSE, {**job.checkpoint, "disposing": True}),
        )
        self.store.finish(job, outcome)
        self._tell(job, "disposed", f"source {outcome}")

    # -- what was left behind --

    def _sweep(self) -> None:
        while True:
            with suppress(StoreError):
                self.abandon_left()
            if self._cancelled.wait(_SWEEP_EVERY):
                return

    def abandon_left(self) -> None:
        """Remove at the destinations what nobody will go on with: uploads of jobs that are over, or parked until an
        operator looks (parts of unfinished uploads cost money). Those of waiting jobs are gone on with."""
        for number, name, token in self.store.uploads():
            # A token that stood in the store while its job does not run now is not in use any more. The store knows of
            # those too that run under an earlier configuration.
            idle = [j for j in self.store.jobs(Filter(ids=(number,))) if j.state.final or j.state is State.PARKED]
            lanes = [self.lanes.get(job.version.watch) for job in idle]
            for destination in (lane.route.destinations.get(name) for lane in lanes if lane is not None):
                if destination is not None and destination.abandon(token):
                    self.store.end_upload(number, name, token)

    def _progress_of(self, job: Job) -> Callable[[Stage, int, int], None]:
        running = self.running[job.id]

        def progress(stage: Stage, source_bytes: int, stored_bytes: int) -> None:
            running.stage, running.source_bytes, running.stored_bytes = stage, source_bytes, stored_bytes
            running.moved_at = self.monotonic()

        return progress

    # -- failing --

    def _failed(self, job: Job, error: TransferError) -> None:
        if isinstance(error, SourceVanished) and (new := self.store.renamed(job)) is not None:
            where = self.lanes[job.version.watch].route.root.shown(new)
            error = SourceChanged(f"The file was renamed to {where}", "It is taken under its new name")
        decision = decide(error, job, self.randomness)
        retry_at = self.clock() + decision.wait if decision.state is State.WAITING else None
        self.store.fail(job, decision.state, error.code, str(error), retry_at=retry_at, strike=decision.strike)
        match decision.state:
            case State.WAITING:
                self._tell(job, "retry", f"{error}. Next try in {decision.wait:.0f} s", Level.WARNING, error.code)
            case State.PARKED:
                self._tell(job, "parked", f"{error}. Parked: quaymaster jobs retry {job.id}", Level.ERROR, error.code)
            case _:
                self._tell(job, "superseded", str(error), Level.INFO)

    def _tell(self, job: Job, kind: str, message: str, level: Level = Level.INFO, code: str = "") -> None:
        v = job.version
        self.emit(Event(kind, message, level, watch=v.watch, path=v.path, job=job.id, size=v.size, code=code))
