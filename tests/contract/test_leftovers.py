"""What a killed process left at a destination is known before it is there, and goes when the next one is told of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from contract.places import PART, DirectoryPlace, S3Place, bytes_of, content, deliver, digests_of
from quaymaster.destinations.base import Put
from quaymaster.destinations.s3_claim import Claim
from quaymaster.errors import PermanentError, Unreachable
from servers.faultproxy import FaultProxy, Request, Reset, Response, unavailable
from servers.seaweed import Seaweed

LARGE = 2 * PART + 5


class Killed(BaseException):
    """The end of the process."""


@pytest.fixture
def dead_tag() -> str:
    """What a process of this host that has ended had for a tag."""
    code = "from quaymaster.destinations.owner import own_tag; print(own_tag())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.http_endpoint) as between:
        yield between


@pytest.fixture
def through(s3: S3Place, proxy: FaultProxy) -> S3Place:
    s3.settings = replace(s3.settings, endpoint_url=proxy.endpoint)
    return s3


def reply_lost(request: Request, response: Response) -> None:
    raise Reset


def test_a_part_is_noted_before_it_exists(ext4: DirectoryPlace) -> None:
    seen: list[tuple[str, list[str]]] = []
    upload = ext4.make().begin(Put("run/a", 1, note=lambda token: seen.append((token, ext4.everything()))))
    assert seen == [(upload.resume_token, ["run"])]
    assert any(name.endswith(".part") for name in ext4.everything())
    assert ext4.make().abandon(seen[0][0])
    assert ext4.everything() == ["run"]


def test_a_note_that_cannot_be_made_leaves_nothing(ext4: DirectoryPlace) -> None:
    def full(token: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        ext4.make().begin(Put("a", 1, note=full))
    assert ext4.everything() == []


def test_an_upload_is_noted_before_it_is_created_and_again_with_its_number(s3: S3Place) -> None:
    noted: list[str] = []
    unfinished: list[int] = []

    def note(token: str) -> None:
        noted.append(token)
        unfinished.append(len(s3.unfinished()))

    upload = s3.make().begin(Put("a", LARGE, note=note))
    assert noted == []
    upload.write(bytes_of(LARGE))
    assert unfinished == [0, 1]
    assert [bool(json.loads(token)["upload_id"]) for token in noted] == [False, True]
    assert noted[-1] == upload.resume_token
    upload.abort()


def test_an_upload_whose_number_never_came_is_found_by_its_key(through: S3Place, proxy: FaultProxy) -> None:
    noted: list[str] = []
    destination = through.make()
    upload = destination.begin(Put("a", LARGE, note=noted.append))
    other = destination.begin(Put("another", LARGE))
    other.write(bytes_of(LARGE))
    proxy.inject("CreateMultipartUpload", response=reply_lost, times=10)
    with pytest.raises(Unreachable):
        upload.write(bytes_of(LARGE))
    upload.abort()
    assert upload.resume_token == noted[0]
    assert len(through.unfinished()) > 1
    assert through.make().abandon(noted[0])
    (left,) = through.unfinished()
    assert left.endswith("/another")
    other.abort()


def test_an_upload_that_the_server_makes_after_it_was_looked_for_is_found_by_a_later_look(
    through: S3Place, proxy: FaultProxy
) -> None:
    """A stalled server has the request, its sender is killed, and the next process is quicker than the server."""
    noted: list[str] = []
    now = [1000.0]
    upload = through.make(now=lambda: now[0]).begin(Put("a", LARGE, note=noted.append))
    proxy.inject("CreateMultipartUpload", request=lambda _: Response(400), only=lambda r: r.path.endswith("/a"))
    with pytest.raises(PermanentError):
        upload.write(bytes_of(LARGE))
    successor = through.make(now=lambda: now[0])
    assert not successor.abandon(noted[0])
    through.client.create_multipart_upload(Bucket=through.settings.bucket, Key=f"{through.settings.prefix}a")
    assert successor.abandon(noted[0])
    assert through.unfinished() == []
    assert not successor.abandon(noted[0])
    now[0] += 61
    assert successor.abandon(noted[0]), "it never comes"


def refuses(status: int, code: str) -> Callable[[Request], Response]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    return lambda request: Response(status, {"content-type": "application/xml"}, body)


@pytest.mark.parametrize("answer", ["busy", "lost"])
def test_an_upload_is_created_again_only_after_an_answer_that_it_was_not(
    through: S3Place, proxy: FaultProxy, answer: str
) -> None:
    """A second one would hide the one that a lost answer may have told of: nobody would look for it any more."""
    noted: list[str] = []
    destination = through.make()
    destination.check()  # the probe creates uploads too
    before = proxy.count("CreateMultipartUpload")
    upload = destination.begin(Put("a", LARGE, note=noted.append))
    if answer == "busy":
        proxy.inject("CreateMultipartUpload", request=unavailable(0))
        upload.write(bytes_of(LARGE))
        assert proxy.count("CreateMultipartUpload") - before == 2
        assert [bool(json.loads(token)["upload_id"]) for token in noted] == [False, True]
    else:
        proxy.inject("CreateMultipartUpload", response=reply_lost)
        with pytest.raises(Unreachable):
            upload.write(bytes_of(LARGE))
        assert proxy.count("CreateMultipartUpload") - before == 1
        upload.abort()
        assert upload.resume_token == noted[0]
        assert destination.abandon(noted[0])
    upload.abort()
    assert through.unfinished() == []


@pytest.mark.parametrize(
    ("status", "code", "kept"),
    [
        (400, "ExpiredToken", True), (403, "AccessDenied", True), (503, "SlowDown", True),
        (404, "NoSuchUpload", False), (501, "NotImplemented", False),
    ],
)  # fmt: skip
def test_a_token_is_forgotten_only_when_nothing_is_left_to_ask_for(
    through: S3Place, proxy: FaultProxy, status: int, code: str, kept: bool
) -> None:
    """What is refused today, with credentials that ran out, may be allowed tomorrow."""
    destination = through.make()
    upload = destination.begin(Put("a", LARGE))
    upload.write(bytes_of(LARGE))
    proxy.inject("AbortMultipartUpload", request=refuses(status, code), times=3)
    upload.abort()
    token = upload.resume_token
    assert bool(token) is (code != "NoSuchUpload")
    if token:
        proxy.clear()
        proxy.inject("AbortMultipartUpload", request=refuses(status, code))
        assert destination.abandon(token) is not kept
        assert destination.abandon(token), "as soon as it is allowed, it is gone"
        assert through.unfinished() == []


def test_an_upload_under_way_is_not_taken_for_one_left_behind(s3: S3Place) -> None:
    """A newer version of a file goes to the same key while what an older one may have left is looked for."""
    destination, older = s3.make(now=lambda: time.time() + 61), []
    first = s3.make().begin(Put("a", LARGE, note=older.append))
    first.write(bytes_of(LARGE))
    first.abort()
    newer = destination.begin(Put("a", LARGE))
    newer.write(bytes_of(LARGE, seed=1))
    assert not destination.abandon(older[0])
    stored = newer.publish(digests_of(bytes_of(LARGE, seed=1)), {})
    assert content(destination, stored) == bytes_of(LARGE, seed=1)
    assert destination.abandon(older[0])


def test_a_claim_of_a_killed_publisher_keeps_nobody_waiting(s3: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[str] = []
    upload = s3.make().begin(Put("a", LARGE, note=noted.append))
    upload.write(bytes_of(LARGE))
    with monkeypatch.context() as killed:
        killed.setattr(Claim, "_remove", lambda *_: None)
        upload.publish(digests_of(bytes_of(LARGE)), {})
    assert any(name.startswith(".quaymaster-claim/") for name in s3.objects())
    assert s3.make().abandon(noted[-1])
    assert s3.everything() == ["a"]


def test_probes_of_a_killed_process_go_with_the_next_examination(s3: S3Place, dead_tag: str) -> None:
    folder = f"{s3.settings.prefix}.quaymaster-probe/"
    bucket = {"Bucket": s3.settings.bucket}
    s3.client.put_object(Key=f"{folder}{dead_tag}-0/object", Body=b"left", **bucket)
    s3.client.create_multipart_upload(Key=f"{folder}{dead_tag}-0/object", **bucket)
    s3.client.put_object(Key=f"{folder}00000000-1-1-0/object", Body=b"of another host", **bucket)
    deliver(s3.make(), "a", b"content")
    assert s3.everything() == [".quaymaster-probe/00000000-1-1-0/object", "a"]
