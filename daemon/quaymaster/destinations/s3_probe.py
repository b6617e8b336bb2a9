"""What an S3 endpoint really honours (PRODUCT P5), found out with objects of a few bytes.

Endpoints that call themselves S3-compatible differ in exactly the things integrity depends on: some ignore a wrong
checksum, some keep none, some overwrite in spite of If-None-Match. So each claim is tried with a request that an
honest server must refuse. What is found is pinned; a value further right in :data:`RANKS` later on is a downgrade.

Digests are tried in the order that the configuration prefers: SHA-256 before CRC-64/NVME, or the other way round. MD5
is the longer digest, but comes last: a Content-MD5 costs more than both, and of what is stored it proves only as much
as an ETag happens to tell, which of an object in parts is nothing of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from quaymaster.destinations.owner import is_dead
from quaymaster.destinations.s3_sums import PARAMETERS, body_digest, plain_etag, sums
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
    "put_checked": ("sha256", "crc64nvme", "md5", "nothing"),
    "put_proof": ("sha256", "crc64nvme", "md5", "readback"),
    "part_checked": ("sha256", "crc64nvme", "md5", "nothing"),
    "parts_proof": ("sha256-parts", "crc64nvme", "md5-parts", "readback"),
    "create": ("atomic", "checked"),
    "create_parts": ("atomic", "checked"),
    "replace": ("atomic", "checked"),
    "remove": ("atomic", "checked", "denied"),
    "metadata": ("kept", "lost"),
}
"""Every capability with its possible values, the strongest first. Which of the first two digests is preferred is told
by ``Capabilities.checksum``."""
ORDERS = {"sha256": ("sha256", "crc64nvme", "md5"), "crc64nvme": ("crc64nvme", "sha256", "md5")}
"""By what the configuration prefers: the digests in the order in which they are tried."""

_BY_DIGEST = frozenset({"put_checked", "put_proof", "part_checked", "parts_proof"})
_MARK = {"quaymaster-probe": "kept"}
_BODY, _IN_PARTS = b"quaymaster probe\n", b"quaymaster probe in parts\n"
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
    checksum: str = "sha256"
    """Which digest was preferred when this was found out."""

    def pins(self) -> dict[str, str]:
        return asdict(self)

    def downgrades(self, pins: Mapping[str, str]) -> list[str]:
        """Where this is weaker than what was pinned, for people. Which of the two digests that can be preferred is the
        stronger one is told by what is preferred now."""
        lost = []
        for name in RANKS:
            if name == "remove":
                continue  # a permission, which an operator may well take back; no proof depends on it
            pinned, now = pins.get(name, ""), getattr(self, name)
            if pinned in RANKS[name] and self._rank(name, now) > self._rank(name, pinned):
                lost.append(f"{name.replace('_', ' ')}: {now} (was {pinned})")
        return lost

    def _rank(self, name: str, value: str) -> int:
        place = RANKS[name].index(value)
        if name not in _BY_DIGEST or place > 1:
            return place
        return int((value == "crc64nvme") != (self.checksum == "crc64nvme"))

    @classmethod
    def from_pins(cls, pins: Mapping[str, str], checksum: str) -> Capabilities | None:
        """What was remembered, when it is complete, known, and was found out with this preference; else None."""
        values = {item.name: pins.get(item.name, "") for item in fields(cls)}
        values["checksum"] = values["checksum"] or "sha256"
        whole = all(values[name] in ranks for name, ranks in RANKS.items())
        return cls(**values) if whole and values["checksum"] == checksum else None


def begun_with(level: str) -> dict[str, str]:
    """Request parameters of CreateMultipartUpload for parts that are checked by this digest."""
    if level == "crc64nvme":
        return {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
    return {"ChecksumAlgorithm": "SHA256"} if level == "sha256" else {}


def completed_with(level: str, whole: str) -> dict[str, str]:
    """Request parameters of CompleteMultipartUpload that let the server check the whole, where it can."""
    return {"ChecksumCRC64NVME": whole, "ChecksumType": "FULL_OBJECT"} if level == "crc64nvme" else {}


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
    checksum: str = "sha256"
    """The digest that is preferred: a key of :data:`ORDERS`."""
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
        return Capabilities(**self._found, checksum=self.checksum)

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
        conditional, level = self._write()
        found["put_checked"] = level
        body = {"Body": _BODY, **body_digest(level, _BODY)}
        atomic = conditional and self._heeded("put_object", IfNoneMatch="*", **body)
        found["create"] = "atomic" if atomic else "checked"
        found["replace"] = "atomic" if self._heeded("put_object", IfMatch=_FOREIGN_ETAG, **body) else "checked"
        head = self._head(_BODY)
        kept = {name.lower(): value for name, value in head.get("Metadata", {}).items()}
        found["metadata"] = "kept" if kept.items() >= _MARK.items() else "lost"
        ours = sums(_BODY, (level, "md5"))
        if level in PARAMETERS and head.get(PARAMETERS[level]) == ours.text(level):
            found["put_proof"] = level
        else:
            found["put_proof"] = "md5" if plain_etag(head.get("ETag")) == ours.md5.hex() else "readback"

    def _write(self) -> tuple[bool, str]:
        """A good object, with as much as the endpoint takes: (If-None-Match accepted, digest that it checks)."""
        errors: list[TransferError] = []
        for level in ORDERS[self.checksum]:
            # One that it does not know is refused as well: then the right one is not accepted either.
            if self._checked("put_object", level, name=f"wrong-{level}"):
                conditional = self._written(level, errors)
                if conditional is not None:
                    return conditional, level
        conditional = self._written("nothing", errors)
        if conditional is None:
            raise errors[0]
        return conditional, "nothing"

    def _written(self, level: str, errors: list[TransferError]) -> bool | None:
        """Whether it takes a good object with If-None-Match; None when it takes none with this digest."""
        for condition in ({"IfNoneMatch": "*"}, dict[str, str]()):
            try:
                self._call(
                    "put_object", Body=_BODY, Metadata=_MARK, **condition, **self.options, **body_digest(level, _BODY)
                )
                return bool(condition)
            except (DestinationMissing, PermissionDenied, TemporaryError):
                raise
            except TransferError as refusal:
                errors.append(refusal)
        return None

    def _parts(self) -> None:
        """A multipart upload onto the object that is already there: first forbidden to replace it, then allowed. With
        the first digest, from that of a single object on, that is checked for parts too."""
        order, single = ORDERS[self.checksum], self._found["put_checked"]
        for level in order[order.index(single) :] if single in order else ():
            try:
                if self._in_parts(level):
                    break
            except (DestinationMissing, PermissionDenied):
                raise
            except (IntegrityError, PermanentError):
                pass  # it does not know this one for parts
            self._forget_upload()
        else:
            self._in_parts("nothing")
        self._upload = ""
        self._found["parts_proof"] = self._parts_proof()

    def _in_parts(self, level: str) -> bool:
        """False when this digest is not checked."""
        self._begin_upload(level)
        part = {"PartNumber": 1, "UploadId": self._upload}
        if level != "nothing" and not self._checked("upload_part", level, **part):
            return False
        self._found["part_checked"] = level
        done = self._send_part(level)
        # A server that gives the upload up when the condition fails heeded it all the same.
        heeded = done_already = False
        if self._found["create"] == "atomic":
            try:
                self._call("complete_multipart_upload", IfNoneMatch="*", **done)
                done_already = True
            except Conflict:
                heeded = True
            except (DestinationMissing, PermissionDenied):
                raise
            except PermanentError:
                pass
        self._found["create_parts"] = "atomic" if heeded else "checked"
        if not done_already:
            try:
                self._call("complete_multipart_upload", **done)
            except UploadGone:
                self._begin_upload(level)
                self._call("complete_multipart_upload", **self._send_part(level))
        return True

    def _begin_upload(self, level: str) -> None:
        self._upload = str(self._call("create_multipart_upload", **begun_with(level), **self.options)["UploadId"])

    def _send_part(self, level: str) -> dict[str, Any]:
        """What completes the upload of this one part."""
        digest = body_digest(level, _IN_PARTS)
        answer = self._call("upload_part", PartNumber=1, UploadId=self._upload, Body=_IN_PARTS, **digest)
        told = {PARAMETERS[level]: digest[PARAMETERS[level]]} if level in PARAMETERS else {}
        whole = completed_with(level, told.get(PARAMETERS["crc64nvme"], ""))
        part = {"PartNumber": 1, "ETag": answer["ETag"], **told}
        return {"UploadId": self._upload, "MultipartUpload": {"Parts": [part]}, **whole}

    def _parts_proof(self) -> str:
        head, level = self._head(_IN_PARTS), self._found["part_checked"]
        ours = sums(_IN_PARTS, (level, "md5"))
        if level == "sha256" and head.get("ChecksumSHA256") == sums(ours.sha256, ("sha256",)).text("sha256") + "-1":
            return "sha256-parts"
        if level == "crc64nvme" and head.get("ChecksumCRC64NVME") == ours.text(level):
            return level
        of_parts = sums(ours.md5, ("md5",)).md5.hex() + "-1"
        return "md5-parts" if plain_etag(head.get("ETag")) == of_parts else "readback"

    def _head(self, body: bytes) -> dict[str, Any]:
        try:
            head = self._call("head_object", ChecksumMode="ENABLED")
        except AbsentError:
            head = {}
        if head.get("ContentLength") != len(body):
            where = self.wire.where()
            raise NotSupported(f"{where} does not show what was just stored", "The endpoint is not consistent: mend it")
        return head

    def _clean(self) -> None:
        """Remove what was written, whatever happened. Credentials that may not delete leave it there."""
        self._forget_upload()
        for name, version in reversed(list(self._left)):
            self._quietly("delete_object", name, **({"VersionId": version} if version else {}))

    def _forget_upload(self) -> None:
        if self._upload:
            self._quietly("abort_multipart_upload", "object", UploadId=self._upload)
            self._upload = ""

    def _quietly(self, operation: str, name: str, **parameters: Any) -> None:
        try:
            self._call(operation, name, **parameters)
        except PermissionDenied:
            self._found["remove"] = "denied"
        except TransferError:
            pass
