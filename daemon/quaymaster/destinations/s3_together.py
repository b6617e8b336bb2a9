"""Many small objects at once (PRODUCT P5): each one PutObject on a short way, proven by what its answer says.

The answer to a PutObject tells the digest that the server made of what it stored. Where the probe saw the server refuse
a body with a wrong digest, and tell the right one afterwards, this is the proof that a look at the object would give.
Whatever else is answered (the key is taken, access is refused, no digest is told) goes the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quaymaster.destinations.base import Parcel
from quaymaster.destinations.s3_line import Answer, Lines, put_head
from quaymaster.destinations.s3_objects import Objects, sent_metadata
from quaymaster.destinations.s3_plan import Expected
from quaymaster.destinations.s3_probe import Capabilities
from quaymaster.destinations.s3_sums import HEADERS, PARAMETERS, Sums, plain_etag, sums
from quaymaster.destinations.s3_tries import TRIES, Tries
from quaymaster.destinations.s3_upload import S3Upload, content_type
from quaymaster.errors import TemporaryError, TransferError
from quaymaster.model import Stored

LARGEST = 128 << 10
"""Bytes. What is larger would not fit into what the kernel takes at once, and others would wait behind it."""

_HEADERS = {
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "Tagging": "x-amz-tagging",
    "StorageClass": "x-amz-storage-class",
}
"""Request parameters of the library (s3_plan.Plan.options) as S3 names them."""


def suits(able: Capabilities) -> bool:
    """Whether an endpoint's own answer proves a small object, and its own condition keeps what is there."""
    return able.create == "atomic" and able.put_checked != "nothing" and able.put_proof != "readback"


@dataclass(slots=True)
class Batch:
    """One run of :meth:`S3.put_all`."""

    objects: Objects
    lines: Lines[int] | None
    """None: only the ordinary way is open."""
    able: Capabilities
    options: Mapping[str, Any]
    upload: Callable[[Parcel], S3Upload]
    """The ordinary way, with everything written."""
    require_name: Callable[[str], None]
    silent: Callable[[], None]
    """Told when an answer does not tell the digest."""
    tries: Tries

    def run(
        self, parcels: Sequence[Parcel], stopped: Callable[[], bool]
    ) -> Iterator[tuple[int, Stored | TransferError]]:
        left, failed = list[int](), dict[int, TransferError]()
        for number, parcel in enumerate(parcels):
            try:
                self.require_name(parcel.put.key)
                left.append(number)
            except TransferError as error:
                yield number, error
        for attempt in range(1, TRIES + 1):
            failed = {}
            for number, outcome in self._once(parcels, left):
                if isinstance(outcome, TemporaryError):
                    failed[number] = outcome
                else:
                    yield number, outcome
            left = list(failed)
            if not left or attempt == TRIES or stopped():
                break
            self.tries.pause(attempt)
        yield from failed.items()

    def _once(self, parcels: Sequence[Parcel], numbers: list[int]) -> Iterator[tuple[int, Stored | TransferError]]:
        lines = self.lines if suits(self.able) else None
        signer = lines.signer() if lines else None
        if lines is None or signer is None:
            for number in numbers:
                yield number, self._ordinary(parcels[number], None)
            return

        def request(number: int) -> tuple[int, bytes, bytes]:
            put, body = parcels[number].put, parcels[number].body
            headers = self._headers(parcels[number])
            return number, put_head(lines.road, signer, self.objects.whole_key(put.key), len(body), headers), body

        unsent, last = set(numbers), OSError("nobody answers")
        for number, answer in lines.exchange(map(request, numbers)):
            unsent.discard(number)
            if isinstance(answer, OSError):
                last = answer
                yield number, self._broken(parcels[number], answer)
            else:
                yield number, self._outcome(parcels[number], answer)
        for number in unsent:
            yield number, self._broken(parcels[number], last)

    def _headers(self, parcel: Parcel) -> dict[str, str]:
        headers = {f"x-amz-meta-{name}": value for name, value in sent_metadata(parcel.put.metadata).items()}
        for name, value in self.options.items():
            headers[_HEADERS[name]] = value
        headers["content-type"] = content_type(parcel.put.metadata)
        headers["if-none-match"] = "*"
        level = self.able.put_checked
        for name, value in _sums(parcel, level).parameters(level).items():
            headers[HEADERS[name]] = value
        return headers

    def _broken(self, parcel: Parcel, error: OSError) -> TransferError:
        try:
            with self.objects.wire.translated(self.objects.whole_key(parcel.put.key)):
                raise error
        except TransferError as ours:
            return ours

    def _outcome(self, parcel: Parcel, answer: Answer) -> Stored | TransferError:
        if answer.status == 200:
            return self._proven(parcel, answer) or self._ordinary(parcel, answer)
        if answer.status >= 500 or answer.status == 429:
            return self.objects.wire.refused(answer.status, answer.headers, self.objects.whole_key(parcel.put.key))
        return self._ordinary(parcel, None)

    def _proven(self, parcel: Parcel, answer: Answer) -> Stored | None:
        version, proof = answer.headers.get("x-amz-version-id", ""), self.able.put_proof
        name = PARAMETERS.get(proof, "")
        told = answer.headers.get(HEADERS.get(name, ""), "")
        expected = Expected.of_one(parcel.digests, proof, _sums(parcel, proof), "")
        found = Stored(
            key=parcel.put.key,
            size=parcel.digests.size,
            etag=plain_etag(answer.headers.get("etag")),
            version_id="" if version == "null" else version,
            checksum=f"{name.removeprefix('Checksum')}:{told}" if told else "",
            metadata=parcel.put.metadata,
            evidence=proof,
        )
        if found.etag and expected.found_in(found, adopting=False):
            return found
        self.silent()
        return None

    def _ordinary(self, parcel: Parcel, answer: Answer | None) -> Stored | TransferError:
        """``answer``: the object is there and ours, and its proof must be asked for."""
        upload: S3Upload | None = None
        try:
            upload = self.upload(parcel)
            if answer is None:
                return upload.publish(parcel.digests, parcel.put.metadata)
            told = {"ETag": answer.headers.get("etag", ""), "VersionId": answer.headers.get("x-amz-version-id", "")}
            return upload.published(parcel.digests, told)
        except TransferError as error:
            return error
        finally:
            if upload is not None:
                upload.abort()


def _sums(parcel: Parcel, level: str) -> Sums:
    """The SHA-256 is known."""
    if level == "sha256":
        return Sums(parcel.digests.size, sha256=bytes.fromhex(parcel.digests.sha256))
    return sums(parcel.body, (level,))
