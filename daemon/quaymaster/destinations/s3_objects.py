"""Objects that are already in the bucket: what is there, its bytes, and its removal."""

from __future__ import annotations

import base64
import hashlib
import string
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

from quaymaster.destinations.s3_probe import plain_etag
from quaymaster.destinations.s3_wire import AbsentError, UploadGone, Wire
from quaymaster.errors import Conflict, DestinationMissing, IntegrityError, PermanentError, Unreachable
from quaymaster.model import Digests, Stored

PIECE = 1 << 20  # bytes; the most that read() yields at once

_ALGORITHMS = ("SHA256", "CRC64NVME", "CRC32C", "CRC32", "SHA1")
# User metadata travels in HTTP headers: printable ASCII only, and blanks at the ends are lost.
_PLAIN = "".join(set(string.punctuation) - {"%"})


@dataclass(frozen=True, slots=True)
class Held:
    """A part of an unfinished upload, as the server lists it."""

    size: int
    etag: str
    checksum: str
    """SHA-256 in S3's notation; empty when the server does not tell it."""

    def holds(self, body: bytes | bytearray, sha256: bytes) -> bool:
        """Whether it is these bytes, by SHA-256, else by the MD5 that most servers use as the ETag of a part."""
        if self.size != len(body):
            return False
        if self.checksum:
            return self.checksum == base64.b64encode(sha256).decode()
        return plain_etag(self.etag) == hashlib.md5(body, usedforsecurity=False).hexdigest()


def held_parts(wire: Wire, whole_key: str, upload_id: str) -> dict[int, Held] | None:
    """What has arrived of an unfinished upload, by part number; None when there is no such upload (any more)."""
    held: dict[int, Held] = {}
    marker = dict[str, Any]()
    while True:
        try:
            answer = wire.call("list_parts", whole_key, UploadId=upload_id, **marker)
        except UploadGone:
            return None
        for part in answer.get("Parts", []):
            checksum = str(part.get("ChecksumSHA256") or "")
            held[int(part["PartNumber"])] = Held(int(part["Size"]), str(part["ETag"]), checksum)
        if not answer.get("IsTruncated"):
            return held
        marker = {"PartNumberMarker": answer["NextPartNumberMarker"]}


class Objects:
    """Reads and removals under one prefix. Keys here are those of the destination, without the prefix. Thread-safe."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._bucket_seen = False

    def whole_key(self, key: str) -> str:
        return self.wire.settings.prefix + key

    def where(self, key: str) -> str:
        return self.wire.where(self.whole_key(key))

    def head(self, key: str, version_id: str = "") -> Stored | None:
        version = {"VersionId": version_id} if version_id else {}
        try:
            answer = self.wire.call("head_object", self.whole_key(key), ChecksumMode="ENABLED", **version)
        except AbsentError:
            # HEAD has no body: that the object is missing and that the bucket is look the same.
            self._require_bucket()
            return None
        self._bucket_seen = True
        return _stored(key, answer)

    def listing(self, prefix: str) -> Iterator[Stored]:
        """One request for 1,000 objects."""
        marker = dict[str, Any]()
        while True:
            answer = self.wire.call("list_objects_v2", Prefix=self.whole_key(prefix), **marker)
            for found in answer.get("Contents", []):
                key = found["Key"].removeprefix(self.wire.settings.prefix)
                etag, at = plain_etag(found.get("ETag")), found["LastModified"].timestamp()
                yield Stored(key, int(found["Size"]), etag, mtime=at)
            if not answer.get("IsTruncated"):
                return
            marker = {"ContinuationToken": answer["NextContinuationToken"]}

    def _require_bucket(self) -> None:
        if self._bucket_seen:
            return
        try:
            self.wire.call("head_bucket")
        except AbsentError:
            raise DestinationMissing(
                f"There is no bucket for {self.wire.where()}", "Create it or correct the configuration"
            ) from None
        self._bucket_seen = True

    @contextmanager
    def read(self, stored: Stored) -> Iterator[Iterator[bytes]]:
        parameters = {"IfMatch": f'"{stored.etag}"'} if stored.etag else {}
        if stored.version_id:
            parameters["VersionId"] = stored.version_id
        try:
            answer = self.wire.call("get_object", self.whole_key(stored.key), **parameters)
        except Conflict:
            raise _taken(self.where(stored.key)) from None
        except AbsentError:
            raise PermanentError(
                f"{self.where(stored.key)} is gone",
                "Look who removed it",
            ) from None
        body = answer["Body"]
        try:
            yield self._pieces(body, stored)
        finally:
            body.close()

    def _pieces(self, body: Any, stored: Stored) -> Iterator[bytes]:
        size, digest = 0, hashlib.sha256()
        while True:
            with self.wire.translated(self.whole_key(stored.key)):
                piece: bytes = body.read(PIECE)
            if not piece:
                break
            size += len(piece)
            digest.update(piece)
            yield piece
        if size != stored.size:
            raise IntegrityError(f"{self.where(stored.key)} has {size} bytes instead of {stored.size}", "Read it again")
        whole = stored.checksum.removeprefix("SHA256:")
        composite = "-" in whole  # of several parts: only their digests' digest is known
        if whole != stored.checksum and not composite and base64.b64decode(whole) != digest.digest():
            raise IntegrityError(f"{self.where(stored.key)} arrived with other bytes than are stored", "Read it again")

    def digest(self, stored: Stored) -> str:
        """SHA-256 (hex) of the bytes read back."""
        digest = hashlib.sha256()
        with self.read(stored) as pieces:
            for piece in pieces:
                digest.update(piece)
        return digest.hexdigest()

    def holding(self, key: str, digests: Digests) -> Stored | None:
        """By the SHA-256 that the server keeps of the whole, else by reading the object."""
        present = self.head(key)
        if present is None:
            # The answer to HEAD has no body that could tell a missing bucket from a missing object: this one has.
            listed = self.wire.call("list_objects_v2", "", key, Prefix=self.whole_key(key), MaxKeys=1)
            if any(found["Key"] == self.whole_key(key) for found in listed.get("Contents", [])):
                raise Unreachable(f"{self.where(key)} is listed and not found at once", "It is looked at again")
        if present is None or present.size != digests.size:
            return None
        told = present.checksum.removeprefix("SHA256:")
        if told != present.checksum and "-" not in told:
            same, evidence = base64.b64decode(told).hex() == digests.sha256, "sha256"
        else:
            same, evidence = self.digest(present) == digests.sha256, "readback"
        return replace(present, evidence=evidence) if same else None

    def remove(self, stored: Stored, *, atomic: bool) -> None:
        """Remove exactly this object. ``atomic``: the endpoint heeds If-Match on DELETE."""
        present = self.head(stored.key)
        if present is None:
            return
        if present.etag != stored.etag or (stored.version_id and present.version_id != stored.version_id):
            raise _taken(self.where(stored.key))
        parameters = {}
        if present.version_id:
            parameters["VersionId"] = present.version_id
        elif atomic:
            parameters["IfMatch"] = f'"{stored.etag}"'
        try:
            self.wire.call("delete_object", self.whole_key(stored.key), **parameters)
        except AbsentError:
            pass
        except Conflict:
            raise _taken(self.where(stored.key)) from None


def sent_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value if value.isascii() and value.isalnum() else quote(value, safe=_PLAIN)
        for name, value in metadata.items()
    }


def _stored(key: str, answer: Mapping[str, Any]) -> Stored:
    sums = ((name, answer.get(f"Checksum{name}")) for name in _ALGORITHMS)
    version = str(answer.get("VersionId") or "")
    return Stored(
        key=key,
        size=int(answer["ContentLength"]),
        etag=plain_etag(answer.get("ETag")),
        version_id="" if version == "null" else version,
        checksum=next((f"{name}:{value}" for name, value in sums if value), ""),
        mtime=answer["LastModified"].timestamp() if "LastModified" in answer else 0.0,
        metadata={name.lower(): unquote(value) for name, value in answer.get("Metadata", {}).items()},
    )


def _taken(where: str) -> Conflict:
    return Conflict(f"{where} is not the object that was put there", "Something else has taken its place: look at it")
