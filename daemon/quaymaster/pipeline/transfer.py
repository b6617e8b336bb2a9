"""The one pass: read, hash, compress, expand and compare, upload; then publish, prove and record.

    source ──► [staging] ──► hash ──► compress ──► hash ──► parts ──► publish ──► ledger
                                         └──► expand ──► compare ─────────┘ (only if equal)

The source is read once, with one exception: S3 takes an object's metadata, and with it the source's digest, when a
multipart upload begins. A local file that may need more than one part is therefore hashed first, and the pass then
also proves that two readings gave the same bytes. A staged copy was hashed while it was fetched.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from quaymaster import keys
from quaymaster.destinations.base import Destination, Put, Upload
from quaymaster.errors import (
    Conflict,
    IntegrityError,
    Retry,
    SourceChanged,
    SourceVanished,
    StoreError,
    TemporaryError,
    TransferError,
)
from quaymaster.model import Compression, Digests, Emit, Event, FileVersion, Job, Level, Proof, Stage, Stored, watch_of
from quaymaster.pipeline import codec, publication, reader
from quaymaster.pipeline.apart import ROOM, Apart
from quaymaster.pipeline.budget import Cancelled
from quaymaster.pipeline.fetch import Copy
from quaymaster.pipeline.publication import Publication, delivered
from quaymaster.pipeline.route import Bounds, Route
from quaymaster.pipeline.stages import CompressionFailed
from quaymaster.pipeline.worth import reason_not_to_compress
from quaymaster.store import Store
from quaymaster.store.passes import AGAIN

_T = TypeVar("_T")
Progress = Callable[[Stage, int, int], None]
"""Told of the stage, source bytes read and stored bytes written so far."""

_BESIDES = 512 << 10
"""Bytes that a file in flight takes besides its buffers: its thread, its connections, what libraries keep for them."""

_READ_FIRST = ("source_sha256", "source_crc64nvme")
"""What a job's checkpoint holds of the first reading of its source."""


@dataclass(slots=True)
class _Plan:
    compression: Compression
    note: str = ""
    """Why not compressed, when that was asked for."""


@dataclass(slots=True)
class _Leg:
    """The way to one destination."""

    name: str
    destination: Destination
    key: str = ""
    upload: Upload | None = None
    error: TransferError | None = None
    token: str = ""
    """Of the upload, once the store knows of it."""


@dataclass(slots=True)
class Transfer:
    """One run of one job."""

    job: Job
    route: Route
    store: Store
    bounds: Bounds
    emit: Emit
    cancelled: Callable[[], bool]
    progress: Progress
    clock: Callable[[], float] = time.time
    copy: Copy | None = None
    """The staged copy to read from, instead of the source."""
    _legs: list[_Leg] = field(default_factory=list)
    _done: tuple[int, int] = 0, 0
    """Source bytes read and stored bytes written by this pass."""

    @property
    def _version(self) -> FileVersion:
        return self.job.version

    @property
    def _several(self) -> bool:
        """Whether one destination might hold up another."""
        return len(self.route.destinations) > 1

    def run(self) -> None:
        """Deliver the job's version to every destination that does not have it yet. Raises TransferError, StoreError
        or Cancelled; whatever was delivered before is recorded."""
        done = delivered(self.store, self.job)
        missing = [name for name in self.route.destinations if name not in done]
        if not missing:
            return
        for older in self.store.unrecorded(self._version):
            publication.recall(self.store, older, self.route.destinations, self.clock(), self._ask)
            publication.abandon(self.store, older, self.route.destinations)
        try:
            with self._source() as source:
                self._send(source, done, missing)
        except (SourceVanished, SourceChanged):
            publication.recall(self.store, self.job, self.route.destinations, self.clock(), self._ask)
            raise

    def _send(self, source: reader.Reader, done: Mapping[str, Proof], missing: list[str]) -> None:
        for proof in done.values():  # what goes to a late destination must be what the others got
            source.known_sha256 = source.known_sha256 or proof.source.sha256
        plan = self._plan(source)
        try:
            self._pass(source, plan, missing)
        except CompressionFailed as failure:
            self._tell("uncompressed", f"goes as it is: {failure.reason}", Level.WARNING)
            self._pass(source, _Plan(Compression.NONE, failure.reason), missing)

    # -- the source --

    def _source(self) -> AbstractContextManager[reader.Reader]:
        if self.copy is not None:
            return self.copy.opened()
        return reader.opened(self.route.root, self._version.path, self._version.identity)

    def _plan(self, source: reader.Reader) -> _Plan:
        wanted = self.route.watch.compress
        if wanted is None or self.route.compression_disabled:
            return _Plan(Compression.NONE)
        if source.size <= wanted.min_size:
            return _Plan(Compression.NONE, f"at most {wanted.min_size} bytes")
        suffix = len(Compression(wanted.format).suffix)
        name = len(os.path.basename(self._version.path))
        if any(name + suffix > self._ask(n, d.longest_name) for n, d in self.route.destinations.items()):
            return _Plan(Compression.NONE, "the name leaves no room for a suffix")
        if not self.route.watch.compresses(os.path.basename(self._version.path)):
            return _Plan(Compression.NONE, "never_compress names it")
        reason = reason_not_to_compress(source.at, source.size)
        return _Plan(Compression.NONE, reason) if reason else _Plan(Compression(wanted.format))

    # -- the pass --

    def _pass(self, source: reader.Reader, plan: _Plan, missing: list[str]) -> None:
        recipe = self._recipe(source, plan)
        bound, self._done = source.size, (0, 0)
        names = [n for n in missing if plan.compression is not Compression.NONE or n not in self.route.beside]
        if not names:
            self.store.left(self.job, plan.note)
            self._tell("left", f"stays as it is: {plan.note}")
            return
        chosen = [(name, self.route.destinations[name]) for name in names]
        threads = recipe.threads if plan.compression is not Compression.NONE else 0
        with (
            self.bounds.compressing.lend(threads, self._in_turn),
            self._memory(codec.memory_needed(recipe, source.size), bound, [d for _, d in chosen]) as spare,
        ):
            by_crc = all(d.by_crc(bound) for _, d in chosen)
            if any(d.metadata_first(bound) for _, d in chosen):
                recipe = replace(recipe, crc=True)
                self._hash_first(source, crc=by_crc)
            if plan.compression is Compression.NONE and not recipe.others and by_crc:
                # Uploads in parts hold what they send against the first reading, and publish nothing else.
                recipe = replace(recipe, known=source.known())
            self._legs, crc = [_Leg(name, destination) for name, destination in chosen], recipe.crc
            try:
                for leg in self._legs:
                    self._guarded(leg, lambda leg=leg: self._begin(leg, source, plan, spare, crc))  # type: ignore[misc]
                self._raise_if_all_failed()
                encoded = self._encode(source, recipe)
                self._check_source(source, encoded.source)
                self.progress(Stage.PUBLISH, encoded.source.size, encoded.stored.size)
                what = self._note_publication(encoded, plan)
                self._publish_all(source, what)
                if recipe.known and any(isinstance(leg.error, IntegrityError) for leg in self._legs):
                    # Perhaps the first reading was wrong. What was published stays noted: it may have to be recalled.
                    self._checkpoint({k: left for k, left in self.job.checkpoint.items() if k not in _READ_FIRST})
            except (Cancelled, StoreError, TemporaryError):
                for leg in self._legs:
                    self._suspend(leg)
                raise
            finally:
                for leg in self._legs:
                    self._abort(leg)
        self._raise_worst()

    def _hash_first(self, source: reader.Reader, *, crc: bool) -> None:
        """The source's digest before the pass, from the job's checkpoint when an earlier run read it already."""
        left = self.job.checkpoint
        if not source.known_sha256 and "source_sha256" in left:
            source.known_sha256, source.known_crc64nvme = str(left["source_sha256"]), left.get("source_crc64nvme")
        if not source.known_sha256:
            found = source.digests(self.cancelled, crc=crc)
            source.known_sha256, source.known_crc64nvme = found.sha256, found.crc64nvme
            read = dict(zip(_READ_FIRST, (found.sha256, found.crc64nvme), strict=True))
            self._checkpoint({**left, **{name: value for name, value in read.items() if value is not None}})

    def _checkpoint(self, left: dict[str, Any]) -> None:
        self.store.checkpoint(self.job, Stage.TRANSFER, left)
        self.job = replace(self.job, checkpoint=left)

    def _in_turn(self) -> bool:
        """``cancelled``, asked while others have what this job needs: waiting for them is not standing still."""
        self._moved(*self._done)
        return self.cancelled()

    def _moved(self, source_bytes: int, stored_bytes: int) -> None:
        self._done = source_bytes, stored_bytes
        self.progress(Stage.TRANSFER, source_bytes, stored_bytes)

    def _encode(self, source: reader.Reader, recipe: codec.Recipe) -> codec.Encoded:
        try:
            return codec.encode(
                source.pieces(self.cancelled),
                self._write,
                recipe,
                size=source.size,
                progress=self._moved,
                cancelled=self.cancelled,
            )
        except IntegrityError:
            self._require_unchanged(source)  # what is shorter or longer than it was has changed: no damage
            raise

    def _recipe(self, source: reader.Reader, plan: _Plan) -> codec.Recipe:
        wanted = self.route.watch.compress
        others = max(0, self.bounds.waiting() - 1)
        threads = self.bounds.compressing.ceiling
        if plan.compression is not Compression.NONE:
            # So many files at most are compressed at once, and share the threads.
            others, threads = min(others, threads - 1), max(1, threads // (others + 1))
        layout, threads = codec.choose_layout(
            plan.compression, source.size, waiting=others, cpus=self.bounds.cpus, threads=threads
        )
        return codec.Recipe(
            compression=plan.compression,
            level=wanted.level if wanted else 0,
            threads=threads,
            layout=layout,
            timeout=wanted.timeout if wanted else 0.0,
            others=tuple(self.route.watch.digests),
        )

    @contextmanager
    def _memory(self, own: int, bound: int, destinations: list[Destination]) -> Iterator[int]:
        """Hold memory for a pass that needs ``own`` bytes besides its uploads; yields how much each upload has beyond
        what it cannot do without. A file takes no more than its share while others are in flight."""
        own += _BESIDES + (len(destinations) * ROOM * codec.PIECE if len(destinations) > 1 else 0)
        least = own + sum(d.memory_least(bound) for d in destinations)
        most = own + sum(d.memory_needed(bound) for d in destinations)
        with self.bounds.memory.lend(least, self._in_turn, min(most, self.bounds.share())) as lent:
            yield max(0, lent - least) // len(destinations)

    def _begin(self, leg: _Leg, source: reader.Reader, plan: _Plan, spare: int, crc: bool) -> None:
        leg.key, older = self._target(leg.name, plan.compression)
        put = Put(
            key=leg.key,
            size_bound=source.size,
            metadata=publication.metadata(self._version, source.mode, plan.compression, source.known_sha256),
            replace=older,
            mtime_ns=self._version.identity.mtime_ns,
            mode=source.mode,
            memory=leg.destination.memory_least(source.size) + spare,
            tells_crc=crc,
            note=lambda token: self._note(leg, token),
        )
        if self._several:
            self.bounds.rests.enter(leg.name)
        traffic = self.bounds.traffic
        if len(self._legs) == 1:
            leg.upload = traffic.limited(self._open(leg, put), leg.name, self._in_turn)
        else:  # waiting for the rate of all is no slowness of one: it is done before
            own = Apart(lambda: traffic.limited_apart(self._open(leg, put), leg.name, self._in_turn), leg.name)
            leg.upload = traffic.limited_together(own, self._in_turn)

    def _open(self, leg: _Leg, put: Put) -> Upload:
        """Go on with what an earlier run has begun, or begin."""
        for token in [t for _, name, t in self.store.uploads(self.job) if name == leg.name]:
            if not put.resume and leg.destination.resumable(token, put):
                put = replace(put, resume=token)
            elif leg.destination.abandon(token):  # else the sweep does, when the destination answers
                self.store.end_upload(self.job.id, leg.name, token)
        return leg.destination.begin(put)

    def _target(self, name: str, compression: Compression) -> tuple[str, Stored | None]:
        """The key at a destination and, when an older version of ours has it, the object to replace (PRODUCT W8)."""
        watch, version = self.route.watch, self._version
        earlier = [d for d in self.store.deliveries(version.watch, version.path) if d.proof.destination == name]
        if earlier and watch.on_change == "refuse":
            raise Conflict(
                f"{self.route.root.shown(version.path)} changed after it was delivered to {name}, and on_change is"
                ' "refuse"',
                "Deliver it by hand or drop the job; the older copy is untouched",
            )
        number = 1
        while True:
            key = self._key(compression, number)
            current = self.store.current(name, key)
            if current is None:
                return key, None
            there = current.proof.version
            if (watch_of(there.watch), there.path) != (watch_of(version.watch), version.path):
                other = self.route.root.shown(there.path)
                raise Conflict(
                    f"The key {key} at {name} already holds {other} of watch {there.watch}",
                    "Put {path} and {watch} in the watch's key template, then retry the job",
                )
            if watch.on_change == "replace":
                return key, current.proof.stored
            number += 1

    def _key(self, compression: Compression, number: int) -> str:
        return keys.key_for(
            self.route.watch.key,
            watch=self._version.watch,
            path=self._version.path,
            host=self.route.host,
            suffix=compression.suffix,
            version=number,
        )

    def _write(self, data: bytes | memoryview) -> None:
        """Give stored bytes to every destination that still takes them."""
        for leg in self._legs:
            self._guarded(leg, lambda leg=leg: self._write_to(leg, data))  # type: ignore[misc]
        self._raise_if_all_failed()

    def _write_to(self, leg: _Leg, data: bytes | memoryview) -> None:
        assert leg.upload is not None
        leg.upload.write(data)

    def _note(self, leg: _Leg, token: str) -> None:
        if token != leg.token:
            self.store.begin_upload(self.job, leg.name, token, instead_of=leg.token)
            leg.token = token

    def _ask(self, name: str, act: Callable[[], _T]) -> _T:
        """Ask a destination before its leg begins; its failure is told as its own."""
        try:
            return act()
        except TransferError as error:
            self.emit(publication.told_failure(self.job, name, error))
            raise

    def _guarded(self, leg: _Leg, act: Callable[[], None]) -> None:
        """One destination's failure does not stop the others."""
        if leg.error is None:
            try:
                act()
            except TransferError as error:
                leg.error = error
                if self._several:
                    self.bounds.rests.ended(leg.name, error)
                if isinstance(error, TemporaryError):
                    self._suspend(leg)
                else:
                    self._abort(leg)
                self.emit(publication.told_failure(self.job, leg.name, error))

    def _check_source(self, source: reader.Reader, found: Digests) -> None:
        """Before anything becomes visible: the source is still the version that was read, and reads the same."""
        version = self._version
        self._require_unchanged(source)
        if found.size != version.size:
            raise IntegrityError(
                f"{source.shown} gave {found.size} bytes instead of {version.size}", "It is read again"
            )
        if source.known_sha256:
            what = "The staged copy" if self.copy else "The second reading"
            said = f"{what} of {source.shown} differs from what was read first"
            try:
                reader.same(source.known_sha256, found.sha256, said)
            except IntegrityError:
                # Whichever reading was wrong, the next run trusts neither.
                self._checkpoint({key: left for key, left in self.job.checkpoint.items() if key == AGAIN})
                raise

    def _require_unchanged(self, source: reader.Reader) -> None:
        if self.copy is None:  # a copy stays as it is
            reader.unchanged(self.route.root, self._version.path, source, self._version.identity)

    # -- the proof --

    def _note_publication(self, encoded: codec.Encoded, plan: _Plan) -> Publication:
        keys = {leg.name: leg.key for leg in self._legs if leg.error is None}
        found = Publication(encoded.source, encoded.stored, plan.compression, plan.note, keys)
        self.job = found.noted(self.store, self.job)
        return found

    def _publish_all(self, source: reader.Reader, what: Publication) -> None:
        """Side by side, so that none waits for another. Raises StoreError, Cancelled."""
        broken: list[BaseException] = []

        def publish(leg: _Leg) -> None:
            try:
                self._guarded(leg, lambda: self._publish(leg, source, what))
            except BaseException as error:
                broken.append(error)

        others = [threading.Thread(target=publish, args=(leg,), name="publish") for leg in self._legs[1:]]
        for thread in others:
            thread.start()
        publish(self._legs[0])
        for thread in others:
            thread.join()
        if broken:
            raise broken[0]

    def _publish(self, leg: _Leg, source: reader.Reader, what: Publication) -> None:
        assert leg.upload is not None
        metadata = publication.metadata(self._version, source.mode, what.compression, what.source.sha256)
        stored = leg.upload.publish(what.stored, metadata)
        if self.route.watch.verify == "readback":
            stored = publication.read_back(leg.destination, stored, what.stored)
        proof = what.proof(self.job, leg.name, stored, self.clock())
        self.store.deliver(proof, leg.token)
        leg.token = ""
        self.bounds.rests.ended(leg.name, None)
        self.emit(publication.told(proof))

    # -- the end of each way --

    def _suspend(self, leg: _Leg) -> None:
        """Leave what has arrived for the next run of this job."""
        if leg.upload is not None:
            leg.upload.suspend()

    def _abort(self, leg: _Leg) -> None:
        """What cannot be removed now stays noted: the sweep removes it."""
        if leg.upload is not None:
            leg.upload.abort()
            self._settle_token(leg)

    def _settle_token(self, leg: _Leg) -> None:
        assert leg.upload is not None
        if left := leg.upload.resume_token:
            self._note(leg, left)
        elif leg.token:
            self.store.end_upload(self.job.id, leg.name, leg.token)
            leg.token = ""

    def _raise_if_all_failed(self) -> None:
        if all(leg.error is not None for leg in self._legs):
            self._raise_worst()

    def _raise_worst(self) -> None:
        """The error that decides what the queue does: one that is retried goes before one that parks, so that no
        destination waits for an operator's help with another."""
        errors = [leg.error for leg in self._legs if leg.error is not None]
        if errors:
            raise min(errors, key=lambda error: list(Retry).index(error.retry))

    def _tell(self, kind: str, message: str, level: Level = Level.INFO) -> None:
        v = self._version
        self.emit(Event(kind, message, level, watch=v.watch, path=v.path, job=self.job.id, size=v.size))
