"""Objects that are already in the bucket: what is there, its bytes, and its removal."""

from __future__ import annotations

import base64
import hashlib
import itertools
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

from quaymaster.destinations import checksums
from quaymaster.destinations.ahead import in_order
from quaymaster.destinations.base import Reading
from quaymaster.destinations.s3_listing import Ahead, Listed, Page, UnreadableError, page
from quaymaster.destinations.s3_plain import Answer, ElsewhereError, Plain
from quaymaster.destinations.s3_ranges import PIECE, RANGE, pieces_of
from quaymaster.destinations.s3_sums import PARAMETERS, Sums, plain_etag
from quaymaster.destinations.s3_wire import AbsentError, UploadGone, Wire, moment
from quaymaster.errors import Conflict, DestinationMissing, IntegrityError, NotSupported, PermanentError, Unreachable
from quaymaster.model import Digests, Stored

_ALGORITHMS = ("SHA256", "CRC64NVME", "CRC32C", "CRC32", "SHA1")
# User metadata travels in HTTP headers: printable ASCII only, and blanks at the ends are lost.
_PLAIN = "".join(set(string.punctuation) - {"%"})


@dataclass(frozen=True, slots=True)
class Held:
    """A part of an unfinished upload, as the server lists it."""

    size: int
    etag: str
    checksums: Mapping[str, str]
    """In S3's notation, by the name of their level; without those that the server does not tell."""

    def level(self, preferred: str) -> str:
        """Which digest tells whether it is some bytes: MD5, which most servers use as the ETag of a part, at last."""
        return next((level for level in (preferred, *PARAMETERS) if level in self.checksums), "md5")

    def holds(self, sums: Sums, level: str) -> bool:
        """Whether it is these bytes, by a digest of that level."""
        told = self.checksums.get(level)
        return self.size == sums.size and (
            told == sums.text(level) if told else plain_etag(self.etag) == sums.md5.hex()
        )


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
            told = {level: str(part[name]) for level, name in PARAMETERS.items() if part.get(name)}
            held[int(part["PartNumber"])] = Held(int(part["Size"]), str(part["ETag"]), told)
        if not answer.get("IsTruncated"):
            return held
        marker = {"PartNumberMarker": answer["NextPartNumberMarker"]}


class _WholeError(Exception):
    """The server answers with the whole object, whatever range is asked for."""


class Objects:
    """Reads and removals under one prefix. Keys here are those of the destination, without the prefix. Thread-safe."""

    def __init__(self, wire: Wire, plain: Plain | None) -> None:
        """``plain``: looks by the shorter way, where there is one."""
        self.wire, self._plain = wire, plain
        self._bucket_seen = False

    def close(self) -> None:
        self.wire.close()
        if self._plain is not None:
            self._plain.close()

    def whole_key(self, key: str) -> str:
        return self.wire.settings.prefix + key

    def where(self, key: str) -> str:
        return self.wire.where(self.whole_key(key))

    def head(self, key: str, version_id: str = "") -> Stored | None:
        try:
            answer = self._head(self.whole_key(key), version_id)
        except AbsentError:
            # HEAD has no body: that the object is missing and that the bucket is look the same.
            self._require_bucket()
            return None
        self._bucket_seen = True
        return _stored(key, answer)

    def _head(self, key: str, version_id: str) -> Mapping[str, Any]:
        if (plain := self._plain) is not None:
            where = self.wire.where(key)
            try:
                return _said_of_object(plain.head(key, where, {"versionId": version_id} if version_id else {}), where)
            except ElsewhereError:
                self._plain = None
        version = {"VersionId": version_id} if version_id else {}
        return self.wire.call("head_object", key, ChecksumMode="ENABLED", **version)

    def listing(self, prefix: str, known: Callable[[], Sequence[str]] = tuple) -> Iterator[Stored]:
        """One request for 1,000 objects, made while those before are looked at; the first one at once."""
        whole = self.whole_key(prefix)
        pages = Ahead(
            lambda token, after: self._page(whole, token, after),
            self.wire.where(whole),
            lambda: [self.whole_key(key) for key in known()],
        )
        start = len(self.wire.settings.prefix)
        return (Stored(key[start:], size, etag, mtime=at) for page in pages for key, size, etag, at in page.objects)

    def _page(self, prefix: str, token: str, after: str) -> Page:
        where = self.wire.where(prefix)
        if (plain := self._plain) is not None:
            asked = {"prefix": prefix, "continuation-token": token, "start-after": after}
            query = {"list-type": "2", "encoding-type": "url"} | {name: text for name, text in asked.items() if text}
            try:
                return page(plain.get(where, query).body)
            except UnreadableError:
                raise Unreachable(f"The listing of {where} did not arrive whole", "It is tried again") from None
            except ElsewhereError:
                self._plain = None
        begins = {"ContinuationToken": token} if token else {"StartAfter": after} if after else {}
        answer = self.wire.call("list_objects_v2", Prefix=prefix, **begins)
        objects = [
            Listed(found["Key"], int(found["Size"]), plain_etag(found.get("ETag")), found["LastModified"].timestamp())
            for found in answer.get("Contents", [])
        ]
        return Page(objects, answer["NextContinuationToken"] if answer.get("IsTruncated") else "")

    def _head_bucket(self) -> None:
        if (plain := self._plain) is not None:
            try:
                plain.head("", self.wire.where())
                return
            except ElsewhereError:
                self._plain = None
        self.wire.call("head_bucket")

    def _require_bucket(self) -> None:
        if self._bucket_seen:
            return
        try:
            self._head_bucket()
        except AbsentError:
            raise DestinationMissing(
                f"There is no bucket for {self.wire.where()}", "Create it or correct the configuration"
            ) from None
        self._bucket_seen = True

    @contextmanager
    def read(self, stored: Stored, at_once: int = 1) -> Iterator[Reading]:
        """In one request, or in ranges that are fetched ahead: those of one ETag are of one object."""
        if stored.size <= (RANGE if at_once > 1 else PIECE):
            found, body = self._fetched(stored, 0, stored.size)
            yield Reading(found, self._checked(pieces_of(body), stored))
        elif at_once > 1 and stored.etag and (start := self._start(stored)):
            rest = in_order(lambda at: self._fetched(stored, at, RANGE)[1], range(RANGE, stored.size, RANGE), at_once)
            with closing(rest):
                parts = itertools.chain([start[1]], rest)
                yield Reading(start[0], self._checked((piece for part in parts for piece in pieces_of(part)), stored))
        else:
            answer = self._get(stored, {})
            with closing(answer["Body"]) as body:
                yield Reading(_stored(stored.key, answer), self._checked(self._streamed(body, stored), stored))

    def _start(self, stored: Stored) -> tuple[Stored, bytes] | None:
        """The first range; None from a server that knows no ranges."""
        try:
            return self._fetched(stored, 0, RANGE)
        except _WholeError:
            return None

    def fill(self, stored: Stored, at: int, buffer: memoryview) -> None:
        if not stored.etag:
            raise NotSupported(f"{self.where(stored.key)} has no ETag", "Read it from its beginning")
        try:
            self._fetched(stored, at, len(buffer), buffer)
        except _WholeError:
            raise NotSupported(f"{self.where(stored.key)} cannot be had in ranges", "Read it whole") from None

    def _fetched(self, stored: Stored, at: int, length: int, into: memoryview | None = None) -> tuple[Stored, bytes]:
        """What the server says of an object, and the bytes of it from ``at`` on, or none when they are in ``into``. Of
        one that is not fetched whole, no others: IntegrityError, and _WholeError when it answers with all of them."""
        length = min(length, stored.size - at)
        last = at + length - 1
        part = {"Range": f"bytes={at}-{last}"} if length < stored.size else {}
        found, told, body, filled = self._get_plainly(stored, part, length, into) or self._get_by_library(
            stored, part, length
        )
        if part and not told:
            raise _WholeError
        wrong = filled + len(body) != length
        if (part and (wrong or told != f"bytes {at}-{last}/{stored.size}")) or (into is not None and wrong):
            raise IntegrityError(f"{self.where(stored.key)} gave other bytes than were asked for", "Read it again")
        if into is not None and not filled:
            into[:length], body = body, b""
        return replace(found, size=stored.size) if part else found, body

    def _get_plainly(
        self, stored: Stored, part: Mapping[str, str], length: int, into: memoryview | None
    ) -> tuple[Stored, str, bytes, int] | None:
        if (plain := self._plain) is None:
            return None
        key, where = self.whole_key(stored.key), self.where(stored.key)
        query = {"versionId": stored.version_id} if stored.version_id else {}
        headers = {"range": part["Range"]} if part else {}
        if stored.etag:
            headers["if-match"] = f'"{stored.etag}"'
        try:
            with self._found(stored):
                answer = plain.object(key, where, query, headers, max(length, PIECE), into)
        except ElsewhereError:
            return None  # to those who can read any answer
        said = _stored(stored.key, _said_of_object(answer, where))
        return said, answer.headers.get("content-range", ""), answer.body, answer.filled

    def _get_by_library(self, stored: Stored, part: Mapping[str, str], length: int) -> tuple[Stored, str, bytes, int]:
        answer = self._get(stored, part)
        told = str(answer.get("ContentRange") or "")
        with closing(answer["Body"]) as body, self.wire.translated(self.whole_key(stored.key)):
            data: bytes = body.read() if told else b"" if part else body.read(length + 1)
        return _stored(stored.key, answer), told, data, 0

    def _get(self, stored: Stored, part: Mapping[str, str]) -> Mapping[str, Any]:
        parameters = {**part, **({"IfMatch": f'"{stored.etag}"'} if stored.etag else {})}
        if stored.version_id:
            parameters["VersionId"] = stored.version_id
        with self._found(stored):
            return self.wire.call("get_object", self.whole_key(stored.key), **parameters)

    @contextmanager
    def _found(self, stored: Stored) -> Iterator[None]:
        try:
            yield
        except Conflict:
            raise _taken(self.where(stored.key)) from None
        except AbsentError:
            raise PermanentError(f"{self.where(stored.key)} is gone", "Look who removed it") from None

    def _streamed(self, body: Any, stored: Stored) -> Iterator[bytes]:
        while True:
            with self.wire.translated(self.whole_key(stored.key)):
                piece: bytes = body.read(PIECE)
            if not piece:
                return
            yield piece

    def _checked(self, pieces: Iterator[bytes], stored: Stored) -> Iterator[bytes]:
        """All that is known of the object is true of its bytes."""
        size, kept = 0, checksums.of_whole(stored.checksum)
        for piece in pieces:
            size += len(piece)
            if kept:
                kept.update(piece)
            yield piece
        if size != stored.size:
            raise IntegrityError(f"{self.where(stored.key)} has {size} bytes instead of {stored.size}", "Read it again")
        if kept and kept.text() != stored.checksum.partition(":")[2]:
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


def _said_of_object(answer: Answer, where: str) -> Mapping[str, Any]:
    """The headers of a HEAD as the library names them ("HeadObject", S3 API reference)."""
    headers = answer.headers
    if not headers.get("content-length", "").isdigit():
        raise Unreachable(f"{where} did not give a proper answer (no length)", "It is tried again")
    said: dict[str, Any] = {"ContentLength": headers["content-length"], "ETag": headers.get("etag")}
    said["VersionId"] = headers.get("x-amz-version-id")
    if "last-modified" in headers:
        said["LastModified"] = moment(headers["last-modified"])
    for name in _ALGORITHMS:
        said[f"Checksum{name}"] = headers.get(f"x-amz-checksum-{name.lower()}")
    mark = "x-amz-meta-"
    said["Metadata"] = {name[len(mark) :]: value for name, value in headers.items() if name.startswith(mark)}
    return said


def _taken(where: str) -> Conflict:
    return Conflict(f"{where} is not the object that was put there", "Something else has taken its place: look at it")
