"""Many small files of one watch at once: read, noted, sent and recorded together (PRODUCT P1, promise 5).

    read and hash each ──► one commit: what is about to be published ──► all on their way at once
        ──► one commit: every delivery that was proven, and the end of its job

The promises are those of transfer.py: a file is read once, as a whole, and is still the version that was queued when
its last byte has been read; what becomes visible is noted durably before; a job ends in the commit that has its proof.
Only what is simple goes this way: one destination that takes many at once, no compression, and nothing known of the
file or its key before. The rest is given back, to travel alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from quaymaster import keys
from quaymaster.destinations.base import Parcel, Put, Together
from quaymaster.errors import IntegrityError, SourceChanged, TransferError
from quaymaster.model import Compression, Emit, Job, Proof, Stage, Stored
from quaymaster.pipeline import codec, reader
from quaymaster.pipeline.budget import Cancelled
from quaymaster.pipeline.lane import Lane, Running
from quaymaster.pipeline.publication import PUBLISHING, Publication, metadata, told, told_failure
from quaymaster.pipeline.route import Bounds
from quaymaster.source import identity_of
from quaymaster.store import Store

MOST = 250
"""Files that travel together: enough that a commit of all costs each of them next to nothing."""
AT_ONCE = 2
"""Such groups at a time: one computes while the other waits for the network. More would only wait for each other."""
_TRIES = 3
"""Failures after which a file travels alone: that way looks at the destination more closely."""
_BESIDES = 24 << 10
"""Bytes that each takes besides its content: its request, its proof, what the kernel has not taken yet."""
_RECORD_EVERY = 1.0
"""Seconds after which what has arrived so far is recorded, when the rest takes long."""


def largest(lane: Lane, bounds: Bounds) -> int:
    """Bytes of the largest files of a watch that travel together now; -1 when none do: where bandwidth is limited each
    waits for its turn, and one at a time is one at a time."""
    route, watch = lane.route, lane.route.watch
    if len(route.destinations) != 1 or route.apart or watch.verify != "checksum" or bounds.files() == 1:
        return -1
    ((name, destination),) = route.destinations.items()
    if bounds.traffic.limits(name):
        return -1
    most = destination.together() if isinstance(destination, Together) else 0
    if watch.compress is not None and not route.compression_disabled:
        most = min(most, watch.compress.min_size)
    return most or -1


def more(store: Store, lane: Lane, bounds: Bounds, had: int) -> list[Job]:
    """Claim further files of a watch, to travel with ``had`` of them."""
    most = largest(lane, bounds)
    return store.claim_small(lane.route.watch.name, MOST - had, most) if had < MOST and most >= 0 else []


@dataclass(slots=True)
class Groups:
    """The small files that wait for others, and how many groups are on their way. Thread-safe."""

    _waiting: list[Job] = field(default_factory=list)
    _under_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def join(self, job: Job, lane: Lane, bounds: Bounds) -> bool:
        """Let it wait for the next group; False when it travels alone."""
        if job.version.size > largest(lane, bounds):
            return False
        with self._lock:
            self._waiting.append(job)
        return True

    def next(self) -> list[Job]:
        """A group that may go now: files of one watch. Whoever carries it calls :meth:`ended`."""
        with self._lock:
            if not self._waiting or self._under_way >= AT_ONCE:
                return []
            watch = self._waiting[0].version.watch
            group = [job for job in self._waiting if job.version.watch == watch]
            self._waiting = [job for job in self._waiting if job.version.watch != watch]
            self._under_way += 1
            return group

    def ended(self) -> None:
        with self._lock:
            self._under_way -= 1

    def end(self) -> list[Job]:
        """No more groups: those that waited."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            return waiting


@dataclass(frozen=True, slots=True)
class _Read:
    """A file in memory."""

    job: Job
    body: bytes
    mode: int
    what: Publication


@dataclass(slots=True)
class Group:
    """One run of some jobs of one lane."""

    lane: Lane
    store: Store
    bounds: Bounds
    emit: Emit
    cancelled: Callable[[], bool]
    failed: Callable[[Job, TransferError], None]
    ended: Callable[[Running], object]
    """Told of each job that has come to its end here."""
    conclude: Callable[[Job], None]
    """What is to be done after the delivery, where that is more than to say that the job is done."""
    left: dict[int, Running]
    """Those whose fate is not known yet, by job number."""
    clock: Callable[[], float] = time.time
    _moved_at: float = 0.0

    def jobs(self) -> list[Job]:
        return [running.job for running in self.left.values()]

    def run(self) -> list[Job]:
        """Deliver them; those that have to travel alone are returned, untouched. Raises StoreError and Cancelled: then
        those that are ``left`` are to be put back."""
        jobs = self.jobs()
        ((name, destination),) = self.lane.route.destinations.items()
        wanted = [(job, self._key(job)) for job in jobs]
        first = self.store.first_times(name, wanted) - {job.id for job in jobs if _needs_care(job)}
        simple = [(job, key) for job, key in wanted if job.id in first]
        assert isinstance(destination, Together)
        content = sum(job.version.size for job, _ in simple)
        with self.bounds.memory.lend(content + len(simple) * _BESIDES, self._waiting):
            found = [read for job, key in simple if (read := self._read_or_fail(job, name, key))]
            if found:
                left = [(r.job.id, {**r.job.checkpoint, PUBLISHING: r.what.as_checkpoint()}) for r in found]
                self.store.note_all(Stage.PUBLISH, left)
                self._send(found, name, destination)
        return [job for job in jobs if job.id not in first]

    def _waiting(self) -> bool:
        now = time.monotonic()
        if now - self._moved_at > 0.5:
            self._moved_at = now
            for running in self.left.values():
                running.moved_at = now
        return self.cancelled()

    def _fail(self, job: Job, error: TransferError) -> None:
        self.failed(job, error)
        self.ended(self.left.pop(job.id))

    def _key(self, job: Job) -> str:
        route, version = self.lane.route, job.version
        return keys.key_for(route.watch.key, watch=version.watch, path=version.path, host=route.host)

    # -- reading --

    def _read_or_fail(self, job: Job, name: str, key: str) -> _Read | None:
        if self._waiting():
            raise Cancelled
        try:
            return self._read(job, name, key)
        except TransferError as error:
            self._fail(job, error)
            return None

    def _read(self, job: Job, name: str, key: str) -> _Read:
        route, version = self.lane.route, job.version
        with reader.opened(route.root, version.path, version.identity) as source:
            body = source.at(0, version.size + 1)
            if identity_of(reader.status_of(route.root, source.descriptor, source.shown)) != version.identity:
                raise SourceChanged(f"{source.shown} was changed while it was read", "The newer version is taken")
            if len(body) != version.size:
                raise IntegrityError(
                    f"{source.shown} gave {len(body)} bytes instead of {version.size}", "It is read again"
                )
            digests = codec.digests(body, tuple(route.watch.digests))
            what = Publication(digests, digests, Compression.NONE, self._note(), {name: key})
            return _Read(job, body, source.mode, what)

    def _note(self) -> str:
        wanted = self.lane.route.watch.compress
        if wanted is None or self.lane.route.compression_disabled:
            return ""
        return f"at most {wanted.min_size} bytes"

    # -- sending and recording --

    def _send(self, found: list[_Read], name: str, destination: Together) -> None:
        parcels = [_parcel(read, read.what.keys[name]) for read in found]
        arrived: list[tuple[_Read, Proof]] = []
        waits = dict(enumerate(found))
        recorded = time.monotonic()
        try:
            self.bounds.rests.enter(name)
            for number, outcome in destination.put_all(parcels, self._waiting):
                read = waits.pop(number)
                self.bounds.rests.ended(name, outcome if isinstance(outcome, TransferError) else None)
                if isinstance(outcome, Stored):
                    arrived.append((read, read.what.proof(read.job, name, outcome, self.clock())))
                else:
                    self._refused(read.job, name, outcome)
                if time.monotonic() - recorded > _RECORD_EVERY:
                    self._record(arrived)
                    arrived, recorded = [], time.monotonic()
        except TransferError as error:
            for read in waits.values():
                self._refused(read.job, name, error)
        finally:
            self._record(arrived)

    def _refused(self, job: Job, name: str, error: TransferError) -> None:
        self.emit(told_failure(job, name, error))
        self._fail(job, error)

    def _record(self, arrived: list[tuple[_Read, Proof]]) -> None:
        if not arrived:
            return
        proofs, kept = [proof for _, proof in arrived], self.lane.disposal.after == "keep"
        self.store.deliver_all(proofs, disposal="kept" if kept else "")
        for read, proof in arrived:
            self.emit(told(proof))
            running = self.left.pop(read.job.id)
            if kept:
                self.ended(running)
            else:
                self.conclude(read.job)


def _needs_care(job: Job) -> bool:
    """It has a past: an upload in parts, a staged copy, or failures that the short way may not come round."""
    return bool(job.checkpoint.keys() - {PUBLISHING}) or job.attempts >= _TRIES


def _parcel(read: _Read, key: str) -> Parcel:
    version, digests = read.job.version, read.what.stored
    put = Put(
        key=key,
        size_bound=digests.size,
        metadata=metadata(version, read.mode, Compression.NONE, digests.sha256),
        mtime_ns=version.identity.mtime_ns,
        mode=read.mode,
    )
    return Parcel(put, read.body, digests)
