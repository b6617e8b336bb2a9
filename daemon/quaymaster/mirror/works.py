"""The threads that download a mirror's objects: claim a job, run it, finish, retry or park it (PRODUCT M1, Q3).

They come when there is something to do, and go when there is nothing more: an idle mirror has none.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from quaymaster.errors import StoreError, TransferError
from quaymaster.mirror.download import Download
from quaymaster.mirror.plan import Listed
from quaymaster.model import Emit, Event, Job, Level, Stage, State
from quaymaster.pipeline.budget import Cancelled
from quaymaster.pipeline.lane import Running
from quaymaster.pipeline.retry import decide, defect, told
from quaymaster.store import Queue, Store

_LONG_WAY = 64 << 20
"""Bytes from which on it is told when a download begins."""
_STORE_PAUSE = 2.0


@dataclass(slots=True)
class Downloads:
    """Thread-safe. ``listed`` gives the object of a job, as the last listing has it."""

    name: str
    most: int
    store: Store
    download: Download
    listed: Callable[[bytes], Listed | None]
    emit: Emit
    ended: Callable[[], None]
    """Told when a thread has found nothing more to do."""
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    randomness: Callable[[], float] = random.random
    running: dict[int, Running] = field(default_factory=dict)
    paused: bool = False
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: set[threading.Thread] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wake(self, queued: int) -> None:
        """So many jobs wait to be claimed."""
        with self._lock:
            missing = min(self.most, queued) - len(self._threads)
            for _ in range(0 if self.paused or self._stopping.is_set() else missing):
                thread = threading.Thread(target=self._work, name=f"mirror-{self.name}", daemon=True)
                self._threads.add(thread)
                thread.start()

    @property
    def busy(self) -> bool:
        return bool(self._threads)

    def retire(self) -> None:
        """Claim nothing more; what runs goes on."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Whether every thread ended within so many seconds."""
        end = self.monotonic() + timeout
        for thread in list(self._threads):
            thread.join(max(0.0, end - self.monotonic()))
        return not self._threads

    def _work(self) -> None:
        try:
            while not self._stopping.is_set() and not self.paused:
                try:
                    claimed = self.store.claim(1, (Queue(self.name),))
                except StoreError as error:
                    self._store_trouble(error)
                    continue
                if not claimed:
                    return
                for job in claimed:
                    self._run(job)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
            self.ended()

    def _run(self, job: Job) -> None:
        mine = Running(job, self.clock(), Stage.FETCH, moved_at=self.monotonic())
        with self._lock:
            self.running[job.id] = mine
        try:
            self._until_recorded(job, partial(self._carry, job))
        finally:
            with self._lock:  # another thread may have claimed it again the moment it was put back
                if self.running.get(job.id) is mine:
                    del self.running[job.id]

    def _until_recorded(self, job: Job, act: Callable[[], None]) -> None:
        """While the store cannot be written the outcome cannot be recorded: then the job is put back as soon as it can,
        and goes on with what is on the disk."""
        while True:
            try:
                return act()
            except StoreError as error:
                self._store_trouble(error)
                if self.download.cancelled():
                    return None
                act = partial(self.store.release, [job])

    def _store_trouble(self, error: StoreError) -> None:
        self.emit(Event("store-failing", str(error), Level.ERROR, code=error.code))
        self._stopping.wait(_STORE_PAUSE)

    def _carry(self, job: Job) -> None:
        running, began = self.running[job.id], self.monotonic()
        if job.version.size >= _LONG_WAY:
            self._tell(job, "taken", "download begins", Level.INFO)

        def progress(_: int, came: int) -> None:
            running.source_bytes = running.stored_bytes = came
            running.moved_at = self.monotonic()

        try:
            done, said = self.download.run(job, self.listed(job.version.path), progress)
            self.store.download_done(job, done, said)
        except Cancelled:
            self.store.release([job])
        except TransferError as error:
            self._failed(job, error)
        except StoreError:
            raise
        except Exception as error:  # a defect of ours: the job is kept, the service goes on
            self._failed(job, defect(error))
        else:
            took = self.monotonic() - began
            self.emit(
                Event(
                    "downloaded",
                    f"downloaded in {took:.1f} s, proven by {done.evidence or 'nothing but its size'}",
                    Level.INFO if job.version.size >= _LONG_WAY else Level.DEBUG,
                    watch=self.name, path=job.version.path, job=job.id, size=job.version.size, sha256=done.sha256,
                )
            )  # fmt: skip

    def _failed(self, job: Job, error: TransferError) -> None:
        decision = decide(error, job, self.randomness)
        retry_at = self.clock() + decision.wait if decision.state is State.WAITING else None
        self.store.fail(job, decision.state, error.code, str(error), retry_at=retry_at, strike=decision.strike)
        self.emit(told(decision, error, job, Stage.FETCH.value))

    def _tell(self, job: Job, kind: str, message: str, level: Level) -> None:
        version = job.version
        self.emit(
            Event(kind, message, level, watch=version.watch, path=version.path, job=job.id, size=version.size,
                  stage=Stage.FETCH.value)
        )  # fmt: skip
