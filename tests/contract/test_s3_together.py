"""Many small objects at once: the same promises as one by one, whatever the server and the way to it do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from contract.places import S3Place, bytes_of, content, deliver, digests_of
from contract.test_s3_faults import drop, flip_body, lie
from quaymaster.destinations.base import Parcel, Put
from quaymaster.destinations.s3 import S3
from quaymaster.errors import Conflict, IntegrityError, NameRefused, PermissionDenied, TransferError, Unreachable
from quaymaster.model import Stored
from servers.faultproxy import FaultProxy, Request, Response, unavailable
from servers.seaweed import Seaweed

NAMES = [f"run 1/läufe+{number}~%25=&?.dat" for number in range(150)]


@pytest.fixture(params=["s3", "s3_tls"])
def place(request: pytest.FixtureRequest) -> S3Place:
    chosen: S3Place = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.http_endpoint) as between:
        yield between


@pytest.fixture
def through(s3: S3Place, proxy: FaultProxy) -> S3Place:
    s3.settings = replace(s3.settings, endpoint_url=proxy.endpoint)
    return s3


def parcels(names: list[str], size: int = 3000) -> list[Parcel]:
    found = []
    for number, name in enumerate(names):
        body = bytes_of(size + number, seed=number)
        digests = digests_of(body)
        found.append(Parcel(Put(name, len(body), {"quaymaster-sha256": digests.sha256}), body, digests))
    return found


def put(destination: S3, given: list[Parcel]) -> list[Stored | TransferError]:
    found = dict(destination.put_all(given, lambda: False))
    assert sorted(found) == list(range(len(given))), "the fate of each is told once"
    return [found[number] for number in range(len(given))]


def arrived(place: S3Place, given: list[Parcel], outcomes: list[Stored | TransferError]) -> None:
    reader = place.make()
    for parcel, stored in zip(given, outcomes, strict=True):
        assert isinstance(stored, Stored), stored
        assert content(reader, stored) == parcel.body
    assert place.objects() == sorted(parcel.put.key for parcel in given)


def test_what_is_told_of_each_is_what_the_server_tells_of_it(place: S3Place) -> None:
    destination, given = place.make(), parcels(NAMES)
    assert destination.together() >= max(len(parcel.body) for parcel in given)
    outcomes = put(destination, given)
    arrived(place, given, outcomes)
    for parcel, stored in list(zip(given, outcomes, strict=True))[::30]:
        assert isinstance(stored, Stored)
        seen = destination.stat(parcel.put.key)
        assert seen is not None
        assert replace(seen, mtime=0.0, evidence="") == replace(stored, evidence="")
        assert stored.evidence == "sha256"
        assert stored.checksum


def test_an_object_is_the_same_as_one_that_went_alone(s3: S3Place) -> None:
    destination = s3.with_settings(tags={"lab": "a b"}, storage_class=None)
    (given,) = parcels(["together"])
    put(destination, [given])
    deliver(destination, "alone", given.body, metadata=given.put.metadata)
    heads = [s3.client.head_object(Bucket="contract", Key=s3.settings.prefix + key) for key in ("together", "alone")]
    for head in heads:
        for name in ("ResponseMetadata", "LastModified"):
            del head[name]
    assert heads[0] == heads[1]
    tags = s3.client.get_object_tagging(Bucket="contract", Key=s3.settings.prefix + "together")["TagSet"]
    assert tags == [{"Key": "lab", "Value": "a b"}]


def test_each_is_one_request(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.check()
    fresh = parcels([f"fresh-{number}" for number in range(100)])
    before = len(proxy.seen)
    put(destination, fresh)
    assert [operation for operation, _ in proxy.seen[before:]] == ["PutObject"] * 100


def test_what_is_there_is_never_overwritten_and_what_is_the_same_is_taken_as_put(s3: S3Place) -> None:
    destination, given = s3.make(), parcels(["a", "b", "c"])
    s3.overwrite("a", b"somebody else's")
    s3.overwrite("b", given[1].body)
    a, b, c = put(destination, given)
    assert isinstance(a, Conflict)
    assert isinstance(b, Stored)
    assert isinstance(c, Stored)
    seen = destination.stat("a")
    assert seen is not None
    assert content(destination, seen) == b"somebody else's"


def test_a_name_that_cannot_be_concerns_no_other(s3: S3Place) -> None:
    good, bad = put(s3.make(), parcels(["good", "x" * 2000]))
    assert isinstance(good, Stored)
    assert isinstance(bad, NameRefused)


@pytest.mark.parametrize("times", [1, 20])
def test_lost_replies_make_no_conflict_with_oneself(through: S3Place, proxy: FaultProxy, times: int) -> None:
    destination, given = through.make(), parcels(NAMES[:40])
    destination.check()
    proxy.inject("PutObject", response=drop, times=times)
    arrived(through, given, put(destination, given))


def test_a_busy_server_is_asked_again(through: S3Place, proxy: FaultProxy) -> None:
    destination, given = through.make(), parcels(NAMES[:40])
    destination.check()
    proxy.inject("PutObject", request=lambda request: unavailable(), times=30)
    arrived(through, given, put(destination, given))


def test_bits_that_flip_on_the_way_are_refused_and_sent_again(through: S3Place, proxy: FaultProxy) -> None:
    destination, given = through.make(), parcels(NAMES[:40])
    destination.check()
    proxy.inject("PutObject", request=flip_body, times=5)
    arrived(through, given, put(destination, given))


def test_other_bytes_with_a_checksum_to_match_do_not_count_as_delivered(through: S3Place, proxy: FaultProxy) -> None:
    destination, given = through.make(), parcels(NAMES[:5])
    destination.check()
    proxy.inject("PutObject", request=lie)
    outcomes = put(destination, given)
    wrong = [outcome for outcome in outcomes if not isinstance(outcome, Stored)]
    assert [type(outcome) for outcome in wrong] == [IntegrityError]
    assert len(through.objects()) == 4, "the damaged one was withdrawn"


def test_an_answer_that_tells_no_checksum_proves_nothing(through: S3Place, proxy: FaultProxy) -> None:
    destination, given = through.make(), parcels(NAMES[:5])
    destination.check()

    def hide(request: Request, response: Response) -> None:
        response.headers = {name: value for name, value in response.headers.items() if "checksum" not in name.lower()}

    proxy.inject("PutObject", response=hide, times=100)
    heads = proxy.count("HeadObject")
    arrived(through, given, put(destination, given))
    assert proxy.count("HeadObject") - heads >= 5, "each was looked at"
    assert destination.together() == 0, "the short way does not pay here"


def test_nobody_there_is_told_at_once_for_all(s3: S3Place) -> None:
    destination = s3.make()
    destination.check()
    lines = destination._objects.wire.lines()
    assert lines is not None
    lines.road = replace(lines.road, port=1)
    outcomes = put(destination, parcels(NAMES))
    assert {type(outcome) for outcome in outcomes} == {Unreachable}


def test_refused_access_is_told_of_each(s3: S3Place) -> None:
    destination = s3.make()
    destination.check()
    lines = destination._objects.wire.lines()
    assert lines is not None
    keys = lines.road.keys()
    assert keys is not None
    lines.road = replace(lines.road, keys=lambda: replace(keys, secret_key="wrong"))
    # The ordinary way, which has the right key, still delivers them.
    outcomes = put(destination, parcels(["a", "b"]))
    assert all(isinstance(outcome, Stored) for outcome in outcomes)
    wrong = s3.make(credentials=lambda: type("Keys", (), {"access_key": "x", "secret_key": "y", "session_token": None}))
    with pytest.raises(PermissionDenied):
        dict(wrong.put_all(parcels(["c"]), lambda: False))


def test_the_signature_is_that_of_the_specification() -> None:
    """As the AWS library makes it."""
    from quaymaster.destinations.s3_line import Road, put_head
    from quaymaster.destinations.s3_signature import Keys, Signer

    road = Road("h", 80, "bucket.s3.amazonaws.com", "/", "us-east-1", lambda: None, None, 1, 1)
    keys = Keys("AKIAIOSFODNN7EXAMPLE", "secret", "token")
    signer = Signer(keys, road.region, road.named, lambda: 1369353600.0)
    more = {"x-amz-storage-class": "REDUCED_REDUNDANCY"}
    head = put_head(road, signer, "test $file.text", 5, more).decode()
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    class Fixed(S3SigV4Auth):
        def _modify_request_before_signing(self, request: AWSRequest) -> None:
            pass

        def payload(self, request: AWSRequest) -> str:
            return "UNSIGNED-PAYLOAD"

    lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    auth = Fixed(Credentials("AKIAIOSFODNN7EXAMPLE", "secret", "token"), "s3", "us-east-1")
    request = AWSRequest("PUT", "http://bucket.s3.amazonaws.com/test%20%24file.text", headers={
        name: value for name, value in lines.items() if name not in ("authorization", "content-length")
    })  # fmt: skip
    request.context["timestamp"] = lines["x-amz-date"]
    text = auth.string_to_sign(request, auth.canonical_request(request))
    assert lines["authorization"].endswith(auth.signature(text, request))
