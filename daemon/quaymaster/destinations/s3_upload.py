"""One object on its way to S3: gathered into parts, sent side by side, made visible and proven (PRODUCT P5)."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from quaymaster.destinations import crc64
from quaymaster.destinations.base import Put
from quaymaster.destinations.s3_claim import Claim
from quaymaster.destinations.s3_objects import Held, Objects, held_parts, sent_metadata
from quaymaster.destinations.s3_pace import Pace
from quaymaster.destinations.s3_part import send_part
from quaymaster.destinations.s3_plan import MOST_PARTS, Expected, Part, Plan
from quaymaster.destinations.s3_probe import Capabilities, begun_with, completed_with
from quaymaster.destinations.s3_sums import PARAMETERS, Sums, joined, plain_etag, sums
from quaymaster.destinations.s3_wire import Busy, UploadGone
from quaymaster.errors import (
    Conflict,
    IntegrityError,
    PermanentError,
    TemporaryError,
    TransferError,
    Unreachable,
)
from quaymaster.memory import give_back
from quaymaster.model import Compression, Digests, Event, Level, Stored

TRIES = 3
_LONGEST_PATIENCE = 10.0  # seconds; a longer Retry-After is left to the job's own retry

_TYPES = {Compression.ZSTD.value: "application/zstd", Compression.GZIP.value: "application/gzip"}  # RFC 8878, RFC 6713
_Answer = TypeVar("_Answer")


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
    _size: int = 0
    _upload_id: str = ""
    _begun: bool = False
    _pool: ThreadPoolExecutor | None = None
    _sent: list[Future[Part]] = field(default_factory=list)
    _failure: Exception | None = None
    _closed: bool = False
    _left_behind: bool = False
    _held: Mapping[int, Held] = field(default_factory=dict)
    """Parts that the server has of an interrupted upload of the same object."""
    _taken: bool = False
    """The key holds something: nothing is sent, and publish finds out whether it is what would have been."""

    def __post_init__(self) -> None:
        self._key = self.objects.whole_key(self.put.key)
        self._where = self.objects.where(self.put.key)
        self._room = threading.Semaphore(self.plan.buffers - 1)  # the first buffer is there already
        self._stop = threading.Event()
        self._token = self.token()
        self._spare: deque[bytearray] = deque()
        self._buffer, self._filled = bytearray(min(self.put.size_bound, self.plan.part_size)), 0
        self._whole = hashlib.sha256()
        self._turn = threading.Condition()
        self._hashed = 0

    @property
    def resume_token(self) -> str:
        """Names the unfinished upload for :meth:`S3.abandon`; empty while and once there is none. Its number is not
        known while the server's answer to its creation is not."""
        if not self._begun or (self._closed and not self._left_behind):
            return ""
        told = {"key": self._key, "upload_id": self._upload_id, "claim": self._token}
        return json.dumps(told | {"plan": self.plan.digest(self.put)})

    def is_sending(self, key: str) -> bool:
        """Whether this may have a multipart upload of the (whole) key, and has not ended."""
        return self._begun and not self._closed and self._key == key

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            if self._failure:
                raise self._failure
            if self._filled == len(self._buffer):
                self._make_room()
            piece = rest[: len(self._buffer) - self._filled]
            # Through a view: a bytearray would make a copy of its own first.
            memoryview(self._buffer)[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            self._size += len(piece)
            rest = rest[len(piece) :]

    def publish(self, digests: Digests, metadata: Mapping[str, str]) -> Stored:
        in_parts = self._upload_id or self._taken
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
        self._stop.set()
        self._release()
        self._left_behind = self._begun

    def abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        self._release()
        self._forget_parts()

    def _forget_parts(self) -> None:
        self._left_behind = self._begun and not self._upload_id
        if self._upload_id:
            try:
                self._tried(lambda: abort_upload(self.objects, self._key, self._upload_id))
                if self.put.resume or self._claim.left:  # perhaps from a run that was killed while it had the claim
                    self._tried(self._claim.withdraw)
                    self._left_behind = self._claim.left
            except Exception as error:
                self._left_behind = True
                text = f"An unfinished upload of {self._where} stays there until it can be removed. {error}"
                self._tell("upload-left-behind", text, Level.WARNING)

    # Sending

    def _make_room(self) -> None:
        """Send what is full, and wait until another buffer may be had: one that was sent already, if there is one,
        since its memory need not be had from the kernel again."""
        if self._filled == self.plan.part_size:
            self._send_buffer()
        if self._sent and not self._buffer:
            self._room.acquire()
            self._buffer = self._spare.popleft() if self._spare else bytearray(self.plan.part_size)
        else:  # more comes than was announced
            self._buffer += bytes(self.plan.part_size - self._filled)

    def _send_buffer(self) -> None:
        if self._pool is None:
            self._open()
        number = len(self._sent) + 1
        if number > MOST_PARTS:
            raise PermanentError(
                f"{self._where} grew beyond {self.put.size_bound} bytes, for which its parts were planned",
                "Retry the job when the file no longer grows",
            )
        assert self._pool is not None
        self._sent.append(self._pool.submit(self._send, number, self._buffer, self._filled))
        self._buffer, self._filled = bytearray(), 0

    def _open(self) -> None:
        """Find out what there is already, and begin or go on."""
        present = self._tried(lambda: self.objects.head(self.put.key))
        self._taken = present is not None and not self._is_older(present)
        if self.put.resume:
            told = json.loads(self.put.resume)
            self._begun, self._upload_id, self._token = True, told["upload_id"], told["claim"]
        if self._upload_id and not self._taken:
            self._look_at_parts()
        if not (self._upload_id or self._taken):
            self._create()
        self._pool = ThreadPoolExecutor(self.plan.threads, thread_name_prefix="s3-part")

    def _look_at_parts(self) -> None:
        held = self._tried(lambda: held_parts(self.objects.wire, self._key, self._upload_id))
        if held is None:
            self._upload_id = ""  # somebody aborted it
            return
        self._held = held
        text = f"an interrupted upload of {self._where} goes on: {len(held)} parts have arrived already"
        self._tell("upload-resumed", text, Level.INFO)

    def _create(self) -> None:
        fixed = self._fixed(self.put.metadata) | begun_with(self.able.part_checked)
        self._begun = True
        self.put.note(self.resume_token)
        # Only after an answer: one that was lost may have made an upload, which a second one would hide. The next run
        # of the job looks for it (S3.abandon).
        answer = self._tried(
            lambda: self.objects.wire.call("create_multipart_upload", self._key, **fixed), again=(Busy,)
        )
        self._upload_id = str(answer["UploadId"])
        self.put.note(self.resume_token)

    def _send(self, number: int, buffer: bytearray, length: int) -> Part:
        body = memoryview(buffer)[:length]
        try:
            if not self.put.tells_crc:
                self._hash_in_turn(number, body)
            held = self._held.get(number)
            level = held.level(self.able.part_checked) if held else self.able.part_checked
            made = sums(
                body, {level, self.able.part_checked, self.able.parts_proof.removesuffix("-parts"), "crc64nvme"}
            )
            if held and held.holds(made, level):
                return Part(number, held.etag, made)
            return Part(number, self._delivered(number, body, made), made)
        except Exception as error:
            self._failure = self._failure or error
            self._stop.set()
            raise
        finally:
            if not self._stop.is_set():
                self._spare.append(buffer)
            self._room.release()

    def _delivered(self, number: int, body: memoryview, made: Sums) -> str:
        """Send the part; its ETag."""
        if self._taken:
            return ""
        digest = made.parameters(self.able.part_checked)

        def send() -> str:
            with self.pace.turn(len(body), self._stop) as mine:
                if not mine:
                    raise self._given_up()
                return send_part(self.objects.wire, self._key, self._upload_id, number, body, digest)

        return self._tried(send)

    def _given_up(self) -> Unreachable:
        return Unreachable(f"The upload of {self._where} was given up")

    def _hash_in_turn(self, number: int, body: memoryview) -> None:
        """The digest of the whole, part after part, while other parts are sent: the writer does not wait for it.
        Parts start in order, so the one whose turn it is always runs."""
        with self._turn:
            while self._hashed != number - 1:
                if self._stop.is_set():
                    raise self._given_up()
                self._turn.wait(1)
            self._whole.update(body)
            self._hashed = number
            self._turn.notify_all()

    def _tried(
        self, action: Callable[[], _Answer], again: tuple[type[TransferError], ...] = (TemporaryError, IntegrityError)
    ) -> _Answer:
        """Up to three times, when the failure may be one of the moment."""
        attempt = 1
        while True:
            try:
                return action()
            except UploadGone:
                raise
            except again as error:
                if attempt == TRIES or self._stop.is_set():
                    raise
                self._pause(attempt, error)
                attempt += 1

    def _pause(self, attempt: int, error: TransferError) -> None:
        asked = min(error.retry_after, _LONGEST_PATIENCE) if isinstance(error, Busy) else 0.0
        self._stop.wait(max(asked, 0.2 * 2 ** (attempt - 1) * (0.5 + self.jitter())))

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
        parts = [part.result() for part in self._sent]
        made, level = [part.sums for part in parts], self.able.part_checked
        self._require(digests, self._whole.digest(), joined(made))
        source = self.put.metadata.get("quaymaster-sha256", "")
        expected = Expected.of_parts(digests, self.able.parts_proof, made, source)
        if self._taken:
            return self._publish_nothing(expected)
        listed = [
            {"PartNumber": part.number, "ETag": part.etag}
            | (part.sums.parameters(level) if level in PARAMETERS else {})
            for part in parts
        ]
        upload: dict[str, Any] = {"UploadId": self._upload_id, "MultipartUpload": {"Parts": listed}}
        upload |= completed_with(level, expected.crc64nvme)
        return self._commit(
            lambda condition: self.objects.wire.call("complete_multipart_upload", self._key, **upload, **condition),
            expected,
            self.able.create_parts,
        )

    def _publish_nothing(self, expected: Expected) -> Stored:
        present = self._tried(lambda: self.objects.head(self.put.key))
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
                present = self._tried(lambda: self.objects.head(self.put.key))
                if present is None and old is not None:
                    old = None  # ours was removed meanwhile: nothing is in the way, and nothing gets overwritten
                elif present is not None and not self._is_older(present):
                    return self._adopted(present, expected) or self._refuse(present)
                elif attempt == TRIES:
                    raise Unreachable(f"Another writer keeps {self._where} busy", "It is tried again") from error
                elif present is not None:
                    old = self.put.replace  # it is there: an answer that it was gone came from a bucket that was away
                self._pause(attempt, error)
            except IntegrityError as error:
                if attempt == TRIES:
                    raise
                self._pause(attempt, error)
            except TemporaryError as error:
                found = self._after_lost_reply(expected)
                if found:
                    return found
                if attempt == TRIES or isinstance(error, UploadGone):
                    raise
                self._pause(attempt, error)
            else:
                return self._proven(answer, expected)
        raise Unreachable(f"Another writer keeps {self._where} busy", "It is tried again")

    def _is_older(self, present: Stored) -> bool:
        """Whether it is the object that is to be replaced, as it was."""
        return self.put.replace is not None and present.etag == self.put.replace.etag

    def _alone(self, old: Stored | None) -> AbstractContextManager[None]:
        if not (self._upload_id and self.plan.claims):
            return nullcontext()
        return self._claim.held(old.etag if old else "")

    @functools.cached_property
    def _claim(self) -> Claim:
        level, atomic = self.able.put_checked, self.able.remove == "atomic"
        return Claim(self.objects, self.put.key, self._token, level, atomic, self._stop)

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
        present = self._tried(lambda: self.objects.head(self.put.key, "" if version == "null" else version))
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
            return self._tried(compare)
        except IntegrityError:
            return False

    def _withdraw(self, present: Stored) -> str:
        try:
            self._tried(lambda: self.objects.remove(present, atomic=self.able.remove == "atomic"))
        except TransferError as error:
            self._tell("withdrawal-failed", f"A damaged object is still at {self._where}: {error}", Level.ERROR)
            return " and could not be removed"
        return " and was removed again"

    def _release(self) -> None:
        self._buffer, self._filled = bytearray(), 0
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            self._sent.clear()
            # Not before: a part that was under way leaves its buffer too. And the failure knows where it was raised,
            # which leads back here: together they would stay until the collector of cycles comes.
            self._spare.clear()
            self._failure = None
            give_back()

    def _tell(self, kind: str, message: str, level: Level) -> None:
        self.emit(Event(kind, message, level, destination=self.objects.wire.settings.name))


def content_type(metadata: Mapping[str, str]) -> str:
    return _TYPES.get(metadata.get("quaymaster-compression", ""), "application/octet-stream")


def abort_upload(objects: Objects, key: str, upload_id: str) -> None:
    """``key`` is the whole key."""
    try:
        objects.wire.call("abort_multipart_upload", key, UploadId=upload_id)
    except UploadGone:
        pass
