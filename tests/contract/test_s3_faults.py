"""What goes wrong between client and server must end in the right bytes or in an error: never in a false success."""

from __future__ import annotations

import hashlib
import json
import re
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace

import pytest

from contract.places import PART, S3Place, bytes_of, content, deliver, digests_of
from quaymaster.destinations.base import Put
from quaymaster.errors import Conflict, IntegrityError, NotSupported, Unreachable
from quaymaster.model import Level
from servers.faultproxy import FaultProxy, Request, Reset, Response, flip, unavailable
from servers.seaweed import Seaweed

SMALL, LARGE = 100_000, 3 * PART + 5


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.http_endpoint) as between:
        yield between


@pytest.fixture
def through(s3: S3Place, proxy: FaultProxy) -> S3Place:
    """The place, reached through the proxy, and looked at without it."""
    s3.settings = replace(s3.settings, endpoint_url=proxy.endpoint)
    return s3


def drop(*_: object) -> None:
    raise Reset


def flip_body(request: Request) -> None:
    request.body = flip(request.body)


def signed_anew(request: Request) -> None:
    """Sign a request that was changed on the way: a meddler who has the keys, or an endpoint that does not check."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    skipped = ("authorization", "x-amz-date", "content-length", "expect", "connection", "accept-encoding", "user-agent")
    kept = {name: value for name, value in request.headers.items() if name not in skipped}
    url = f"http://{request.headers['host']}{request.target}"
    fresh = AWSRequest(request.method, url, headers=kept, data=request.body)
    S3SigV4Auth(Credentials(Seaweed.access_key, Seaweed.secret_key), "s3", "us-east-1").add_auth(fresh)
    request.headers = {name.lower(): value for name, value in fresh.headers.items()}


def lie(request: Request) -> None:
    """Other bytes, with checksums to match: the server has no way to notice."""
    request.body = flip(request.body)
    request.headers["x-amz-checksum-sha256"] = b64encode(hashlib.sha256(request.body).digest()).decode()
    signed_anew(request)


@pytest.mark.parametrize(("operation", "size"), [("PutObject", SMALL), ("UploadPart", LARGE)])
def test_a_bit_that_flips_on_the_way_is_refused_and_sent_again(
    through: S3Place, proxy: FaultProxy, operation: str, size: int
) -> None:
    destination, data = through.make(), bytes_of(size)
    destination.check()
    proxy.inject(operation, request=flip_body, only=lambda request: request.path.endswith("/a"))
    before = proxy.count(operation)
    stored = deliver(destination, "a", data)
    assert content(destination, stored) == data
    assert proxy.count(operation) - before >= 2


@pytest.mark.parametrize(("operation", "size"), [("PutObject", SMALL), ("UploadPart", LARGE)])
def test_bits_that_flip_every_time_end_in_an_integrity_error(
    through: S3Place, proxy: FaultProxy, operation: str, size: int
) -> None:
    destination = through.make()
    destination.check()
    proxy.inject(operation, request=flip_body, times=100)
    with pytest.raises(IntegrityError):
        deliver(destination, "a", bytes_of(size))
    assert through.everything() == []


def test_a_bit_that_flips_while_reading_is_noticed(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    stored = deliver(destination, "a", bytes_of(SMALL))

    def damage(request: Request, response: Response) -> None:
        response.body = flip(response.body)

    proxy.inject("GetObject", response=damage)
    with pytest.raises(IntegrityError):
        content(destination, stored)
    assert content(destination, stored) == bytes_of(SMALL)


def test_a_body_cut_short_while_reading_is_an_error(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    stored = deliver(destination, "a", bytes_of(SMALL))

    def cut(request: Request, response: Response) -> None:
        response.body = response.body[:-1]

    proxy.inject("GetObject", response=cut)
    with pytest.raises((Unreachable, IntegrityError)):
        content(destination, stored)


@pytest.mark.parametrize(
    ("operation", "size"), [("PutObject", SMALL), ("CompleteMultipartUpload", LARGE), ("UploadPart", LARGE)]
)
def test_a_lost_reply_does_not_make_a_conflict_with_oneself(
    through: S3Place, proxy: FaultProxy, operation: str, size: int
) -> None:
    destination, data = through.make(), bytes_of(size)
    destination.check()
    proxy.inject(operation, response=drop)
    stored = deliver(destination, "a", data)
    assert (stored.size, stored.evidence) == (size, "sha256" if size == SMALL else "sha256-parts")
    assert content(destination, stored) == data
    assert through.everything() == ["a"]


@pytest.mark.parametrize(("operation", "size"), [("PutObject", SMALL), ("CompleteMultipartUpload", LARGE)])
def test_replies_that_are_lost_every_time_do_not_hide_the_success(
    through: S3Place, proxy: FaultProxy, operation: str, size: int
) -> None:
    destination = through.make()
    destination.check()
    proxy.inject(operation, response=drop, times=1000, only=lambda request: request.path.endswith("/a"))
    assert content(destination, deliver(destination, "a", bytes_of(size))) == bytes_of(size)
    assert proxy.count("CompleteMultipartUpload") <= 4  # the probe's two and one or two of ours


def test_an_upload_that_is_gone_because_it_was_completed_is_a_success(through: S3Place, proxy: FaultProxy) -> None:
    """AWS answers NoSuchUpload to the second request; that alone would look like a loss."""
    destination = through.make()
    destination.check()
    gone = Response(404, {"content-type": "application/xml"}, b"<Error><Code>NoSuchUpload</Code></Error>")

    def completed_before(request: Request, response: Response) -> None:
        assert response.status == 200
        response.status, response.headers, response.body = gone.status, gone.headers, gone.body

    proxy.inject("CompleteMultipartUpload", response=completed_before)
    assert deliver(destination, "a", bytes_of(LARGE)).evidence == "sha256-parts"


def test_an_upload_that_is_gone_for_another_reason_is_begun_again_later(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.check()
    gone = Response(404, {"content-type": "application/xml"}, b"<Error><Code>NoSuchUpload</Code></Error>")
    proxy.inject("CompleteMultipartUpload", request=lambda request: gone, times=1000)
    with pytest.raises(Unreachable, match="not known to the server"):
        deliver(destination, "a", bytes_of(LARGE))
    assert through.everything() == []


def test_what_slips_in_just_before_a_removal_is_not_removed(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    stored = deliver(destination, "a", b"ours")

    def slip_in(request: Request, response: Response) -> None:
        through.overwrite("a", b"foreign")

    proxy.inject("HeadObject", response=slip_in)
    with pytest.raises(Conflict):
        destination.remove(stored)
    assert content(destination, destination.stat("a")) == b"foreign"


@pytest.mark.parametrize(("operation", "size"), [("PutObject", SMALL), ("CompleteMultipartUpload", LARGE)])
def test_a_lost_reply_to_a_replacement_is_found_out(
    through: S3Place, proxy: FaultProxy, operation: str, size: int
) -> None:
    destination = through.make()
    old = deliver(destination, "a", b"old")
    proxy.inject(operation, response=drop, only=lambda request: request.path.endswith("/a"))
    assert content(destination, deliver(destination, "a", bytes_of(size), replace=old)) == bytes_of(size)
    assert through.everything() == ["a"]


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_bucket_that_is_away_for_a_moment_does_not_make_our_own_object_a_strangers(
    through: S3Place, proxy: FaultProxy, size: int
) -> None:
    """Of a bucket that is away a HEAD says the same as of an object that is gone."""
    destination = through.make()
    old = deliver(destination, "a", b"first")
    looks = [None] * (size == LARGE) + [Response(404)] * 2  # what is sent in parts looks once before the first
    proxy.inject(
        "HeadObject", request=lambda request: looks.pop(0), times=len(looks), only=lambda r: r.path.endswith("/a")
    )
    new = deliver(destination, "a", bytes_of(size), replace=old)
    assert content(destination, new) == bytes_of(size)


def test_a_lost_reply_does_not_make_another_writers_object_ours(through: S3Place, proxy: FaultProxy) -> None:
    """Same key, same size, and the moment of the reset filled by somebody else."""
    destination = through.make()
    destination.check()

    def overtaken(request: Request) -> None:
        through.overwrite("a", bytes_of(LARGE, seed=9))
        raise Reset

    proxy.inject("CompleteMultipartUpload", request=overtaken)
    with pytest.raises(Conflict):
        deliver(destination, "a", bytes_of(LARGE))
    assert content(destination, destination.stat("a")) == bytes_of(LARGE, seed=9)
    assert through.everything() == ["a"]


def test_a_reset_in_the_middle_of_a_part_is_retried(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.check()
    proxy.inject("UploadPart", head=lambda request: 100_000, times=2)
    stored = deliver(destination, "a", bytes_of(LARGE))
    assert content(destination, stored) == bytes_of(LARGE)


def test_resets_without_end_are_unreachable_and_leave_nothing(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.check()
    proxy.inject("UploadPart", head=lambda request: 100_000, times=1000)
    with pytest.raises(Unreachable):
        deliver(destination, "a", bytes_of(LARGE))
    assert through.everything() == []


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload"])
def test_a_busy_server_is_given_the_time_it_asks_for(through: S3Place, proxy: FaultProxy, operation: str) -> None:
    destination = through.make()
    destination.check()
    size = SMALL if operation == "PutObject" else LARGE
    proxy.inject(operation, request=unavailable(1), times=2)
    began = time.monotonic()
    stored = deliver(destination, "a", bytes_of(size))
    at_once = 2 if operation == "UploadPart" else 1  # parts wait side by side
    assert time.monotonic() - began >= 2 / at_once, "a second after each refusal"
    assert content(destination, stored) == bytes_of(size)


def test_a_server_that_stays_busy_is_unreachable(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.check()
    proxy.inject("*", request=unavailable(0), times=1000)
    with pytest.raises(Unreachable, match="SlowDown"):
        deliver(destination, "a", bytes_of(SMALL))


@pytest.mark.parametrize(("operation", "size"), [("PutObject", SMALL), ("UploadPart", LARGE)])
def test_a_server_that_holds_other_bytes_is_caught_and_the_object_withdrawn(
    through: S3Place, proxy: FaultProxy, operation: str, size: int
) -> None:
    destination = through.make()
    destination.check()
    proxy.inject(operation, request=lie, only=lambda request: request.path.endswith("/a"))
    if operation == "PutObject":
        with pytest.raises(IntegrityError, match="removed again"):
            deliver(destination, "a", bytes_of(size))
    else:  # the reply to the part tells the digest of what arrived, and completing with ours is refused or caught
        with pytest.raises(IntegrityError):
            deliver(destination, "a", bytes_of(size))
    assert through.everything() == []


def test_a_foreign_object_that_took_the_place_at_once_is_not_withdrawn(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.check()

    def overtaken(request: Request, response: Response) -> None:
        through.overwrite("a", b"x" * SMALL)

    proxy.inject("PutObject", response=overtaken)
    with pytest.raises(Conflict):
        deliver(destination, "a", bytes_of(SMALL))
    assert content(destination, destination.stat("a")) == b"x" * SMALL


def test_a_head_that_fails_after_publication_is_not_a_success(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.check()
    proxy.inject("HeadObject", request=unavailable(0), times=1000)
    with pytest.raises(Unreachable):
        deliver(destination, "a", bytes_of(SMALL))
    proxy.clear()
    assert deliver(destination, "a", bytes_of(SMALL)).evidence == "sha256"


def strip_checksums(request: Request, response: Response) -> None:
    response.headers = {name: value for name, value in response.headers.items() if "checksum" not in name}


def test_a_server_that_no_longer_tells_checksums_is_an_alarm_and_then_refused(
    through: S3Place, proxy: FaultProxy
) -> None:
    now = [0.0]
    destination = through.make(clock=lambda: now[0])
    destination.check()
    proxy.inject("HeadObject", response=strip_checksums, times=10_000)
    stored = deliver(destination, "a", bytes_of(LARGE))
    assert stored.evidence == "readback"  # proven all the same, by the bytes
    assert [(event.kind, event.level) for event in through.events] == [("destination-downgrade", Level.ERROR)]
    with pytest.raises(NotSupported, match=r"put proof: md5 \(was sha256\)"):
        deliver(destination, "b", bytes_of(SMALL))
    proxy.clear()
    with pytest.raises(NotSupported):
        deliver(destination, "b", bytes_of(SMALL))  # not examined again at once
    now[0] += 61
    assert deliver(destination, "b", bytes_of(SMALL)).evidence == "sha256"


def test_a_downgrade_against_remembered_pins_is_refused(through: S3Place, proxy: FaultProxy) -> None:
    pins: list[dict[str, str]] = []
    through.make(on_pins=pins.append).check()
    proxy.inject("HeadObject", response=strip_checksums, times=10_000)
    weaker = through.make(pins=pins[-1], on_pins=pins.append)
    with pytest.raises(NotSupported):
        weaker.begin(Put("a", 1))
    assert len(pins) == 1
    assert through.events[-1].kind == "destination-downgrade"
    assert deliver(through.make(), "a", b"1").evidence == "md5"  # without pins this is what the endpoint is


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("told", [True, False], ids=["md5", "nothing"])
def test_endpoints_that_check_and_keep_less_are_proven_by_other_means(
    through: S3Place, proxy: FaultProxy, size: int, told: bool
) -> None:
    weaken(proxy, etags=told)
    pins: list[dict[str, str]] = []
    destination = through.make(on_pins=pins.append)
    data = bytes_of(size)
    stored = deliver(destination, "a", data)
    expected = ("md5" if size == SMALL else "md5-parts") if told else "readback"
    assert stored.evidence == expected
    assert pins[0]["create"] == pins[0]["create_parts"] == "checked"
    assert content(destination, stored) == data
    with pytest.raises(Conflict):
        deliver(destination, "a", bytes_of(size, seed=1))
    assert deliver(destination, "a", data).evidence == "readback"
    with pytest.raises(Conflict):
        deliver(destination, "a", b"new", replace=replace(stored, etag="0" * 32))
    new = deliver(destination, "a", b"new", replace=stored)
    destination.remove(new)
    assert through.everything() == []
    assert any("conditional writes are not honoured" in fact for fact in destination.check())


ETAG = re.compile(r"[0-9a-f]{32}(-\d+)?")


def unlike_md5(found: re.Match[str]) -> str:
    return hashlib.sha1(found.group().encode()).hexdigest()


def weaken(proxy: FaultProxy, *, etags: bool) -> None:
    """An endpoint that knows neither checksums nor conditions; without ``etags`` not even MD5."""
    hidden = ["if-none-match", "if-match"] + ([] if etags else ["content-md5"])

    def simplify(request: Request) -> None:
        for name in [*hidden, *(name for name in request.headers if "checksum" in name)]:
            request.headers.pop(name, None)
        if request.operation == "CompleteMultipartUpload":
            request.body = re.sub(rb"<(Checksum\w+)>[^<]*</\1>", b"", request.body)
        signed_anew(request)

    def blunt(request: Request, response: Response) -> None:
        strip_checksums(request, response)
        if not etags and request.operation in ("PutObject", "HeadObject") and "etag" in response.headers:
            response.headers["etag"] = ETAG.sub(unlike_md5, response.headers["etag"])
        if not etags and request.operation == "CompleteMultipartUpload":
            response.body = ETAG.sub(unlike_md5, response.body.decode()).encode()

    proxy.inject("*", request=simplify, response=blunt, times=10_000)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_lies_are_caught_by_reading_back_where_nothing_else_tells(
    through: S3Place, proxy: FaultProxy, size: int
) -> None:
    weaken(proxy, etags=False)
    destination = through.make()
    destination.check()
    proxy.clear()
    proxy.inject("PutObject" if size == SMALL else "UploadPart", request=lie, only=lambda r: r.path.endswith("/a"))
    weaken(proxy, etags=False)
    with pytest.raises(IntegrityError):
        deliver(destination, "a", bytes_of(size))
    assert through.everything() == []


def test_an_abort_after_the_connection_was_lost_is_silent_and_can_be_made_up_for(
    through: S3Place, proxy: FaultProxy
) -> None:
    upload = through.make().begin(Put("a", LARGE))
    upload.write(bytes_of(2 * PART))
    token = upload.resume_token
    proxy.inject("*", head=lambda request: 0, times=10_000)
    upload.abort()
    assert through.events[-1].kind == "upload-left-behind"
    assert through.unfinished() != []
    proxy.clear()
    successor = through.make()
    assert [json.loads(found.token)["upload_id"] for found in successor.unfinished()] == [
        json.loads(token)["upload_id"]
    ]
    assert json.loads(token)["key"].endswith("/a")
    successor.abandon(token)
    assert through.everything() == []


def test_a_probe_that_is_interrupted_leaves_nothing(through: S3Place, proxy: FaultProxy) -> None:
    for operation in ("HeadObject", "UploadPart", "CompleteMultipartUpload"):
        proxy.inject(operation, request=unavailable(0))
        with pytest.raises(Unreachable):
            through.make().begin(Put("a", 1))
        assert through.everything() == []


def test_the_probe_is_short(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.begin(Put("a", 1))
    assert len(proxy.seen) < 17  # two of them look for what a killed process left
    seen = len(proxy.seen)
    destination.begin(Put("b", 1))
    assert len(proxy.seen) == seen  # once per process


def test_credentials_that_may_not_delete_are_probed_once(through: S3Place, proxy: FaultProxy) -> None:
    pins: list[dict[str, str]] = []
    proxy.inject("DeleteObject", request=forbidden, times=10_000)
    destination = through.make(on_pins=pins.append)
    assert any("may not delete" in fact for fact in destination.check())
    assert pins[-1]["remove"] == "denied"
    before = len(through.objects())
    again = through.make(pins=pins[-1])
    again.begin(Put("a", 1))
    assert len(through.objects()) == before
    assert deliver(again, "a", bytes_of(LARGE)).evidence == "sha256-parts"


def forbidden(request: Request) -> Response:
    return Response(403, {"content-type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")


def test_stored_parts_of_other_sizes_are_recognised_by_their_bytes(s3: S3Place) -> None:
    """A publication is repeated by a host with another part size: same bytes, other checksum."""
    first = deliver(s3.make(), "a", bytes_of(3 * PART))
    again = deliver(s3.with_settings(part_size=PART + (1 << 20)), "a", bytes_of(3 * PART))
    assert (again.etag, again.evidence) == (first.etag, "readback")
    assert s3.everything() == ["a"]


def test_a_stale_claim_does_not_stand_in_the_way(
    through: S3Place, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quaymaster.destinations import s3_claim

    destination = through.make()
    destination.check()
    claims = f"{s3_claim.FOLDER}/{hashlib.sha256(b'a').hexdigest()[:32]}"
    through.overwrite(claims, b"a dead writer's")
    monkeypatch.setattr(s3_claim, "_PATIENCE", 3)
    with pytest.raises(Unreachable, match="Another writer"):
        deliver(destination, "a", bytes_of(LARGE))
    monkeypatch.setattr(s3_claim, "STALE", -1.0)
    assert deliver(destination, "a", bytes_of(LARGE)).evidence == "sha256-parts"
    assert through.everything() == ["a"]


def test_a_claim_whose_reply_was_lost_is_ours(through: S3Place, proxy: FaultProxy) -> None:
    destination = through.make()
    destination.check()
    proxy.inject("PutObject", response=drop, only=lambda request: ".quaymaster-claim" in request.path)
    assert deliver(destination, "a", bytes_of(LARGE)).evidence == "sha256-parts"
    assert through.everything() == ["a"]


def test_back_pressure_bounds_the_parts_in_memory(through: S3Place, proxy: FaultProxy) -> None:
    """With 3 parts on their way and one being filled, the writer waits."""
    import threading

    release, waiting, most, now = threading.Event(), threading.Semaphore(0), [0], [0]
    lock = threading.Lock()

    def hold(request: Request) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        waiting.release()
        release.wait(30)

    def let_go(request: Request, response: Response) -> None:
        with lock:
            now[0] -= 1

    destination, data, written = through.make(), bytes_of(12 * PART), [0]
    destination.check()
    proxy.inject("UploadPart", request=hold, response=let_go, times=1000)

    def count() -> None:
        written[0] += 1 << 20

    done: list[object] = []
    writer = threading.Thread(target=lambda: done.append(deliver(destination, "a", data, after_write=count)))
    writer.start()
    try:
        for _ in range(3):
            assert waiting.acquire(timeout=20)
        writer.join(0.3)
        assert written[0] <= 4 * PART
    finally:
        release.set()
        writer.join()
    assert most[0] == 3
    assert done[0].size == len(data)


def test_digests_of_the_whole_are_of_the_whole(s3: S3Place) -> None:
    """The digest that publish compares is built part by part in the order of the parts, whoever is sent first."""
    data = b"".join(bytes_of(PART, seed=number) for number in range(6))
    swapped = data[PART : 2 * PART] + data[:PART] + data[2 * PART :]
    with pytest.raises(IntegrityError):
        deliver(s3.make(), "a", swapped, digests=digests_of(data))
    assert deliver(s3.make(), "a", data).size == len(data)
