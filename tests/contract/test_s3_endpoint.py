"""S3 in particular: what the operator is told when it cannot work, and what is stored beside the bytes."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract.places import BUCKET, PART, Keys, S3Place, Settings, bytes_of, content, deliver, digests_of
from quaymaster.destinations.base import Put
from quaymaster.destinations.s3 import S3
from quaymaster.destinations.s3_plan import MIB, part_size_for
from quaymaster.errors import (
    ConfigError,
    Conflict,
    DestinationMissing,
    IntegrityError,
    NameRefused,
    NotSupported,
    OutOfSpace,
    PermanentError,
    PermissionDenied,
    TemporaryError,
    TransferError,
    Unreachable,
)
from servers.faultproxy import FaultProxy, Response
from servers.ports import free_ports
from servers.seaweed import Seaweed
from servers.tls import Authority

SECRET = "a-secret-that-must-never-be-shown"


def everything_tried(destination: S3) -> Iterator[TransferError]:
    """The error of each operation that speaks to the server."""
    for attempt in (
        destination.check,
        lambda: destination.stat("a"),
        lambda: deliver(destination, "a", b"x"),
        lambda: list(destination.unfinished()),
    ):
        with pytest.raises(TransferError) as caught:
            attempt()
        assert SECRET not in str(caught.value)
        assert caught.value.advice
        assert caught.value.__cause__ is None
        yield caught.value


def kinds(destination: S3) -> set[type[TransferError]]:
    return {type(error) for error in everything_tried(destination)}


# What the operator is told


def test_a_dead_port_is_unreachable(s3: S3Place) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    errors = list(everything_tried(s3.with_settings(endpoint_url=endpoint)))
    assert {type(error) for error in errors} == {Unreachable}
    assert all(endpoint in str(error) and BUCKET in str(error) for error in errors)


def test_a_server_that_accepts_and_is_silent_is_unreachable(s3: S3Place) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        destination = s3.with_settings(endpoint_url=endpoint, read_timeout=0.3)
        with pytest.raises(Unreachable):
            destination.stat("a")


def test_something_that_is_not_s3_is_an_error_of_ours(s3: S3Place, proxied: FaultProxy) -> None:
    page = Response(200, {"content-type": "text/html"}, b"<html>Welcome to the printer</html>")
    proxied.inject("*", request=lambda request: page, times=10_000)
    with pytest.raises(TransferError):
        list(s3.with_settings(endpoint_url=proxied.endpoint).check())


def test_a_missing_bucket(s3: S3Place) -> None:
    errors = list(everything_tried(s3.with_settings(bucket="no-such-bucket")))
    assert {type(error) for error in errors} == {DestinationMissing}
    assert all("no-such-bucket" in str(error) for error in errors)


@pytest.mark.parametrize("keys", [Keys(secret_key=SECRET), Keys("nobody", SECRET), Keys(session_token=SECRET)])
def test_wrong_credentials(s3: S3Place, keys: Keys) -> None:
    destination = s3.make(credentials=lambda: keys)
    if keys.session_token:
        pytest.skip("SeaweedFS does not look at a session token that it did not give out") if _accepted(
            destination
        ) else None
    errors = list(everything_tried(destination))
    assert {type(error) for error in errors} == {PermissionDenied}
    assert all("credentials 'archive'" in str(error) for error in errors)


def _accepted(destination: S3) -> bool:
    try:
        destination.stat("a")
    except TransferError:
        return False
    return True


def test_rotated_credentials_are_read_again(s3: S3Place) -> None:
    current = [Keys(secret_key="old")]
    destination = s3.make(credentials=lambda: current[0])
    with pytest.raises(PermissionDenied):
        destination.check()
    current[0] = Keys()
    assert destination.check()


def test_credentials_that_cannot_be_read(s3: S3Place) -> None:
    def unreadable() -> Keys:
        raise ConfigError(["/etc/quaymaster/credentials/archive: readable by others; chmod 600 it"])

    with pytest.raises(PermissionDenied, match="chmod 600"):
        s3.make(credentials=unreadable).check()


def test_no_credentials_at_all(s3: S3Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    settings = replace(s3.settings, credentials=None)
    with pytest.raises(PermissionDenied, match="AWS credential chain"):
        s3.make(settings=settings, credentials=lambda: None).check()


def test_an_unknown_certificate_authority(s3_tls: S3Place, tmp_path: Path) -> None:
    other = Authority(str(tmp_path))
    for ca_bundle in (other.ca_file, None):
        errors = list(everything_tried(s3_tls.with_settings(ca_bundle=ca_bundle)))
        assert {type(error) for error in errors} == {PermanentError}
        assert all("ca_bundle" in str(error) for error in errors)


def test_a_missing_ca_file(s3_tls: S3Place) -> None:
    with pytest.raises(PermanentError, match=r"/no/such/ca\.pem"):
        s3_tls.with_settings(ca_bundle="/no/such/ca.pem").check()


def test_an_endpoint_that_is_no_address(s3: S3Place) -> None:
    with pytest.raises(PermanentError):
        s3.with_settings(endpoint_url="http://").stat("a")


@pytest.fixture
def proxied(seaweed: Seaweed) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.http_endpoint) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "RequestTimeTooSkewed", TemporaryError),
        (403, "AccessDenied", PermissionDenied),
        (400, "ExpiredToken", PermissionDenied),
        (507, "InsufficientStorage", OutOfSpace),
        (507, "XMinioStorageFull", OutOfSpace),
        (403, "QuotaExceeded", OutOfSpace),
        (400, "KeyTooLongError", NameRefused),
        (400, "BadDigest", IntegrityError),
        (400, "XAmzContentSHA256Mismatch", IntegrityError),
        (400, "RequestTimeout", Unreachable),
        (429, "TooManyRequests", Unreachable),
        (500, "InternalError", Unreachable),
        (502, "", Unreachable),
        (503, "SlowDown", Unreachable),
        (501, "NotImplemented", NotSupported),
        (400, "EntityTooLarge", NotSupported),
        (400, "InvalidStorageClass", PermanentError),
        (301, "PermanentRedirect", PermanentError),
        (404, "NoSuchBucket", DestinationMissing),
    ],
)
def test_every_refusal_has_its_meaning(
    s3: S3Place, proxied: FaultProxy, status: int, code: str, expected: type[TransferError]
) -> None:
    destination = s3.with_settings(endpoint_url=proxied.endpoint)
    destination.check()
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>the\nserver's words</Message></Error>"
    answer = Response(status, {"content-type": "application/xml"}, body.encode() if code else b"")
    proxied.inject("PutObject", request=lambda request: answer, times=100)
    with pytest.raises(expected) as caught:
        deliver(destination, "a", b"x")
    assert issubclass(type(caught.value), expected)
    assert "\n" not in str(caught.value)
    assert "time" in str(caught.value) or code != "RequestTimeTooSkewed"
    assert s3.everything() == []


# What is stored beside the bytes


@pytest.mark.parametrize("size", [10, 2 * PART])
@pytest.mark.parametrize("server", ["s3", "s3_tls"])
def test_what_is_stored_is_the_bytes_and_not_their_framing(
    request: pytest.FixtureRequest, server: str, size: int
) -> None:
    """A trailing checksum makes some servers keep ``aws-chunked`` as the content encoding."""
    place: S3Place = request.getfixturevalue(server)
    metadata = {"quaymaster-sha256": "ab" * 32, "quaymaster-compression": "zstd", "quaymaster-host": "Wäg 100% x"}
    deliver(place.make(), "a", bytes_of(size), metadata=metadata)
    head = place.client.head_object(Bucket=BUCKET, Key=place.settings.prefix + "a")
    assert not head.get("ContentEncoding")
    assert head["ContentType"] == "application/zstd"
    assert all(value.isascii() for value in head["Metadata"].values())
    assert place.make().stat("a").metadata == metadata


@pytest.mark.parametrize("size", [10, 2 * PART])
def test_tags_and_encryption_are_asked_for(s3: S3Place, size: int) -> None:
    tags = {"project": "run 7 & 8", "owner": "lab"}
    destination = s3.with_settings(tags=tags, sse="AES256", storage_class="STANDARD_IA")
    deliver(destination, "a", bytes_of(size))
    key = s3.settings.prefix + "a"
    found = s3.client.get_object_tagging(Bucket=BUCKET, Key=key)["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in found} == tags
    if size == 10:  # SeaweedFS does not show the others on an object that was sent in parts
        head = s3.client.head_object(Bucket=BUCKET, Key=key)
        assert (head["ServerSideEncryption"], head["StorageClass"]) == ("AES256", "STANDARD_IA")
    assert any("with its tags" in fact for fact in destination.check())


def test_a_versioned_bucket_keeps_what_others_wrote(seaweed: Seaweed, s3: S3Place) -> None:
    bucket = seaweed.make_bucket("versioned")
    s3.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    destination = s3.with_settings(bucket=bucket)
    small, large = deliver(destination, "a", b"small"), deliver(destination, "b", bytes_of(2 * PART))
    for stored in (small, large):
        assert stored.version_id
        with pytest.raises(Conflict):
            deliver(destination, stored.key, b"other")
        destination.remove(stored)
        assert destination.stat(stored.key) is None
    answer = s3.client.list_object_versions(Bucket=bucket, Prefix=s3.settings.prefix)
    assert [v["Key"] for v in answer.get("Versions", []) + answer.get("DeleteMarkers", [])] == []


# Arithmetic


@pytest.mark.parametrize("size", [0, 1, 160_000 * MIB - 1, 160_000 * MIB, 160_000 * MIB + 1, 5 << 40])
def test_any_size_up_to_5_tib_fits_10000_parts(size: int) -> None:
    part = part_size_for(size, 16 * MIB)
    assert part >= 16 * MIB
    assert part % MIB == 0
    assert -(-size // part) <= 10_000
    assert part == 16 * MIB or -(-size // (part - MIB)) > 10_000


def test_what_no_object_can_hold_is_refused_at_once(s3: S3Place) -> None:
    with pytest.raises(NotSupported, match="5 TiB"):
        s3.make().begin(Put("a", (5 << 40) + 1))
    assert s3.make().memory_needed(5 << 40) < 1100 * MIB


def test_a_key_longer_than_1024_bytes_with_its_prefix_is_refused_before_anything_is_sent(s3: S3Place) -> None:
    destination = s3.make(credentials=_never)
    for key in ("ü" * 512, "d/" * 510 + "file"):
        with pytest.raises(NameRefused, match="1024"):
            destination.begin(Put(key, 1))


def _never() -> Keys:
    raise AssertionError("nothing should be asked of the server")


# The process it runs in


def test_no_connection_and_no_library_before_first_use() -> None:
    code = (
        "import sys; from quaymaster.destinations.s3 import S3; from contract.places import Settings, Keys\n"
        "S3(Settings('p/', 'http://127.0.0.1:9'), credentials=Keys, emit=print).metadata_first(1)\n"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('boto3', 'botocore', 'urllib3', 's3transfer')))"
    )
    # The module of places brings nothing of the library along either.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True
    )
    assert done.stdout.strip() == "[]"


def test_24_threads_may_use_one_instance(s3: S3Place) -> None:
    from contract.places import race

    destination = s3.make()
    results = race(24, lambda n: deliver(destination, f"{n}", bytes_of(1000, seed=n)))
    assert [result.size for result in results] == [1000] * 24
    assert len(s3.objects()) == 24


def test_no_thread_is_left_behind(s3: S3Place) -> None:
    destination = s3.make()
    destination.check()
    before = set(threading.enumerate())
    deliver(destination, "a", bytes_of(3 * PART))
    with pytest.raises(IntegrityError):
        deliver(destination, "b", bytes_of(3 * PART), digests=digests_of(b""))
    upload = destination.begin(Put("c", 4 * PART))
    upload.write(bytes_of(2 * PART))
    upload.abort()
    assert set(threading.enumerate()) == before


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    with Seaweed(tmp_path / "data") as server:
        server.make_bucket(BUCKET)
        destination = S3(Settings("p/", server.endpoint), credentials=Keys, emit=lambda event: None)
        data = bytes_of(3 * PART)
        upload = destination.begin(Put("a", len(data)))
        upload.write(data[: 2 * PART])
        server.kill()

        def go_on() -> None:
            upload.write(data[2 * PART :])
            upload.publish(digests_of(data), {})

        with pytest.raises(Unreachable):
            go_on()
        upload.abort()
        server.start()
        destination.abandon(upload.resume_token)
        assert list(destination.unfinished()) == []
        assert content(destination, deliver(destination, "a", data)) == data
        destination.close()


def test_a_parts_reply_that_names_other_bytes(s3: S3Place, proxied: FaultProxy) -> None:
    """A server's error reply never becomes a success, whatever status it wears: Complete may say 200 and mean 500."""
    destination = s3.with_settings(endpoint_url=proxied.endpoint)
    destination.check()
    body = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>later</Message></Error>"
    answer = Response(200, {"content-type": "application/xml"}, body)
    proxied.inject("CompleteMultipartUpload", request=lambda request: answer, times=100)
    with pytest.raises(Unreachable):
        deliver(destination, "a", bytes_of(2 * PART))
    assert s3.everything() == []


def test_memory_is_given_back_after_an_upload(s3: S3Place) -> None:
    """An idle service stays small: 60 MiB of buffers must not stay with the C library."""
    code = (
        "import sys; from contract.places import *\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE') >> 20\n"
        "destination = S3(Settings(*sys.argv[1:]), credentials=Keys, emit=print)\n"
        "destination.check(); before = rss()\n"
        "upload = destination.begin(Put('a', 16 * PART)); whole = hashlib.sha256()\n"
        "for number in range(16):\n"
        "    data = bytes_of(PART, number); whole.update(data); upload.write(data)\n"
        "upload.publish(Digests(16 * PART, whole.hexdigest()), {})\n"
        "print(rss() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, s3.settings.prefix, str(s3.settings.endpoint_url)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True,
    )  # fmt: skip
    assert int(done.stdout) < 20
