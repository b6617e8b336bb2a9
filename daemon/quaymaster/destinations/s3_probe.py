"""What an S3 endpoint really honours (PRODUCT P5), found out with objects of a few bytes.

Endpoints that call themselves S3-compatible differ in exactly the things integrity depends on: some ignore a wrong
checksum, some keep none, some overwrite in spite of If-None-Match. So each claim is tried with a request that an
honest server must refuse. What is found is pinned; a value further right in :data:`RANKS` later on is a downgrade.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from quaymaster.destinations.owner import is_dead
from quaymaster.destinations.s3_wire import AbsentError, UploadGone, Wire
from quaymaster.errors import (
    Conflict,
    DestinationMissing,
    IntegrityError,
    NotSupported,
    PermanentError,
    PermissionDenied,
    TemporaryError,
    TransferError,
)

RANKS: Mapping[str, tuple[str, ...]] = {
    "put_checked": ("sha256", "md5", "nothing"),
    "put_proof": ("sha256", "md5", "readback"),
    "part_checked": ("sha256", "md5", "nothing"),
    "parts_proof": ("sha256-parts", "md5-parts", "readback"),
    "create": ("atomic", "checked"),
    "create_parts": ("atomic", "checked"),
    "replace": ("atomic", "checked"),
    "remove": ("atomic", "checked", "denied"),
    "metadata": ("kept", "lost"),
}
"""Every capability with its possible values, the strongest first."""

_MARK = {"quaymaster-probe": "kept"}
_BODY = b"quaymaster probe\n"
_FOREIGN_ETAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True, slots=True)
class Capabilities:
    """``*_checked``: which wrong digest of a request's body is refused. ``*_proof``: which digest of the stored bytes
    the server tells afterwards. ``create``, ``create_parts``, ``replace``, ``remove``: whether the condition is the
    server's (atomic) or has to be looked up just before (checked: a race between two writers is then possible)."""

    put_checked: str
    put_proof: str
    part_checked: str
    parts_proof: str
    create: str
    create_parts: str
    replace: str
    remove: str
    metadata: str

    def pins(self) -> dict[str, str]:
        return asdict(self)

    def downgrades(self, pins: Mapping[str, str]) -> list[str]:
        """Where this is weaker than what was pinned, for people."""
        lost = []
        for name, values in RANKS.items():
            if name == "remove":
                continue  # a permission, which an operator may well take back; no proof depends on it
            pinned, now = pins.get(name), getattr(self, name)
            if pinned in values and values.index(now) > values.index(pinned):
                lost.append(f"{name.replace('_', ' ')}: {now} (was {pinned})")
        return lost

    @classmethod
    def from_pins(cls, pins: Mapping[str, str]) -> Capabilities | None:
        """What was remembered, when it is complete and known; else None."""
        values = {item.name: pins.get(item.name, "") for item in fields(cls)}
        return cls(**values) if all(values[name] in RANKS[name] for name in values) else None


def body_digest(level: str, body: bytes | bytearray, *, sha256: bytes | None = None) -> dict[str, str]:
    """The request parameter that lets the server check ``body`` on arrival. An endpoint that checks nothing is sent
    Content-MD5 all the same: every unsigned body carries a checksum."""
    if level == "sha256":
        return {"ChecksumSHA256": digest_text(sha256 or _sha256(body))}
    return {"ContentMD5": digest_text(_md5(body))}


def digest_text(digest: bytes) -> str:
    """A digest as S3 writes it in x-amz-checksum-* and Content-MD5: base64."""
    return base64.b64encode(digest).decode("ascii")


def plain_etag(value: object) -> str:
    return str(value or "").strip('"')


def _sha256(body: bytes | bytearray) -> bytes:
    return hashlib.sha256(body).digest()


def _md5(body: bytes | bytearray) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


def remove_left(wire: Wire, root: str) -> None:
    """Remove what examinations by processes that were killed left below ``root``. What cannot be removed stays: it is
    in nobody's way."""
    try:
        for upload in wire.call("list_multipart_uploads", Prefix=root).get("Uploads", []):
            if is_dead(upload["Key"].removeprefix(root)):
                wire.call("abort_multipart_upload", upload["Key"], "", UploadId=upload["UploadId"])
        for item in wire.call("list_objects_v2", Prefix=root).get("Contents", []):
            if is_dead(item["Key"].removeprefix(root)):
                wire.call("delete_object", item["Key"], "")
    except TransferError:
        pass


@dataclass
class Probe:
    """One examination of one bucket; at most 15 requests with an endpoint that honours everything."""

    wire: Wire
    folder: str
    """Whole key prefix of the probe's objects; unique to this examination."""
    options: Mapping[str, Any]
    """Request parameters that every object of this destination gets (encryption, tags)."""
    requests: int = 0
    _found: dict[str, str] = field(default_factory=dict)
    _left: dict[tuple[str, str], None] = field(default_factory=dict)
    """(name, version id) of what is to be removed, in the order it was written."""
    _upload: str = ""

    def run(self) -> Capabilities:
        """Raises the error that a delivery would raise when the bucket cannot be written to or read at all."""
        try:
            self._single()
            self._parts()
            try:
                conditional = self._heeded("delete_object", IfMatch=_FOREIGN_ETAG)
                self._found["remove"] = "atomic" if conditional else "checked"
            except PermissionDenied:
                self._found["remove"] = "denied"
        finally:
            self._clean()
        return Capabilities(**self._found)

    def _call(self, operation: str, name: str = "object", **parameters: Any) -> dict[str, Any]:
        self.requests += 1
        answer = self.wire.call(operation, self.folder + name, "", **parameters)
        version = str(answer.get("VersionId") or "")
        if operation in ("put_object", "complete_multipart_upload"):
            self._left[name, version] = None
        elif operation == "delete_object":
            self._left.pop((name, str(parameters.get("VersionId") or "")), None)
            if version and "VersionId" not in parameters:
                self._left[name, version] = None  # a delete marker
        return answer

    def _heeded(self, operation: str, **parameters: Any) -> bool:
        """Whether a condition that does not hold stops the request. Any other refusal (not implemented, not known)
        means that the condition is of no use here."""
        try:
            self._call(operation, **parameters)
        except Conflict:
            return True
        except (DestinationMissing, PermissionDenied):
            raise
        except PermanentError:
            pass
        return False

    def _checked(self, operation: str, level: str, **parameters: Any) -> bool:
        """Whether a body that is not what its digest says is refused."""
        try:
            self._call(operation, Body=_BODY, **parameters, **body_digest(level, b"not " + _BODY))
        except (DestinationMissing, PermissionDenied):
            raise
        except (IntegrityError, PermanentError):
            return True
        return False

    def _single(self) -> None:
        found = self._found
        refused = [level for level in ("sha256", "md5") if self._checked("put_object", level, name=f"wrong-{level}")]
        conditional, level = self._write("sha256" if "sha256" in refused else "md5")
        found["put_checked"] = level if level in refused else "nothing"
        body = {"Body": _BODY, **body_digest(level, _BODY)}
        atomic = conditional and self._heeded("put_object", IfNoneMatch="*", **body)
        found["create"] = "atomic" if atomic else "checked"
        found["replace"] = "atomic" if self._heeded("put_object", IfMatch=_FOREIGN_ETAG, **body) else "checked"
        head = self._head()
        kept = {name.lower(): value for name, value in head.get("Metadata", {}).items()}
        found["metadata"] = "kept" if kept.items() >= _MARK.items() else "lost"
        if found["put_checked"] == "sha256" and head.get("ChecksumSHA256") == digest_text(_sha256(_BODY)):
            found["put_proof"] = "sha256"
        else:
            found["put_proof"] = "md5" if plain_etag(head.get("ETag")) == _md5(_BODY).hex() else "readback"

    def _write(self, strongest: str) -> tuple[bool, str]:
        """A good object, with as much as the endpoint takes: (If-None-Match accepted, digest accepted)."""
        error: TransferError | None = None
        levels = ("sha256", "md5") if strongest == "sha256" else ("md5",)
        for conditional, level in ((c, level) for c in (True, False) for level in levels):
            condition = {"IfNoneMatch": "*"} if conditional else {}
            parameters = {"Metadata": _MARK, **condition, **self.options, **body_digest(level, _BODY)}
            try:
                self._call("put_object", Body=_BODY, **parameters)
            except (DestinationMissing, PermissionDenied, TemporaryError):
                raise
            except TransferError as refusal:
                error = error or refusal
            else:
                return conditional, level
        assert error is not None
        raise error

    def _parts(self) -> None:
        """A multipart upload onto the object that is already there: first forbidden to replace it, then allowed."""
        found = self._found
        level = found["put_checked"]
        self._begin_upload()
        part = {"PartNumber": 1, "UploadId": self._upload}
        checked = level != "nothing" and self._checked("upload_part", level, **part)
        found["part_checked"] = level if checked else "nothing"
        done = self._send_part(level)
        found["create_parts"] = "checked"
        if found["create"] == "atomic":
            # A server that gives the upload up when the condition fails heeded it all the same.
            if self._heeded("complete_multipart_upload", IfNoneMatch="*", **self._completion(done)):
                found["create_parts"] = "atomic"
                try:
                    self._call("complete_multipart_upload", **self._completion(done))
                except UploadGone:
                    self._begin_upload()
                    self._call("complete_multipart_upload", **self._completion(self._send_part(level)))
        else:
            self._call("complete_multipart_upload", **self._completion(done))
        self._upload = ""
        found["parts_proof"] = self._parts_proof()

    def _begin_upload(self) -> None:
        algorithm = {"ChecksumAlgorithm": "SHA256"} if self._found["put_checked"] == "sha256" else {}
        self._upload = str(self._call("create_multipart_upload", **algorithm, **self.options)["UploadId"])

    def _send_part(self, level: str) -> dict[str, Any]:
        digest = body_digest(level, _BODY)
        answer = self._call("upload_part", PartNumber=1, UploadId=self._upload, Body=_BODY, **digest)
        sums = {name: value for name, value in digest.items() if name == "ChecksumSHA256"}
        return {"PartNumber": 1, "ETag": answer["ETag"], **sums}

    def _completion(self, part: Mapping[str, Any]) -> dict[str, Any]:
        return {"UploadId": self._upload, "MultipartUpload": {"Parts": [part]}}

    def _parts_proof(self) -> str:
        head = self._head()
        if (
            self._found["part_checked"] == "sha256"
            and head.get("ChecksumSHA256") == digest_text(_sha256(_sha256(_BODY))) + "-1"
        ):
            return "sha256-parts"
        return "md5-parts" if plain_etag(head.get("ETag")) == _md5(_md5(_BODY)).hex() + "-1" else "readback"

    def _head(self) -> dict[str, Any]:
        try:
            head = self._call("head_object", ChecksumMode="ENABLED")
        except AbsentError:
            head = {}
        if head.get("ContentLength") != len(_BODY):
            where = self.wire.where()
            raise NotSupported(f"{where} does not show what was just stored", "The endpoint is not consistent: mend it")
        return head

    def _clean(self) -> None:
        """Remove what was written, whatever happened. Credentials that may not delete leave it there."""
        if self._upload:
            self._quietly("abort_multipart_upload", "object", UploadId=self._upload)
        for name, version in reversed(list(self._left)):
            self._quietly("delete_object", name, **({"VersionId": version} if version else {}))

    def _quietly(self, operation: str, name: str, **parameters: Any) -> None:
        try:
            self._call(operation, name, **parameters)
        except PermissionDenied:
            self._found["remove"] = "denied"
        except TransferError:
            pass
