"""One object on its way to S3: gathered into parts, sent side by side, made visible and proven (PRODUCT P5)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from quaymaster.destinations import crc64
from quaymaster.destinations.base import Put
from quaymaster.destinations.s3_claim import Claim
from quaymaster.destinations.s3_objects import Objects, sent_metadata
from quaymaster.destinations.s3_pace import Pace
from quaymaster.destinations.s3_parts import Parts
from quaymaster.destinations.s3_plan import Expected, Plan
from quaymaster.destinations.s3_probe import Capabilities, completed_with
from quaymaster.destinations.s3_sums import PARAMETERS, Sums, joined, plain_etag, sums
from quaymaster.destinations.s3_tries import TRIES, Tries
from quaymaster.destinations.s3_wire import UploadGone
from quaymaster.errors import Conflict, IntegrityError, TemporaryError, TransferError, Unreachable
from quaymaster.model import Compression, Digests, Event, Level, Stored

_TYPES = {Compression.ZSTD.value: "application/zstd", Compression.GZIP.value: "application/gzip"}  # RFC 8878, RFC 6713


@dataclass(eq=False)
class S3Upload:
    """The :class:`~quaymaster.destinations.base.Upload` of S3.

    What fits into one part is sent as one PutObject by :meth:`publish`; nothing is sent before. Anything larger is a
    multipart upload from the first full part on. ``write`` blocks while ``plan.buffers`` parts are on their way.
    """

    objects: Objects
    put: Put
    plan: Plan
    able: Capabilities
    emit: Callable[[Event], None]
    pace: Pace
    weakened: Callable[[str], None]
    """Told when the server no longer says what the probe saw it say."""
    jitter: Callable[[], float]
    token: Callable[[], str]
    now: Callable[[], float]
    """Seconds since the epoch."""
    _size: int = 0
    _closed: bool = False
    _left_behind: bool = False

    def __post_init__(self) -> None:
        self._key = self.objects.whole_key(self.put.key)
        self._where = self.objects.where(self.put.key)
        self._tries = Tries(self.jitter)
        self._parts = Parts(
            self.objects, self.put, self.plan, self.able, self.pace, self._tries, self.now, self.token()
        )
        self._buffer, self._filled = bytearray(min(self.put.size_bound, self.plan.part_size)), 0

    @property
    def resume_token(self) -> str:
        """Names the unfinished upload for :meth:`S3.abandon`; empty while and once there is none."""
        if not self._parts.begun or (self._closed and not self._left_behind):
            return ""
        return self._parts.token

    def is_sending(self, key: str) -> bool:
        """Whether this may have a multipart upload of the (whole) key, and has not ended."""
        return self._parts.begun and not self._closed and self._key == key

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            if self._parts.failure:
                raise self._parts.failure
            if self._filled == len(self._buffer):
                self._make_room()
            piece = rest[: len(self._buffer) - self._filled]
            # Through a view: a bytearray would make a copy of its own first.
            memoryview(self._buffer)[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            self._size += len(piece)
            rest = rest[len(piece) :]

    def publish(self, digests: Digests, metadata: Mapping[str, str]) -> Stored:
        in_parts = self._parts.opened
        stored = self._publish_parts(digests) if in_parts else self._publish_single(digests, metadata)
        self._closed = True
        self._release()
        self._left_behind = self._left_behind or self._claim.left
        return stored

    def published(self, digests: Digests, answer: Mapping[str, Any]) -> Stored:
        """As :meth:`publish`, when what was written has been made visible already by a PutObject with this answer
        (its ``ETag`` and ``VersionId``)."""
        stored = self._proven(answer, self._expected_single(digests, {})[0])
        self._closed = True
        self._release()
        return stored

    def suspend(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._tries.stop.set()
        self._release()
        self._left_behind = self._parts.begun

    def abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._tries.stop.set()
        self._release()
        self._forget_parts()

    def _forget_parts(self) -> None:
        self._left_behind = self._parts.begun and not self._parts.upload_id
        if self._parts.upload_id:
            try:
                self._parts.abort()
                if self.put.resume or self._claim.left:  # perhaps from a run that was killed while it had the claim
                    self._tries.run(self._claim.withdraw)
                    self._left_behind = self._claim.left
            except Exception as error:
                self._left_behind = True
                text = f"An unfinished upload of {self._where} stays there until it can be removed. {error}"
                self._tell("upload-left-behind", text, Level.WARNING)

    # Sending

    def _make_room(self) -> None:
        """Send what is full, and wait until another buffer may be had."""
        if self._filled == self.plan.part_size:
            self._send_buffer()
            self._buffer = self._parts.buffer()
        else:  # more comes than was announced
            self._buffer += bytes(self.plan.part_size - self._filled)

    def _send_buffer(self) -> None:
        if not self._parts.opened:
            self._open()
        self._parts.send(self._buffer, self._filled)
        self._buffer, self._filled = bytearray(), 0

    def _open(self) -> None:
        """Find out what there is already, and begin or go on."""
        present = self._tries.run(lambda: self.objects.head(self.put.key))
        taken = present is not None and not self._is_older(present)
        arrived = self._parts.open(taken=taken, fixed=self._fixed(self.put.metadata))
        if arrived:
            text = f"an interrupted upload of {self._where} goes on: {arrived} parts have arrived already"
            self._tell("upload-resumed", text, Level.INFO)

    # Making it visible

    def _publish_single(self, digests: Digests, metadata: Mapping[str, str]) -> Stored:
        expected, made = self._expected_single(digests, metadata)
        body = self._buffer
        del body[self._filled :]
        digest = made.parameters(self.able.put_checked)
        fixed = self._fixed(metadata)
        return self._commit(
            lambda condition: self.objects.wire.call(
                "put_object", self._key, Body=body, **digest, **fixed, **condition
            ),
            expected,
            self.able.create,
        )

    def _expected_single(self, digests: Digests, metadata: Mapping[str, str]) -> tuple[Expected, Sums]:
        with memoryview(self._buffer) as buffer, buffer[: self._filled] as body:
            made = sums(body, {self._followed_by, self.able.put_checked, self.able.put_proof} - {"readback"})
        self._require(digests, made.sha256, made.crc64nvme)
        return Expected.of_one(digests, self.able.put_proof, made, metadata.get("quaymaster-sha256", "")), made

    def _publish_parts(self, digests: Digests) -> Stored:
        if self._filled:
            self._send_buffer()
        parts, whole = self._parts.all()
        made, level = [part.sums for part in parts], self.able.part_checked
        self._require(digests, whole, joined(made))
        source = self.put.metadata.get("quaymaster-sha256", "")
        expected = Expected.of_parts(digests, self.able.parts_proof, made, source)
        if self._parts.taken:
            return self._publish_nothing(expected)
        listed = [
            {"PartNumber": part.number, "ETag": part.etag}
            | (part.sums.parameters(level) if level in PARAMETERS else {})
            for part in parts
        ]
        upload: dict[str, Any] = {"UploadId": self._parts.upload_id, "MultipartUpload": {"Parts": listed}}
        upload |= completed_with(level, expected.crc64nvme)
        return self._commit(
            lambda condition: self.objects.wire.call("complete_multipart_upload", self._key, **upload, **condition),
            expected,
            self.able.create_parts,
        )

    def _publish_nothing(self, expected: Expected) -> Stored:
        present = self._tries.run(lambda: self.objects.head(self.put.key))
        if present is None:
            raise Unreachable(f"{self._where} was there when it began and is gone now", "It is sent again")
        return self._adopted(present, expected) or self._refuse(present)

    @property
    def _followed_by(self) -> str:
        """The digest that ties what is sent to what the caller read."""
        return "crc64nvme" if self.put.tells_crc else "sha256"

    def _require(self, digests: Digests, sha256: bytes, crc64nvme: int) -> None:
        """What was given to write() is what the caller hashed; nothing is visible yet if not."""
        if self.put.tells_crc:
            name, found, wanted = "CRC-64/NVME", crc64.shown(crc64nvme), crc64.shown(digests.crc64nvme)
        else:
            name, found, wanted = "SHA-256", sha256.hex(), digests.sha256
        if self._size != digests.size or found != wanted:
            raise IntegrityError(
                f"The bytes for {self._where} are not those that were read before: {self._size} bytes with {name} "
                f"{found} instead of {digests.size} with {wanted}",
                "They are read again; if it happens again, test this host's memory",
            )

    def _fixed(self, metadata: Mapping[str, str]) -> dict[str, Any]:
        return {"Metadata": sent_metadata(metadata), "ContentType": content_type(metadata), **self.plan.options}

    def _commit(
        self, send: Callable[[Mapping[str, str]], Mapping[str, Any]], expected: Expected, create: str
    ) -> Stored:
        """Send the request that makes the object visible, and find out what became of it when the reply is lost."""
        old = self.put.replace
        for attempt in range(1, TRIES + 1):
            try:
                with self._alone(old):
                    answer = send(self._condition(old, create))
            except Conflict as error:
                present = self._tries.run(lambda: self.objects.head(self.put.key))
                if present is None and old is not None:
                    old = None  # ours was removed meanwhile: nothing is in the way, and nothing gets overwritten
                elif present is not None and not self._is_older(present):
                    return self._adopted(present, expected) or self._refuse(present)
                elif attempt == TRIES:
                    raise Unreachable(f"Another writer keeps {self._where} busy", "It is tried again") from error
                elif present is not None:
                    old = self.put.replace  # it is there: an answer that it was gone came from a bucket that was away
                self._tries.pause(attempt, error)
            except IntegrityError as error:
                if attempt == TRIES:
                    raise
                self._tries.pause(attempt, error)
            except TemporaryError as error:
                found = self._after_lost_reply(expected)
                if found:
                    return found
                if attempt == TRIES or isinstance(error, UploadGone):
                    raise
                self._tries.pause(attempt, error)
            else:
                return self._proven(answer, expected)
        raise Unreachable(f"Another writer keeps {self._where} busy", "It is tried again")

    def _is_older(self, present: Stored) -> bool:
        """Whether it is the object that is to be replaced, as it was."""
        return self.put.replace is not None and present.etag == self.put.replace.etag

    def _alone(self, old: Stored | None) -> AbstractContextManager[None]:
        if not (self._parts.upload_id and self.plan.claims):
            return nullcontext()
        return self._claim.held(old.etag if old else "")

    @functools.cached_property
    def _claim(self) -> Claim:
        level, atomic = self.able.put_checked, self.able.remove == "atomic"
        return Claim(self.objects, self.put.key, self._parts.claim, level, atomic, self._tries.stop)

    def _condition(self, old: Stored | None, create: str) -> dict[str, str]:
        """The request's condition; with an endpoint that heeds none, the look just before (a race is possible)."""
        if old is None and create == "atomic":
            return {"IfNoneMatch": "*"}
        present = self.objects.head(self.put.key)
        if (present.etag if present else "") != (old.etag if old else ""):
            raise Conflict(f"{self._where} is not as it was")
        return {"IfMatch": f'"{old.etag}"'} if old and self.able.replace == "atomic" else {}

    def _after_lost_reply(self, expected: Expected) -> Stored | None:
        """The request may have been carried out although its answer never came."""
        try:
            present = self.objects.head(self.put.key)
            return self._adopted(present, expected) if present else None
        except TemporaryError:
            return None

    def _adopted(self, present: Stored, expected: Expected) -> Stored | None:
        """The object that is there, when its content is proven to be what was to be put there."""
        same, evidence = expected.found_in(present, adopting=True), expected.proof
        if same is None:
            same, evidence = self._reads_back(present, expected), "readback"
        if not same:
            return None
        self._forget_parts()  # unless it was ours and completed, when there is nothing left to forget
        return replace(present, evidence=evidence)

    def _refuse(self, present: Stored) -> Stored:
        raise Conflict(
            f"Something else is already at {self._where} ({present.size} bytes); it is never overwritten",
            "Rename or remove it there, or change the key of the watch, then retry the job",
        )

    # Proof

    def _proven(self, answer: Mapping[str, Any], expected: Expected) -> Stored:
        """What the server says it holds, compared with what was sent; the object is withdrawn if it differs."""
        version = str(answer.get("VersionId") or "")
        present = self._tries.run(lambda: self.objects.head(self.put.key, "" if version == "null" else version))
        if present is None:
            raise IntegrityError(f"{self._where} was accepted but is not there", "It is sent again")
        same, evidence = expected.found_in(present, adopting=False), expected.proof
        if same is None:
            if expected.proof != "readback":
                self.weakened(f"{self._where} was stored without the {expected.proof} that the server used to tell")
            same, evidence = self._reads_back(present, expected), "readback"
        if same:
            return replace(present, evidence=evidence)
        etag = plain_etag(answer.get("ETag"))
        if etag and etag != present.etag:
            return self._refuse(present)  # not ours any more: somebody overwrote it since
        raise IntegrityError(
            f"{self._where} was stored with other bytes than were sent{self._withdraw(present)}", "It is sent again"
        )

    def _reads_back(self, present: Stored, expected: Expected) -> bool:
        """Downloads and hashes; three times before it says no, since the download may be what is damaged."""

        def compare() -> bool:
            if self.objects.digest(present) != expected.digests.sha256:
                raise IntegrityError(f"{self._where} reads back with other bytes than were sent")
            return True

        if present.size != expected.digests.size:
            return False
        try:
            return self._tries.run(compare)
        except IntegrityError:
            return False

    def _withdraw(self, present: Stored) -> str:
        try:
            self._tries.run(lambda: self.objects.remove(present, atomic=self.able.remove == "atomic"))
        except TransferError as error:
            self._tell("withdrawal-failed", f"A damaged object is still at {self._where}: {error}", Level.ERROR)
            return " and could not be removed"
        return " and was removed again"

    def _release(self) -> None:
        self._buffer, self._filled = bytearray(), 0
        self._parts.close()

    def _tell(self, kind: str, message: str, level: Level) -> None:
        self.emit(Event(kind, message, level, destination=self.objects.wire.settings.name))


def content_type(metadata: Mapping[str, str]) -> str:
    return _TYPES.get(metadata.get("quaymaster-compression", ""), "application/octet-stream")
