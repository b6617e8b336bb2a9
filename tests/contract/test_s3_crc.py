"""Which digest bytes are followed by on their way, and what each of them catches (PRODUCT P5)."""

from __future__ import annotations

import gc
import hashlib
import re
import tracemalloc
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from contract.places import BUCKET, PART, S3Place, bytes_of, content, deliver, digests_of
from contract.test_s3_faults import drop, flip_body, signed_anew
from quaymaster.destinations import crc64
from quaymaster.destinations.base import Parcel, Put
from quaymaster.errors import Conflict, IntegrityError, Unreachable
from quaymaster.model import Digests
from servers.faultproxy import FaultProxy, Request, Response, flip
from servers.seaweed import Seaweed

SMALL, LARGE = 100_000, 3 * PART + 5
DIGESTS = {"put_checked", "put_proof", "part_checked", "parts_proof"}


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.http_endpoint) as between:
        yield between


@pytest.fixture
def through(s3_crc: S3Place, proxy: FaultProxy) -> S3Place:
    s3_crc.settings = replace(s3_crc.settings, endpoint_url=proxy.endpoint)
    return s3_crc


def is_a(request: Request) -> bool:
    return request.path.endswith("/a")


def with_crc(data: bytes) -> Digests:
    return replace(digests_of(data), crc64nvme=crc64.crc64nvme(data))


def lie(request: Request) -> None:
    """Other bytes, with a checksum to match: the server has no way to notice."""
    request.body = flip(request.body)
    request.headers["x-amz-checksum-crc64nvme"] = crc64.text(crc64.crc64nvme(request.body))
    signed_anew(request)


@pytest.mark.parametrize("size", [0, SMALL, LARGE])
def test_the_server_tells_the_crc_of_the_whole_and_that_is_the_proof(s3_crc: S3Place, size: int) -> None:
    data = bytes_of(size)
    stored = deliver(s3_crc.make(), "a", data)
    assert stored.evidence == "crc64nvme"
    head = s3_crc.client.head_object(Bucket=BUCKET, Key=s3_crc.settings.prefix + "a", ChecksumMode="ENABLED")
    assert stored.checksum == f"CRC64NVME:{head['ChecksumCRC64NVME']}"
    assert head["ChecksumCRC64NVME"] == crc64.text(crc64.crc64nvme(data))
    assert "ChecksumSHA256" not in head


@pytest.mark.parametrize(("operation", "size"), [("PutObject", SMALL), ("UploadPart", LARGE)])
def test_a_bit_that_flips_on_the_way_is_refused(through: S3Place, proxy: FaultProxy, operation: str, size: int) -> None:
    destination, data = through.make(), bytes_of(size)
    destination.check()
    proxy.inject(operation, request=flip_body, only=is_a)
    before = proxy.count(operation)
    assert content(destination, deliver(destination, "a", data)) == data
    assert proxy.count(operation) - before >= 2
    proxy.inject(operation, request=flip_body, times=100)
    with pytest.raises(IntegrityError, match="received other bytes than were sent"):
        deliver(destination, "b", data)
    assert through.everything() == ["a"]


@pytest.mark.parametrize(("operation", "size"), [("PutObject", SMALL), ("UploadPart", LARGE)])
def test_a_server_that_holds_other_bytes_is_caught(
    through: S3Place, proxy: FaultProxy, operation: str, size: int
) -> None:
    destination = through.make()
    destination.check()
    proxy.inject(operation, request=lie, only=is_a)
    with pytest.raises(IntegrityError):
        deliver(destination, "a", bytes_of(size))
    assert through.everything() == []


def test_a_whole_that_is_told_wrong_after_completion_is_withdrawn(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.check()

    def wrong(request: Request, response: Response) -> None:
        if "x-amz-checksum-crc64nvme" in response.headers:
            response.headers["x-amz-checksum-crc64nvme"] = crc64.text(1)

    proxy.inject("HeadObject", response=wrong, times=2, only=is_a)  # before it begins, and when it is there
    with pytest.raises(IntegrityError, match="removed again"):
        deliver(destination, "a", bytes_of(LARGE))
    assert through.everything() == []


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("checksum", ["sha256", "crc64nvme"])
def test_bytes_that_changed_between_hashing_and_sending_never_become_visible(
    s3: S3Place, size: int, checksum: str
) -> None:
    destination, data = s3.with_settings(checksum=checksum), bytes_of(size)
    upload = destination.begin(Put("a", size, tells_crc=True))
    upload.write(flip(data))
    with pytest.raises(IntegrityError, match="CRC-64/NVME"):
        upload.publish(with_crc(data), {})
    upload.abort()
    untold = destination.begin(Put("a", size, tells_crc=True))
    untold.write(data)
    with pytest.raises(IntegrityError, match="with none"):
        untold.publish(digests_of(data), {})
    untold.abort()
    assert s3.everything() == []
    upload = destination.begin(Put("a", size, tells_crc=True))
    upload.write(data)
    assert content(destination, upload.publish(with_crc(data), {})) == data


def test_what_has_arrived_of_an_interrupted_upload_is_not_sent_again(through: S3Place, proxy: FaultProxy) -> None:
    destination, data = through.make(), bytes_of(LARGE)
    put = Put("a", LARGE)
    first = destination.begin(put)
    first.write(data[: 3 * PART])
    first.write(data[3 * PART :])
    first.suspend()  # waits for the parts that are on their way
    sent = sum(operation == "UploadPart" and path.endswith("/a") for operation, path in proxy.seen)
    assert through.with_settings(checksum="sha256").resumable(first.resume_token, put) is False
    again = through.make()
    assert again.resumable(first.resume_token, put)
    upload = again.begin(replace(put, resume=first.resume_token))
    upload.write(data)
    assert content(again, upload.publish(digests_of(data), {})) == data
    assert sum(operation == "UploadPart" and path.endswith("/a") for operation, path in proxy.seen) == max(4, sent)


def test_a_lost_reply_needs_no_reading_of_an_object_that_tells_that_it_is_ours(
    through: S3Place, proxy: FaultProxy
) -> None:
    destination, data = through.make(), bytes_of(LARGE)
    destination.check()
    proxy.inject("CompleteMultipartUpload", response=drop)
    before = proxy.count("GetObject")
    stored = deliver(destination, "a", data, metadata={"quaymaster-sha256": digests_of(data).sha256})
    assert stored.evidence == "crc64nvme"
    assert proxy.count("GetObject") == before


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_foreign_object_with_the_same_crc_is_read_before_it_counts(through: S3Place, size: int) -> None:
    destination = through.make()
    data = bytes_of(size)
    name = through.settings.prefix + "a"
    through.client.put_object(Bucket=BUCKET, Key=name, Body=data, ChecksumAlgorithm="CRC64NVME")
    assert deliver(destination, "a", data).evidence == "readback"
    through.client.put_object(Bucket=BUCKET, Key=name, Body=flip(data), ChecksumAlgorithm="CRC64NVME")
    with pytest.raises(Conflict):
        deliver(destination, "a", data)


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_are_given_back_at_once_when_an_upload_ends(through: S3Place, proxy: FaultProxy, fails: bool) -> None:
    """Also those of parts that were under way; the collector of cycles may not come for hours."""
    destination = through.make()
    destination.check()
    if fails:
        proxy.inject("UploadPart", head=lambda request: 100_000, times=1000)
    gc.disable()
    tracemalloc.start()
    try:
        upload = destination.begin(Put("a", 8 * PART))
        with suppress(Unreachable):
            for _ in range(8):
                upload.write(bytes_of(PART))
        upload.suspend()
        assert tracemalloc.get_traced_memory()[0] < PART
    finally:
        tracemalloc.stop()
        gc.enable()


def test_small_objects_together_are_proven_by_their_answers(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.check()
    bodies = [bytes_of(1000 + number, seed=number) for number in range(20)]
    parcels = [Parcel(Put(f"many/{n}", len(body)), body, digests_of(body)) for n, body in enumerate(bodies)]
    heads = proxy.count("HeadObject")
    found = dict(destination.put_all(parcels, lambda: False))
    assert {stored.evidence for stored in found.values()} == {"crc64nvme"}
    assert all(content(destination, found[number]) == body for number, body in enumerate(bodies))
    assert proxy.count("HeadObject") == heads


def without(proxy: FaultProxy, algorithm: str) -> None:
    """An endpoint that has never heard of a checksum."""
    header = f"x-amz-checksum-{algorithm.lower()}"

    def simplify(request: Request) -> None:
        names = (header, "x-amz-checksum-algorithm", "x-amz-checksum-type", "x-amz-sdk-checksum-algorithm")
        touched = [request.headers.pop(name) for name in names if algorithm in str(request.headers.get(name, ""))]
        touched += [request.headers.pop(header)] if header in request.headers else []
        tag = f"<Checksum{algorithm}>[^<]*</Checksum{algorithm}>".encode()
        body = re.sub(tag, b"", request.body) if request.operation == "CompleteMultipartUpload" else request.body
        if touched or body != request.body:
            request.headers.pop("x-amz-checksum-type", None)
            request.body = body
            signed_anew(request)

    def silent(request: Request, response: Response) -> None:
        response.headers.pop(header, None)

    proxy.inject("*", request=simplify, response=silent, times=10_000)


@pytest.mark.parametrize(
    ("wanted", "missing", "found"), [("sha256", "SHA256", "crc64nvme"), ("crc64nvme", "CRC64NVME", "sha256")]
)
def test_the_next_best_digest_is_taken_where_the_preferred_one_is_not_honoured(
    through: S3Place, proxy: FaultProxy, wanted: str, missing: str, found: str
) -> None:
    without(proxy, missing)
    pins: list[dict[str, str]] = []
    settings = replace(through.settings, checksum=wanted)
    destination = through.make(settings=settings, on_pins=pins.append)
    for size in (SMALL, LARGE):
        assert deliver(destination, f"{size}", bytes_of(size)).evidence.removesuffix("-parts") == found
    assert {pins[-1][name].removesuffix("-parts") for name in DIGESTS} == {found}


def test_another_preference_is_no_downgrade(s3: S3Place) -> None:
    pins: list[dict[str, str]] = []
    s3.make(on_pins=pins.append).check()
    older = {name: value for name, value in pins[-1].items() if name != "checksum"}
    crc = s3.make(settings=replace(s3.settings, checksum="crc64nvme"), pins=older, on_pins=pins.append)
    assert deliver(crc, "a", bytes_of(LARGE)).evidence == "crc64nvme"
    back = s3.make(pins=pins[-1], on_pins=pins.append)
    assert deliver(back, "b", bytes_of(LARGE)).evidence == "sha256-parts"
    assert [event for event in s3.events if event.kind == "destination-downgrade"] == []


def test_sha256_is_checked_by_sha256_as_long_as_nothing_else_is_asked_for(s3: S3Place) -> None:
    data = bytes_of(SMALL)
    stored = deliver(s3.make(), "a", data)
    assert stored.checksum == f"SHA256:{b64encode(hashlib.sha256(data).digest()).decode()}"
