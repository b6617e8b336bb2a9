"""The parts of one large object on their way: a multipart upload that is begun or gone on with (S3 API reference)."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from quaymaster.destinations.base import Put
from quaymaster.destinations.s3_objects import Held, Objects, held_parts
from quaymaster.destinations.s3_pace import Pace
from quaymaster.destinations.s3_part import send_part
from quaymaster.destinations.s3_plan import MOST_PARTS, Part, Plan
from quaymaster.destinations.s3_probe import Capabilities, begun_with
from quaymaster.destinations.s3_sums import Sums, sums
from quaymaster.destinations.s3_tries import Tries
from quaymaster.destinations.s3_wire import Busy, UploadGone
from quaymaster.errors import PermanentError, Unreachable
from quaymaster.memory import give_back


@dataclass(eq=False)
class Parts:
    """Nothing is asked and no thread is there before :meth:`open`. Used by one thread; at most ``plan.buffers``
    buffers are in use at once, the one that is being filled included."""

    objects: Objects
    put: Put
    plan: Plan
    able: Capabilities
    pace: Pace
    tries: Tries
    now: Callable[[], float]
    """Seconds since the epoch."""
    claim: str
    """Names the upload's claim to its key (s3_claim.py)."""
    upload_id: str = ""
    """Empty while there is no upload, and while its number is not known."""
    begun: bool = False
    """There is, or was, or may be an upload."""
    taken: bool = False
    """The key holds something: nothing is sent, and publishing finds out whether it is what would have been."""
    failure: Exception | None = None
    """Of the first part that could not be sent."""
    _asked_at: float = 0.0
    """When the server was asked to begin."""
    _held: Mapping[int, Held] = field(default_factory=dict)
    """What the server has of an interrupted upload of the same object."""
    _sent: list[Future[Part]] = field(default_factory=list)
    _spare: deque[bytearray] = field(default_factory=deque)
    _pool: ThreadPoolExecutor | None = None

    def __post_init__(self) -> None:
        self.key = self.objects.whole_key(self.put.key)
        self._where = self.objects.where(self.put.key)
        self._room = threading.Semaphore(self.plan.buffers - 1)  # the first buffer is there already
        self._whole = hashlib.sha256()
        self._turn = threading.Condition()
        self._hashed = 0

    @property
    def token(self) -> str:
        """What :meth:`S3.abandon` needs to remove the upload. Its number is not known while the server's answer to its
        creation is not."""
        told: dict[str, Any] = {"key": self.key, "upload_id": self.upload_id, "claim": self.claim}
        if not self.upload_id:
            told["at"] = self._asked_at
        return json.dumps(told | {"plan": self.plan.digest(self.put)})

    @property
    def opened(self) -> bool:
        return self._pool is not None

    # Beginning

    def open(self, *, taken: bool, fixed: Mapping[str, Any]) -> int:
        """Begin, or go on with what ``put.resume`` names; the number of parts that have arrived already. ``fixed`` are
        the parameters that an object gets when its upload begins."""
        self.taken, arrived = taken, 0
        if self.put.resume:
            told = json.loads(self.put.resume)
            self.begun, self.upload_id, self.claim = True, told["upload_id"], told["claim"]
        if self.upload_id and not self.taken:
            arrived = self._look_at_parts()
        if self.upload_id:
            self.put.note(self.token)
        elif not self.taken:
            self._create(fixed)
        self._pool = ThreadPoolExecutor(self.plan.threads, thread_name_prefix="s3-part")
        return arrived

    def _look_at_parts(self) -> int:
        held = self.tries.run(lambda: held_parts(self.objects.wire, self.key, self.upload_id))
        if held is None:
            self.upload_id = ""  # or so the server says: what was noted of it stays so until it has been abandoned
            return 0
        self._held = held
        return len(held)

    def _create(self, fixed: Mapping[str, Any]) -> None:
        wanted = {**fixed, **begun_with(self.able.part_checked)}
        self.begun, self._asked_at = True, self.now()
        self.put.note(self.token)
        # Only after an answer: one that was lost may have made an upload, which a second one would hide. The next run
        # of the job looks for it (S3.abandon).
        answer = self.tries.run(
            lambda: self.objects.wire.call("create_multipart_upload", self.key, **wanted), again=(Busy,)
        )
        self.upload_id = str(answer["UploadId"])
        self.put.note(self.token)

    # Sending

    def send(self, buffer: bytearray, length: int) -> None:
        """The next part, of ``length`` bytes; the buffer is not the caller's any more."""
        number = len(self._sent) + 1
        if number > MOST_PARTS:
            raise PermanentError(
                f"{self._where} grew beyond {self.put.size_bound} bytes, for which its parts were planned",
                "Retry the job when the file no longer grows",
            )
        assert self._pool is not None
        self._sent.append(self._pool.submit(self._send, number, buffer, length))

    def buffer(self) -> bytearray:
        """Another buffer of the size of a part, as soon as one may be had: one that was sent already, if there is one,
        since its memory need not be had from the kernel again."""
        self._room.acquire()
        return self._spare.popleft() if self._spare else bytearray(self.plan.part_size)

    def all(self) -> tuple[list[Part], bytes]:
        """The parts when they all have arrived, and the SHA-256 of them together (of nothing where ``put.tells_crc``).
        Raises what kept one from it."""
        return [part.result() for part in self._sent], self._whole.digest()

    def close(self) -> None:
        """Wait for parts that are under way, and give back the memory."""
        if self._pool is None:
            return
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self._sent.clear()
        # Not before: a part that was under way leaves its buffer too. And the failure knows where it was raised,
        # which leads back here: together they would stay until the collector of cycles comes.
        self._spare.clear()
        self.failure = None
        give_back()

    def abort(self) -> None:
        self.tries.run(lambda: abort_upload(self.objects, self.key, self.upload_id))

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
            self.failure = self.failure or error
            self.tries.stop.set()
            raise
        finally:
            if not self.tries.stop.is_set():
                self._spare.append(buffer)
            self._room.release()

    def _delivered(self, number: int, body: memoryview, made: Sums) -> str:
        """Send the part; its ETag."""
        if self.taken:
            return ""
        digest = made.parameters(self.able.part_checked)

        def send() -> str:
            with self.pace.turn(len(body), self.tries.stop) as mine:
                if not mine:
                    raise self._given_up()
                return send_part(self.objects.wire, self.key, self.upload_id, number, body, digest)

        return self.tries.run(send)

    def _given_up(self) -> Unreachable:
        return Unreachable(f"The upload of {self._where} was given up")

    def _hash_in_turn(self, number: int, body: memoryview) -> None:
        """The digest of the whole, part after part, while other parts are sent: the writer does not wait for it.
        Parts start in order, so the one whose turn it is always runs."""
        with self._turn:
            while self._hashed != number - 1:
                if self.tries.stop.is_set():
                    raise self._given_up()
                self._turn.wait(1)
            self._whole.update(body)
            self._hashed = number
            self._turn.notify_all()


def abort_upload(objects: Objects, key: str, upload_id: str) -> None:
    """``key`` is the whole key."""
    try:
        objects.wire.call("abort_multipart_upload", key, UploadId=upload_id)
    except UploadGone:
        pass
