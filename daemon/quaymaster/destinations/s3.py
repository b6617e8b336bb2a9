"""S3-compatible object storage as a destination (PRODUCT P5, P6, P7).

An object becomes visible with one PutObject or CompleteMultipartUpload, conditional where the endpoint heeds
conditions. Bodies are not signed but each carries a digest that the server checks; what it stored is then compared
with what was sent. What the endpoint really honours is found out once per process (s3_probe.py) and pinned.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from quaymaster import keys
from quaymaster.destinations.base import OWN, Parcel, Put, Reading
from quaymaster.destinations.owner import own_tag
from quaymaster.destinations.s3_claim import Claim
from quaymaster.destinations.s3_objects import Objects
from quaymaster.destinations.s3_pace import Pace
from quaymaster.destinations.s3_parts import abort_upload
from quaymaster.destinations.s3_plain import Plain, usable
from quaymaster.destinations.s3_plan import LARGEST_OBJECT, Plan, part_size_for
from quaymaster.destinations.s3_probe import Capabilities, Probe, remove_left
from quaymaster.destinations.s3_signature import Credentials
from quaymaster.destinations.s3_together import LARGEST, Batch, suits
from quaymaster.destinations.s3_tries import Tries
from quaymaster.destinations.s3_upload import S3Upload
from quaymaster.destinations.s3_wire import Settings, Wire
from quaymaster.errors import IntegrityError, NameRefused, NotSupported, PermissionDenied, TransferError
from quaymaster.model import Digests, Emit, Event, Level, Stored

LONGEST_KEY = 1024  # bytes of UTF-8; S3 user guide, "Naming Amazon S3 objects"
PROBE_FOLDER = ".quaymaster-probe"
_LEAST_BUFFERS = 2  # one that is filled while the other is sent
_LEAST_PARTS = 4
"""Of all files together that may travel at once, whatever the server bears, and with which it begins. (SeaweedFS took
12 CPU-seconds for a GiB in parts of 16 MiB with 2 or 4 at once, and 17 with 8.)"""
_LATE = 60.0
"""Seconds until a request whose sender died is taken for lost: a server that stalls may carry it out after the next
process has looked for what it did."""
_REEXAMINE = 60.0  # seconds between examinations of an endpoint that has become weaker


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A multipart upload that was begun under the prefix and neither completed nor aborted."""

    token: str
    """For :meth:`S3.abandon`."""
    key: str
    begun: float
    """Seconds since the epoch, by the server's clock."""


class S3:
    """A bucket, or a prefix of one. Thread-safe; connects at first use.

    ``credentials`` is called when a connection is made, and again after access was refused; None means the AWS
    chain. ``pins`` are capabilities remembered from before; ``on_pins`` is given them to remember.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        credentials: Callable[[], Credentials | None],
        parts: int = 8,
        files: int = 20,
        emit: Emit,
        pins: Mapping[str, str] | None = None,
        on_pins: Callable[[dict[str, str]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = settings.name
        self._settings = settings
        self._parts = parts
        self._emit = emit
        self._pins = dict(pins or {})
        self._on_pins = on_pins
        self._clock, self._now, self._token, self._jitter = clock, now, token, jitter
        self._connections = parts * files
        self._pace = Pace(_LEAST_PARTS, self._connections, clock)
        plain = Plain(settings, credentials) if usable(settings, os.environ) else None
        self._objects = Objects(Wire(settings, credentials=credentials, connections=self._connections), plain)
        self._lock = threading.Lock()
        self._uploads: weakref.WeakSet[S3Upload] = weakref.WeakSet()
        self._uploads_lock = threading.Lock()
        self._able: Capabilities | None = None
        self._lost: list[str] = []
        self._examined = 0.0
        self._tells = True  # answers to PutObject tell the digest

    def metadata_first(self, size_bound: int) -> bool:
        return size_bound > self._plan(size_bound).part_size

    def by_crc(self, size_bound: int) -> bool:
        return self._settings.checksum == "crc64nvme" and self.metadata_first(size_bound)

    def longest_name(self) -> int:
        return LONGEST_KEY - len(self._settings.prefix.encode())

    def memory_needed(self, size_bound: int) -> int:
        """The most bytes of buffers that one upload of up to ``size_bound`` bytes holds."""
        plan = self._plan(size_bound)
        return min(size_bound, plan.part_size * plan.buffers)

    def memory_least(self, size_bound: int) -> int:
        return min(size_bound, self._plan(size_bound).part_size * _LEAST_BUFFERS)

    def begin(self, put: Put) -> S3Upload:
        self._require_name(put.key)
        if put.size_bound > LARGEST_OBJECT:
            raise NotSupported(f"{self._objects.where(put.key)} would be larger than the 5 TiB of an S3 object")
        able = self._capabilities()
        # AWS itself decides between two completions in one step ("the first writer wins", S3 user guide).
        claims = bool(self._settings.endpoint_url) and able.create == "atomic" and able.remove != "denied"
        plan = replace(self._plan(put.size_bound, put.memory), claims=claims)
        upload = S3Upload(
            self._objects, put, plan, able, self._emit, self._pace, self._weakened, self._jitter, self._token, self._now
        )
        with self._uploads_lock:
            self._uploads.add(upload)
        return upload

    def together(self) -> int:
        able = self._able
        return LARGEST if self._tells and (able is None or suits(able)) else 0

    def put_all(
        self, parcels: Sequence[Parcel], stopped: Callable[[], bool]
    ) -> Iterator[tuple[int, Stored | TransferError]]:
        able, lines = self._capabilities(), self._objects.wire.lines()
        if lines is None or not suits(able):
            self._tells = False
        plan, tries = self._plan(LARGEST), Tries(self._jitter)
        batch = Batch(self._objects, lines, able, plan.options, self._written, self._require_name, self._silent, tries)
        return batch.run(parcels, stopped)

    def _written(self, parcel: Parcel) -> S3Upload:
        upload = self.begin(parcel.put)
        upload.write(parcel.body)
        return upload

    def _silent(self) -> None:
        self._tells = False

    def resumable(self, token: str, put: Put) -> bool:
        try:
            told = json.loads(token)
            same = told["key"] == self._objects.whole_key(put.key) and told["plan"] == self._plan(
                put.size_bound
            ).digest(put)
            return bool(same and told["upload_id"])
        except (ValueError, TypeError, KeyError):
            return False

    def stat(self, key: str) -> Stored | None:
        return self._objects.head(key)

    def holding(self, key: str, digests: Digests) -> Stored | None:
        return self._objects.holding(key, digests)

    def make_durable(self, stored: Stored) -> None:
        pass  # an object that can be seen is durable ("Data durability", S3 user guide)

    def listing(self, prefix: str = "", known: Callable[[], Sequence[str]] = tuple) -> Iterator[Stored]:
        found = self._objects.listing(prefix, known)
        return found if prefix.startswith(OWN) else (each for each in found if not each.key.startswith(OWN))

    def read(self, stored: Stored, at_once: int = 1) -> AbstractContextManager[Reading]:
        return self._objects.read(stored, at_once)

    def fill(self, stored: Stored, at: int, buffer: memoryview) -> None:
        """The object's bytes from ``at`` on, as many as the buffer holds. They are of this object, and nothing else is
        known of them. Raises NotSupported where there are no ranges."""
        self._objects.fill(stored, at, buffer)

    def remove(self, stored: Stored) -> None:
        # A versioned object is removed by its version, which needs no condition.
        atomic = not stored.version_id and self._capabilities().remove == "atomic"
        self._objects.remove(stored, atomic=atomic)

    def abandon(self, token: str) -> bool:
        try:
            told = json.loads(token)
            key, upload_id = str(told["key"]), str(told["upload_id"])
            if upload_id:
                abort_upload(self._objects, key, upload_id)
            elif not self._abort_all(key, float(told.get("at", 0))):
                return False
            bare = key.removeprefix(self._settings.prefix)
            claim = Claim(self._objects, bare, str(told.get("claim", "")), level="", atomic=False)
            claim.withdraw()
            return not claim.left
        except (ValueError, TypeError, KeyError):
            pass  # not one of ours
        except TransferError as error:
            text = f"An upload that nobody will finish could not be removed: {error}"
            self._emit(Event("upload-left-behind", text, Level.WARNING, destination=self.name))
            # Access that is refused now may be granted later; what cannot be asked for is left to the bucket's rules.
            return isinstance(error, NotSupported)
        return True

    def _abort_all(self, key: str, asked_at: float) -> bool:
        """Abort the uploads of one (whole) key: whether one was made by a request that a crash cut off, only the
        server's list tells. False while another of ours is under way, and while a request of then may be carried out
        yet."""
        found = False
        for upload in self.unfinished(key):
            with self._uploads_lock:
                if any(sending.is_sending(key) for sending in self._uploads):
                    return False
            told = json.loads(upload.token)
            if told["key"] == key:
                abort_upload(self._objects, key, told["upload_id"])
                found = True
        return found or abs(self._now() - asked_at) > _LATE

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """Every multipart upload under the (whole) prefix that was begun and not finished, by whomever."""
        wire, marker = self._objects.wire, dict[str, Any]()
        while True:
            answer = wire.call("list_multipart_uploads", Prefix=prefix or self._settings.prefix, **marker)
            for upload in answer.get("Uploads", []):
                token = json.dumps({"key": upload["Key"], "upload_id": upload["UploadId"]})
                key = upload["Key"].removeprefix(self._settings.prefix)
                yield Unfinished(token, key, upload["Initiated"].timestamp())
            if not answer.get("IsTruncated"):
                return
            marker = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def sweep(self, *, now: float, older_than: float = 3600, prefix: str = "") -> int:
        return 0  # another host's are listed like ours; a bucket's lifecycle rule ends those of a lost store

    def check(self) -> list[str]:
        with self._lock:
            self._examine()
        able = self._capabilities()
        facts = _facts(able)
        body = b"quaymaster\n" * 3
        facts.append(self._rehearse(body))
        if able.remove == "denied":
            facts.append("may not delete: probe objects stay there, and a damaged object could not be withdrawn")
        return facts

    def close(self) -> None:
        self._objects.close()

    def _rehearse(self, body: bytes) -> str:
        """Deliver, read back and remove one small object the way every file goes."""
        import hashlib

        digests = Digests(len(body), hashlib.sha256(body).hexdigest())
        upload = self.begin(Put(f"{PROBE_FOLDER}/{own_tag()}-{self._token()}", len(body)))
        upload.write(body)
        stored = upload.publish(digests, {"quaymaster-sha256": digests.sha256})
        try:
            if self._objects.digest(stored) != digests.sha256:
                raise IntegrityError(f"{self._objects.where(stored.key)} reads back with other bytes than were sent")
            return f"wrote {len(body)} bytes (proof: {stored.evidence}) and read them back{self._tags_kept(stored)}"
        finally:
            try:
                self.remove(stored)
            except PermissionDenied:
                pass

    def _tags_kept(self, stored: Stored) -> str:
        if not self._settings.tags:
            return ""
        answer = self._objects.wire.call("get_object_tagging", self._objects.whole_key(stored.key))
        kept = {tag["Key"]: tag["Value"] for tag in answer.get("TagSet", [])}
        return ", with its tags" if kept == dict(self._settings.tags) else ", but its tags were lost"

    def _plan(self, size_bound: int, memory: int = 0) -> Plan:
        part_size = part_size_for(size_bound, self._settings.part_size)
        # Parts that had to grow are fewer at a time, so that a huge file takes no more memory than a large one.
        buffers = min(self._parts + 1, (self._parts + 1) * self._settings.part_size // part_size)
        if memory and memory < size_bound:  # else the whole of it fits, the last part not being a full one
            buffers = min(buffers, memory // part_size)
        buffers = max(_LEAST_BUFFERS, buffers)
        storage_class = self._settings.storage_class
        options = self._options() | ({"StorageClass": storage_class} if storage_class else {})
        return Plan(
            part_size, buffers, min(self._parts, buffers), options, claims=False, checksum=self._settings.checksum
        )

    def _options(self) -> dict[str, Any]:
        settings = self._settings
        options = {
            "ServerSideEncryption": settings.sse,
            "SSEKMSKeyId": settings.sse_kms_key,
            "Tagging": urlencode(dict(settings.tags)),
        }
        return {name: value for name, value in options.items() if value}

    def _require_name(self, key: str) -> None:
        keys.unescape(key)
        try:
            size = len(self._objects.whole_key(key).encode())
        except UnicodeEncodeError:
            raise NameRefused(f"The key {key!r} is not text") from None
        if size > LONGEST_KEY:
            raise NameRefused(
                f"{self._objects.where(key)} is {size} bytes long; a key may have {LONGEST_KEY}",
                "Shorten the path, or the prefix or key of the configuration",
            )

    def _capabilities(self) -> Capabilities:
        """What the endpoint honours, found out at first need. Refuses to go on with less than was pinned."""
        with self._lock:
            if self._able is None and self._pins.get("remove") == "denied":
                self._able = Capabilities.from_pins(
                    self._pins, self._settings.checksum
                )  # each probe would leave objects behind
            if self._able is None or (self._lost and self._clock() - self._examined >= _REEXAMINE):
                self._examine()
            if self._lost:
                raise NotSupported(
                    f"{self._objects.wire.where()} honours less than before: {'; '.join(self._lost)}",
                    "Nothing is sent until it is as it was. Mend the endpoint (or a proxy before it); "
                    "if this is meant to stay, give the destination another name: what is known of it goes by its name",
                )
            assert self._able is not None
            return self._able

    def _examine(self) -> None:
        root = f"{self._settings.prefix}{PROBE_FOLDER}/"
        folder = f"{root}{own_tag()}-{self._token()}/"
        able = Probe(self._objects.wire, folder, self._options(), self._settings.checksum).run()
        if able.remove != "denied":
            remove_left(self._objects.wire, root)
        self._able, self._examined = able, self._clock()
        self._lost = able.downgrades(self._pins)
        if self._lost:
            self._alarm(f"{self._objects.wire.where()} honours less than before: {'; '.join(self._lost)}")
        elif able.pins() != self._pins:
            self._pins = able.pins()
            if self._on_pins:
                self._on_pins(dict(self._pins))

    def _weakened(self, what: str) -> None:
        """An upload noticed that the endpoint no longer tells what it used to: examine it before the next one."""
        self._alarm(what)
        with self._lock:
            self._able = None

    def _alarm(self, text: str) -> None:
        self._emit(Event("destination-downgrade", text, Level.ERROR, destination=self.name))


def _facts(able: Capabilities) -> list[str]:
    checked = {
        "sha256": "a wrong SHA-256 is refused",
        "crc64nvme": "a wrong CRC-64/NVME is refused",
        "md5": "a wrong MD5 is refused",
        "nothing": "nothing is checked",
    }
    facts = [
        f"on arrival: {checked[able.put_checked]}; of a part: {checked[able.part_checked]}",
        f"proof of what is stored: {able.put_proof}; of an object in parts: {able.parts_proof}",
    ]
    if "checked" in (able.create, able.create_parts, able.replace):
        facts.append(
            "conditional writes are not honoured everywhere: the key is looked up just before, so two writers at the "
            "same moment could overwrite each other"
        )
    else:
        facts.append("never-overwrite is kept by the server (If-None-Match, If-Match)")
    if able.metadata == "lost":
        facts.append("object metadata is not kept: the ledger could not be rebuilt from this bucket")
    return facts
