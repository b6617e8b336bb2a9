"""A source that cannot be read, is not what it seems, or changes while it is read: nothing of it is delivered that was
not there as a whole, and what can be delivered is (PRODUCT W3, W8, X1)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from quaymaster.model import State
from servers.faultproxy import FaultProxy, Request
from system.bucket import Bucket
from system.conftest import Home, quoted
from system.faulty_filesystem import FaultyFilesystem, reason_to_skip
from system.mishaps import AS_NOBODY, NOBODY, is_calm, no_nobody, parked, told, waiting
from system.service import Service, until

Serve = Callable[..., Service]
CONTENT = os.urandom(70_000)
PART = 5 << 20


# -- permission --


@pytest.fixture
def foreign() -> Iterator[tuple[Home, Service]]:
    """A service that runs as nobody, and a landing that belongs to somebody else."""
    folder = Path(mkdtemp(prefix="quaymaster-test-"))
    home = Home(folder)
    for directory in (folder, home.archive):
        os.chown(directory, NOBODY, NOBODY)
    folder.chmod(0o755)
    service = Service(home.config('rescan_interval = "1s"'), folder, wrapper=AS_NOBODY)
    try:
        yield home, service
    finally:
        service.kill()
        print(service.log)
        shutil.rmtree(folder)


@pytest.mark.skipif(bool(no_nobody()), reason=no_nobody())
def test_what_the_service_may_not_read_is_named_and_taken_once_it_may(foreign: tuple[Home, Service]) -> None:
    home, service = foreign
    home.land("closed", CONTENT)
    home.land("below/closed", CONTENT)
    (home.landing / "closed").chmod(0o600)
    (home.landing / "below").chmod(0o700)
    service.start()
    told(service, "warning", f"{home.landing}/closed cannot be read (permission denied)", "read permission")
    told(service, "warning", f"The directory {home.landing}/below cannot be listed (Permission denied)")
    for path in ("closed", "below/closed"):  # root may read both: what counts is what the service may
        assert "[missing]" in service.command("why", str(home.landing / path)).stdout
    until(lambda: "not taken: 1 file, 1 unreadable directory" in service.command("status").stdout)
    (home.landing / "closed").chmod(0o644)
    (home.landing / "below").chmod(0o755)
    service.until_done(2)
    assert home.arrived() == {b"closed": CONTENT, b"below/closed": CONTENT}
    assert len(service.lines("cannot be")) == 2  # each was told once, although it was scanned every second
    service.stop()


@pytest.mark.skipif(bool(no_nobody()), reason=no_nobody())
def test_a_destination_that_the_service_may_not_write_to(foreign: tuple[Home, Service]) -> None:
    home, service = foreign
    home.archive.chmod(0o555)
    service.start()
    told(service, "warning", "[destination.archive] path", "cannot be written to")
    home.land("a", CONTENT)
    job = parked(service, "permission-denied", f"{home.archive}/a", "Permission denied", "Give the service's user")
    home.archive.chmod(0o755)
    assert service.cli("jobs", "retry", "--error", "permission-denied") == (0, {"retried": [job.id], "refused": []})
    service.until_done(1)
    service.stop()


# -- the watched directory --


def test_a_watched_directory_may_come_go_and_come_back(home: Home, serve: Serve) -> None:
    home.landing.rmdir()
    service = serve(home.config())
    told(service, "error", f"landing: {home.landing} does not exist. Create the directory, or mount what it is on")
    until(lambda: service.cli("status")[1]["watches"][0]["state"] == "outage")
    assert "does not exist" in service.command("why", str(home.landing / "a")).stdout
    home.land("a", CONTENT)
    service.until_done(1)
    home.landing.rename(home.folder / "away")
    told(service, "error", "was removed, renamed or unmounted", "as soon as it is back")
    home.landing.mkdir()
    home.land("b", CONTENT)
    service.until_done(2)
    assert home.arrived() == {b"a": CONTENT, b"b": CONTENT}  # and what was in the old one is not gone


# -- what is not a plain file --


def test_links_and_special_files_are_never_opened(home: Home, serve: Serve) -> None:
    outside = home.folder / "outside"
    outside.write_bytes(b"secret")
    (home.landing / "link").symlink_to(outside)
    (home.landing / "directory").symlink_to("/etc")
    os.mkfifo(home.landing / "fifo")
    home.land("one", CONTENT)
    os.link(home.landing / "one", home.landing / "two")
    home.landing.chmod(0o777)  # so that somebody else may have made the link
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(os.path.relpath(home.landing / "socket"))
        home.land("plain", b"plain")
        service = serve(home.config())
        service.until_done(1)
        told(service, "landing/one", "has 2 hard links", "set hard_links = true")
        until(lambda: "not taken: 2 files" in service.command("status").stdout)
        for name, text in {
            "link": "symbolic link", "directory/passwd": "symbolic link", "fifo": "only regular files",
            "socket": "only regular files", "one": "hard links",
        }.items():  # fmt: skip
            assert text in service.command("why", str(home.landing / name)).stdout
    assert home.arrived() == {b"plain": b"plain"}
    assert len(service.jobs()) == 1


# -- changes while it is read --


def grows(path: bytes) -> bytes:
    with open(path, "ab") as file:
        file.write(b"more")
    return content_of(path)


def shrinks(path: bytes) -> bytes:
    os.truncate(path, PART + 1)
    return content_of(path)


def is_replaced(path: bytes) -> bytes:
    with open(path + b".part", "wb") as file:
        file.write(os.urandom(8 * PART))
    os.rename(path + b".part", path)
    return content_of(path)


def is_rewritten_in_place(path: bytes) -> bytes:
    with open(path, "r+b") as file:
        file.seek(7 * PART)
        file.write(b"other bytes, same size")
    return content_of(path)


def content_of(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("change", [grows, shrinks, is_replaced, is_rewritten_in_place])
def test_a_file_that_changes_while_it_is_sent_arrives_as_its_new_version_only(
    home: Home, serve: Serve, bucket: Bucket, change: Callable[[bytes], bytes]
) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        path = home.land("a", os.urandom(8 * PART))
        after: list[bytes] = []
        visible: list[dict[str, int]] = []

        def change_it(request: Request) -> None:
            after.append(change(path))
            visible.append(bucket.objects())

        proxy.inject("UploadPart", request=change_it, only=lambda request: request.query["partNumber"] == ["2"])
        settings = f'endpoint_url = "{proxy.endpoint}"'
        service = serve(home.config(destinations=bucket.destination(more=settings), limits="parts = 1"))
        service.until_done(1)
        assert service.states()[State.SUPERSEDED] == 1
    assert bucket.objects() == {"a": len(after[0])}
    assert bucket.content("a") == after[0]
    assert visible == [{}]
    assert bucket.uploads() == []
    told(service, "landing/a", "was changed while it was read. The newer version is taken")


def test_a_file_that_vanishes_while_it_is_sent_is_looked_for_and_then_parked(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        content = os.urandom(8 * PART)
        path = home.land("a", content)
        proxy.inject("UploadPart", request=lambda request: os.unlink(path))
        settings = f'endpoint_url = "{proxy.endpoint}"'
        service = serve(home.config(destinations=bucket.destination(more=settings), limits="parts = 1"))
        job = parked(service, "source-vanished", f"{home.landing}/a is gone", "jobs drop")
        assert job.attempts == 3
        assert bucket.objects() == {}
        assert bucket.uploads() == []
        why = service.command("why", os.fsdecode(path)).stdout
        assert "there is no file of that name now" in why
        home.land("a", content)
        until(lambda: bucket.objects() == {"a": len(content)})
    assert bucket.content("a") == content


# -- errors of the medium --


@pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
@pytest.mark.parametrize("stage", ["true", "false"])
def test_an_error_on_reading_is_tried_again_until_it_is_over(home: Home, serve: Serve, stage: str) -> None:
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        (filesystem.held / "a").write_bytes(CONTENT)
        filesystem.fail(read="EIO")
        watch = f'path = {quoted(filesystem.seen)}\npoll_interval = "0.2s"\nstage = {stage}'
        config = home.config(watch).replace(f"path = {quoted(home.landing)}\n", "")
        service = serve(config)
        waiting(service, "source-unavailable", f"{filesystem.seen}/a cannot be read now (Input/output error)")
        assert home.arrived() == {}
        assert home.leftovers() == []
        filesystem.fail()
        service.until_done(1)
    assert home.arrived() == {b"a": CONTENT}


# -- inotify --


def may_limit_inotify() -> bool:
    script = "echo 20 >/proc/sys/user/max_inotify_watches"
    return not subprocess.run(["unshare", "-U", "-r", "sh", "-c", script], capture_output=True).returncode


@pytest.mark.skipif(not may_limit_inotify(), reason="no user namespace with limits of its own can be made")
@pytest.mark.parametrize(
    ("limit", "advice"),
    [("max_inotify_watches", "sysctl fs.inotify.max_user_watches="), ("max_inotify_instances", "max_user_instances=")],
)
def test_without_enough_inotify_it_polls_and_says_how_to_mend_it(home: Home, limit: str, advice: str) -> None:
    for number in range(50):
        (home.landing / f"d{number}").mkdir()
    script = f'echo {20 if "watches" in limit else 0} >/proc/sys/user/{limit}; exec "$@"'
    wrapper = ["unshare", "-U", "-r", "sh", "-c", script, "sh"]
    service = Service(home.config('poll_interval = "0.3s"'), home.folder, wrapper=wrapper)
    try:
        service.start()
        told(service, "warning", f"so {home.landing} is polled every 0.3 s. To have it watched: ", advice)
        home.land("d49/a", CONTENT)
        until(lambda: home.arrived() == {b"d49/a": CONTENT})
        until(lambda: advice in " ".join(service.command("status").stdout.split()))
        assert "the watch is degraded" in service.command("why", str(home.landing / "d48/b")).stdout
        service.stop()
        is_calm(service.log)
    finally:
        service.kill()
