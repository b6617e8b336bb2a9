"""A bucket that cannot take a file: the wrong name, key or certificate parks it, a server that is away, slow or busy
only delays it (PRODUCT Q3). Nothing unfinished stays at the server."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quaymaster.model import State
from servers.faultproxy import FaultProxy, Request, Response, flip, unavailable
from servers.ports import free_ports
from servers.seaweed import Seaweed
from system.bucket import Bucket
from system.conftest import Home
from system.mishaps import is_calm, parked, retried, told, waiting
from system.service import Service, until

Serve = Callable[..., Service]
CONTENT = os.urandom(70_000)


def to(place: Bucket, home: Home, more: str = "", **sections: str) -> str:
    return home.config(destinations=place.destination(more=more), **sections)


def hanging_at_the_third_part(proxy: FaultProxy) -> tuple[threading.Event, threading.Event]:
    """Set when the third part of an upload has come, and to be set to let it go on."""
    begun, released = threading.Event(), threading.Event()

    def hangs(request: Request) -> None:
        begun.set()
        released.wait(60)

    proxy.inject("UploadPart", request=hangs, only=lambda request: request.query["partNumber"] == ["3"])
    return begun, released


def test_a_bucket_that_does_not_exist(home: Home, serve: Serve, bucket: Bucket) -> None:
    service = serve(to(bucket, home, 'bucket = "no-such-bucket"'))
    home.land("a", CONTENT)
    parked(service, "destination-missing", "no bucket for s3://no-such-bucket at http://127.0.0.1", "Create it")
    assert ".quaymaster-probe" not in service.log  # our own objects mean nothing to an operator


@pytest.mark.parametrize(
    ("pair", "code"),
    [(("other", "testsecret"), "InvalidAccessKeyId"), (("testkey", "other"), "SignatureDoesNotMatch")],
)
def test_a_wrong_key_pair_is_read_again_when_it_is_mended(
    home: Home, serve: Serve, bucket: Bucket, pair: tuple[str, str], code: str
) -> None:
    file = Path(bucket.credentials)
    right = file.read_text()
    file.write_text(f'access_key = "{pair[0]}"\nsecret_key = "{pair[1]}"\n')
    service = serve(to(bucket, home))
    home.land("a", CONTENT)
    job = parked(service, "permission-denied", "refuses access", code, f"credentials '{file}'")
    assert pair[1] not in service.log
    file.write_text(right)
    retried(service, job)
    service.until_done(1)
    assert bucket.content("a") == CONTENT


def test_a_secret_that_others_may_read_is_not_used(home: Home, serve: Serve, bucket: Bucket) -> None:
    os.chmod(bucket.credentials, 0o640)
    service = serve(to(bucket, home))
    told(service, "warning", "quaymaster.toml:", "[destination.archive] credentials", "mode 0640")
    home.land("a", CONTENT)
    advice = f"can be read by others (mode 0640); run: chmod 0600 {bucket.credentials}"
    job = parked(service, "permission-denied", "No usable credentials for s3://", advice)
    os.chmod(bucket.credentials, 0o600)
    retried(service, job)
    service.until_done(1)


def test_a_missing_secret(home: Home, serve: Serve, bucket: Bucket) -> None:
    os.unlink(bucket.credentials)
    service = serve(to(bucket, home))
    home.land("a", CONTENT)
    parked(service, "permission-denied", "No usable credentials", f"{bucket.credentials}: does not exist; create it")


def test_a_certificate_of_an_unknown_authority(home: Home, serve: Serve, bucket: Bucket, seaweed: Seaweed) -> None:
    assert seaweed.tls is not None
    service = serve(to(bucket, home, f'endpoint_url = "{seaweed.endpoint}"'))
    home.land("a", CONTENT)
    job = parked(service, "permanent", "certificate", "not trusted", "set ca_bundle to its PEM file")
    service.stop()
    given = f'endpoint_url = "{seaweed.endpoint}"\nca_bundle = "{seaweed.tls.ca_file}"'
    service.config_file.write_text(to(bucket, home, given))
    service.start()
    retried(service, job)
    service.until_done(1)
    assert bucket.content("a") == CONTENT


def test_a_ca_file_without_a_certificate(home: Home, serve: Serve, bucket: Bucket, seaweed: Seaweed) -> None:
    file = home.folder / "ca.pem"
    file.write_text("not a certificate\n")
    service = serve(to(bucket, home, f'endpoint_url = "{seaweed.endpoint}"\nca_bundle = "{file}"'))
    home.land("a", CONTENT)
    parked(service, "permanent", f"The CA file {file} cannot be used", "no certificate in PEM form")


def test_https_to_a_server_that_speaks_http(home: Home, serve: Serve, bucket: Bucket) -> None:
    service = serve(to(bucket, home, f'endpoint_url = "{bucket.endpoint.replace("http:", "https:")}"'))
    home.land("a", CONTENT)
    waiting(service, "unreachable", "TLS failed: wrong version number; is it http?")


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A server that tests may kill, and start again."""
    with Seaweed(tmp_path_factory.mktemp("mortal")) as server:
        server.make_bucket("mortal")
        yield server


@pytest.fixture
def there(mortal: Seaweed, home: Home) -> Iterator[Bucket]:
    secret = home.folder / "secret.toml"
    secret.write_text(f'access_key = "{mortal.access_key}"\nsecret_key = "{mortal.secret_key}"\n')
    secret.chmod(0o600)
    place = Bucket(mortal.client(), "mortal", f"{home.folder.name}/", mortal.http_endpoint, str(secret))
    yield place
    place.client.close()


def test_a_dead_server_is_told_with_its_reason_and_the_file_goes_when_it_is_back(
    home: Home, serve: Serve, mortal: Seaweed, there: Bucket
) -> None:
    mortal.kill()
    service = serve(to(there, home))
    home.land("a", CONTENT)
    waiting(service, "unreachable", f"s3://mortal at {mortal.http_endpoint} cannot be reached (Connection refused)")
    until(lambda: "Connection refused" in service.cli("status")[1]["destinations"][0]["error"])
    mortal.start()
    service.until_done(1)  # by itself
    assert there.content("a") == CONTENT
    until(lambda: service.cli("status")[1]["destinations"][0]["state"] == "ok")


def test_an_upload_that_a_dying_server_interrupted_goes_on_when_it_is_back(
    home: Home, serve: Serve, mortal: Seaweed, there: Bucket
) -> None:
    content = os.urandom(40 << 20)
    with FaultProxy(mortal.http_endpoint) as proxy:
        third = lambda request: request.query["partNumber"] == ["3"]  # noqa: E731
        proxy.inject("UploadPart", request=lambda request: mortal.kill(), only=third)
        service = serve(to(there, home, f'endpoint_url = "{proxy.endpoint}"', limits="parts = 1"))
        home.land("a", content)
        waiting(service, "unreachable", f"s3://mortal/{there.prefix}a", "cannot be reached")
        mortal.start()
        service.until_done(1)
        told(service, f"an interrupted upload of s3://mortal/{there.prefix}a", "goes on: 2 parts have arrived already")
        sent = [path for operation, path in proxy.seen if operation == "UploadPart" and path.endswith("/a")]
    assert sent.count(sent[0]) <= 4 + 8, "each part but the third once; that one as often as it was tried"
    assert there.content("a") == content
    assert there.uploads() == []
    with service.store() as store:
        assert store.uploads() == []
    is_calm(service.log)


def test_an_upload_that_the_server_denied_for_a_moment_is_removed_after_its_job_went_without_it(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    content = os.urandom(24 << 20)
    with FaultProxy(bucket.endpoint) as proxy:
        begun, released = hanging_at_the_third_part(proxy)
        service = serve(to(bucket, home, f'endpoint_url = "{proxy.endpoint}"', limits="parts = 1"))
        home.land("a", content)
        assert begun.wait(30)
        service.kill()
        released.set()
        proxy.clear()
        body = b"<?xml version='1.0'?><Error><Code>NoSuchUpload</Code></Error>"
        denies = Response(404, {"content-type": "application/xml"}, body)
        proxy.inject("ListParts", request=lambda _: denies, only=lambda request: request.path.endswith("/a"))
        service.start()
        service.until_done(1)
        service.stop()
        assert bucket.uploads() == ["a"]
        service.start()
        until(lambda: bucket.uploads() == [])
    assert bucket.content("a") == content
    with service.store() as store:
        until(lambda: not store.uploads())


def test_an_upload_of_a_job_that_was_given_up_after_a_crash_is_removed_at_the_next_start(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        begun, released = hanging_at_the_third_part(proxy)
        service = serve(to(bucket, home, f'endpoint_url = "{proxy.endpoint}"', limits="parts = 1"))
        home.land("a", os.urandom(24 << 20))
        assert begun.wait(30)
        service.kill()
        released.set()
    assert bucket.uploads() == ["a"]
    with service.store() as store:
        store.recover()
    assert service.cli("jobs", "drop", "1") == (0, {"dropped": [1], "refused": []})
    service.config_file.write_text(to(bucket, home))
    service.start()
    until(lambda: bucket.uploads() == [])
    assert bucket.objects() == {}
    assert service.states()[State.DROPPED] == 1


def test_a_storm_of_503_is_weathered_and_its_retry_after_is_kept(home: Home, serve: Serve, bucket: Bucket) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        asked: list[float] = []

        def busy(request: Request) -> Response:
            asked.append(time.monotonic())
            return unavailable(retry_after=4)(request)

        proxy.inject("*", request=busy, times=1)
        service = serve(to(bucket, home, f'endpoint_url = "{proxy.endpoint}"'))
        home.land("a", CONTENT)
        waiting(service, "unreachable", "cannot answer now (SlowDown")
        until(lambda: len(proxy.seen) > 1)
        assert time.monotonic() - asked[0] >= 3.5  # its own backoff would have been one second
        service.until_done(1)
    assert bucket.content("a") == CONTENT


def test_an_object_that_outlived_its_withdrawal_is_ours_to_replace(home: Home, serve: Serve, bucket: Bucket) -> None:
    """It read back damaged, its removal was not carried out, and before the next try a newer version has landed: that
    is no conflict, since the object is our own."""
    newer = CONTENT[::-1] + b"and more"

    def damage(request: Request, response: Response) -> None:
        response.body = flip(response.body)
        home.land("reads", newer)

    def is_reads(request: Request) -> bool:
        return request.path.endswith("/reads")

    with FaultProxy(bucket.endpoint) as proxy:
        proxy.inject("GetObject", response=damage, only=is_reads)
        proxy.inject("DeleteObject", request=lambda request: Response(204), only=is_reads)
        service = serve(to(bucket, home, f'endpoint_url = "{proxy.endpoint}"\n', watch='verify = "readback"'))
        home.land("reads", CONTENT)
        service.until_done(1)  # fails when one is parked
        until(lambda: [delivery.replaced for delivery in service.deliveries("reads")] == [True, False])
        assert proxy.count("DeleteObject") >= 1
    assert bucket.objects() == {"reads": len(newer)}
    assert bucket.content("reads") == newer
    is_calm(service.log)


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_delays_its_own_files_only(home: Home, serve: Serve, bucket: Bucket) -> None:
    with silent_server() as endpoint:
        there = bucket.destination(more=f'endpoint_url = "{endpoint}"\nread_timeout = "1s"')
        here = f'[destination.here]\ntype = "directory"\npath = "{home.archive}"\n'
        service = serve(home.config('destinations = ["archive", "here"]', there + here))
        home.land("a", CONTENT)
        waiting(service, "unreachable", "cannot be reached (read timeout)")
        until(lambda: home.arrived() == {b"a": CONTENT})
        assert service.stop() < 20


def test_a_thousand_files_for_a_dead_server_are_not_told_a_thousand_times(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    for number in range(1000):
        home.land(f"a{number}", b"x")
    (port,) = free_ports(1)
    service = serve(to(bucket, home, f'endpoint_url = "http://127.0.0.1:{port}"'))
    until(lambda: service.states()[State.WAITING] > 990, 60)
    code, found = service.cli("jobs", "--error", "unreachable")
    assert (code, len(found["jobs"])) == (0, 1000)  # each one is on record
    assert len(service.lines("Connection refused")) <= 8
    service.stop()
    assert len(service.lines("more times within", "quaymaster jobs --error unreachable")) == 1
    assert len(service.log.splitlines()) < 20


def test_the_thread_that_serves_a_slow_answer_is_not_in_the_way_of_a_stop(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    released = threading.Event()
    with FaultProxy(bucket.endpoint) as proxy:
        proxy.inject("*", request=lambda request: released.wait(60) and None, times=1)
        service = serve(to(bucket, home, f'endpoint_url = "{proxy.endpoint}"', service='stop_timeout = "1s"'))
        home.land("a", CONTENT)
        until(lambda: service.states()[State.RUNNING] == 1)
        try:
            assert service.stop() < 15
        finally:
            released.set()
        assert service.states()[State.QUEUED] == 1
    assert "1 job stays in the queue" in service.log
