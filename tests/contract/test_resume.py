"""An interrupted multipart upload goes on where it stopped: what has arrived is not sent again, unless it is not what
would be sent (PRODUCT P6)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from contract.places import BUCKET, PART, S3Place, bytes_of, content, deliver, digests_of
from quaymaster.destinations.base import Put
from quaymaster.errors import Conflict, TransferError, Unreachable
from quaymaster.model import Stored
from servers.faultproxy import FaultProxy, Reset, Response
from servers.seaweed import Seaweed

DATA = bytes_of(4 * PART + 5)
METADATA = {"quaymaster-sha256": hashlib.sha256(DATA).hexdigest()}


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.http_endpoint) as between:
        yield between


@pytest.fixture
def through(s3: S3Place, proxy: FaultProxy) -> S3Place:
    s3.settings = replace(s3.settings, endpoint_url=proxy.endpoint)
    return s3


def interrupted(place: S3Place, data: bytes = DATA, *, parts: int = 3) -> str:
    """Sends so many parts and stops there, as a process does that is asked to stop; the token."""
    upload = place.make().begin(Put("a", len(data), METADATA))
    upload.write(data[: parts * PART + 1])
    upload._parts.all()
    upload.suspend()
    assert upload.resume_token
    return upload.resume_token


def resumed(place: S3Place, token: str, data: bytes = DATA, *, metadata: dict[str, str] = METADATA) -> Stored:
    put = Put("a", len(data), metadata, resume=token)
    destination = place.make()
    assert destination.resumable(token, put)
    upload = destination.begin(put)
    try:
        upload.write(data)
        return upload.publish(digests_of(data), metadata)
    finally:
        upload.abort()


def test_parts_that_have_arrived_are_not_sent_again(through: S3Place, proxy: FaultProxy) -> None:
    token = interrupted(through)
    assert through.objects() == []
    before = proxy.count("UploadPart")
    stored = resumed(through, token)
    # The probe of the new instance sends parts as well, but not to this key.
    own = [path for operation, path in proxy.seen if operation == "UploadPart" and path.endswith("/a")]
    assert len(own) == 5, "three before and two after"
    assert proxy.count("UploadPart") > before
    assert content(through.make(), stored) == DATA
    assert through.everything() == ["a"]
    assert "3 parts have arrived already" in through.events[-1].message


def test_a_part_that_differs_is_sent_again(through: S3Place, proxy: FaultProxy) -> None:
    token = interrupted(through)
    upload_id = json.loads(token)["upload_id"]
    key = through.settings.prefix + "a"
    through.client.upload_part(
        Bucket=BUCKET, Key=key, UploadId=upload_id, PartNumber=2, Body=bytes_of(PART, 7), ChecksumAlgorithm="SHA256"
    )
    stored = resumed(through, token)
    assert content(through.make(), stored) == DATA
    assert through.everything() == ["a"]


def test_a_part_of_another_size_is_sent_again(through: S3Place) -> None:
    token = interrupted(through)
    key = through.settings.prefix + "a"
    upload_id = json.loads(token)["upload_id"]
    through.client.upload_part(
        Bucket=BUCKET, Key=key, UploadId=upload_id, PartNumber=1, Body=DATA[: PART - 1], ChecksumAlgorithm="SHA256"
    )
    assert content(through.make(), resumed(through, token)) == DATA


def test_an_upload_that_somebody_aborted_is_begun_again(through: S3Place) -> None:
    token = interrupted(through)
    upload_id = json.loads(token)["upload_id"]
    through.client.abort_multipart_upload(Bucket=BUCKET, Key=through.settings.prefix + "a", UploadId=upload_id)
    assert content(through.make(), resumed(through, token)) == DATA
    assert through.everything() == ["a"]


def test_an_upload_that_the_server_denies_stays_noted_while_another_is_begun(
    through: S3Place, proxy: FaultProxy
) -> None:
    """A server that loses sight of its store for a moment says of any upload that there is none."""
    token = interrupted(through)
    body = b"<?xml version='1.0'?><Error><Code>NoSuchUpload</Code></Error>"
    proxy.inject("ListParts", request=lambda _: Response(404, {"content-type": "application/xml"}, body))
    noted: list[str] = []
    destination = through.make()
    upload = destination.begin(Put("a", len(DATA), METADATA, resume=token, note=noted.append))
    upload.write(DATA)
    upload.publish(digests_of(DATA), METADATA)
    assert noted
    assert token not in noted, "what was gone on with would be told again"
    assert len(through.unfinished()) == 1
    assert destination.abandon(token)
    assert through.everything() == ["a"]


def test_a_completed_upload_whose_end_nobody_recorded_is_found(through: S3Place, proxy: FaultProxy) -> None:
    """The process died between the server's completion and its own record: the object is there and is ours."""
    token = interrupted(through)
    stored = resumed(through, token)
    before = len([1 for operation, path in proxy.seen if operation == "UploadPart" and path.endswith("/a")])
    again = resumed(through, token)
    assert (again.etag, again.size) == (stored.etag, stored.size)
    after = len([1 for operation, path in proxy.seen if operation == "UploadPart" and path.endswith("/a")])
    assert after == before
    assert through.everything() == ["a"]


def test_a_key_that_holds_the_same_bytes_already_costs_no_upload(through: S3Place, proxy: FaultProxy) -> None:
    """E.g. the store was lost: what was delivered is recognised, and not a part of it travels again."""
    first = deliver(through.make(), "a", DATA, metadata=METADATA)
    before = proxy.count("CreateMultipartUpload")
    destination = through.make()
    destination.check()
    probes = proxy.count("CreateMultipartUpload") - before
    again = deliver(destination, "a", DATA, metadata=METADATA)
    assert again.etag == first.etag
    assert proxy.count("CreateMultipartUpload") == before + probes


def test_a_key_that_holds_something_else_is_refused_without_sending(through: S3Place, proxy: FaultProxy) -> None:
    through.overwrite("a", b"another's")
    with pytest.raises(Conflict, match="never overwritten"):
        deliver(through.make(), "a", DATA, metadata=METADATA)
    assert not [path for operation, path in proxy.seen if operation == "UploadPart" and path.endswith("/a")]
    assert through.everything() == ["a"]


@pytest.mark.parametrize("change", ["metadata", "part size", "key", "nonsense"])
def test_what_cannot_go_on_is_not_tried(s3: S3Place, change: str) -> None:
    token = interrupted(s3)
    put, destination = Put("a", len(DATA), METADATA), s3.make()
    if change == "metadata":
        put = replace(put, metadata={**METADATA, "quaymaster-compression": "zstd"})
    elif change == "part size":
        destination = s3.with_settings(part_size=2 * PART)
    elif change == "key":
        put = replace(put, key="b")
    else:
        assert not destination.resumable("nonsense", put)
        assert not destination.resumable("[]", put)
        return
    assert not destination.resumable(token, put)
    assert destination.abandon(token)
    assert s3.everything() == []


def test_an_outage_in_the_middle_leaves_what_can_be_gone_on_with(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.check()
    tokens: list[str] = []
    upload = destination.begin(Put("a", len(DATA), METADATA, note=tokens.append))
    upload.write(DATA[: PART + 1])
    upload._parts.all()
    proxy.inject("*", request=lambda _: Response(503), times=10_000)

    def rest() -> None:
        upload.write(DATA[PART + 1 :])
        upload.publish(digests_of(DATA), METADATA)

    with pytest.raises(Unreachable):
        rest()
    upload.suspend()
    upload.abort()  # says nothing after a suspension
    assert upload.resume_token == tokens[-1]
    proxy.clear()
    assert content(through.make(), resumed(through, tokens[-1])) == DATA
    own = [path for operation, path in proxy.seen if operation == "UploadPart" and path.endswith("/a")]
    assert len(own) >= 5
    assert through.everything() == ["a"]


def test_a_claim_that_may_be_there_is_remembered_until_it_can_be_removed(through: S3Place, proxy: FaultProxy) -> None:
    """It would keep everybody, us included, from its key until it is stale."""
    of_claim = lambda request: ".quaymaster-claim/" in request.path  # noqa: E731
    destination = through.make()
    destination.check()
    upload = destination.begin(Put("a", len(DATA), METADATA))
    upload.write(DATA)

    def lose(_request: object, _response: object) -> None:
        raise Reset

    proxy.inject("PutObject", response=lose, only=of_claim, times=1)
    proxy.inject("HeadObject", request=lambda _: Response(403), only=of_claim, times=100)
    proxy.inject("DeleteObject", request=lambda _: Response(403), only=of_claim, times=100)
    with pytest.raises(TransferError):
        upload.publish(digests_of(DATA), METADATA)
    upload.abort()
    token = upload.resume_token
    assert token
    assert not destination.abandon(token)
    proxy.clear()
    assert destination.abandon(token)
    assert through.everything() == []


def test_parts_that_are_not_needed_any_more_stay_noted_until_they_are_removed(
    through: S3Place, proxy: FaultProxy
) -> None:
    """The key holds the same bytes by now, put there by another upload."""
    token = interrupted(through)
    deliver(through.make(), "a", DATA, metadata=METADATA)
    destination = through.make()
    destination.check()
    proxy.inject("AbortMultipartUpload", request=lambda _: Response(403), times=100)
    upload = destination.begin(Put("a", len(DATA), METADATA, resume=token))
    upload.write(DATA)
    upload.publish(digests_of(DATA), METADATA)
    upload.abort()
    assert upload.resume_token
    proxy.clear()
    assert destination.abandon(upload.resume_token)
    assert through.everything() == ["a"]
