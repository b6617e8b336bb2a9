"""Files that change after they were delivered, or while they are: a newer version is a file of its own, and no mixture
of two versions is ever delivered (PRODUCT W8)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from quaymaster.model import State
from servers.faultproxy import FaultProxy
from system.bucket import Bucket
from system.conftest import Home, quoted
from system.evidence import sha256
from system.service import Service, until

Serve = Callable[..., Service]
OLD, NEW = b"old reads\n" * 1000, b"old reads\n" * 1000 + b"and new ones\n" * 500


@pytest.mark.parametrize("place", ["directory", "bucket"])
def test_a_newer_version_takes_the_place_of_our_copy(home: Home, serve: Serve, bucket: Bucket, place: str) -> None:
    service = serve(home.config("", bucket.destination() if place == "bucket" else ""))
    home.land("reads", OLD)
    service.until_done(1)
    home.land("reads", NEW)
    service.until_done(2)
    if place == "bucket":
        assert bucket.objects() == {"reads": len(NEW)}
        assert bucket.content("reads") == NEW
        assert bucket.metadata("reads")["quaymaster-sha256"] == sha256(NEW)
    else:
        assert home.arrived() == {b"reads": NEW}
    first, second = service.deliveries("reads")
    assert (first.replaced, second.replaced) == (True, False)
    assert (first.proof.source.sha256, second.proof.source.sha256) == (sha256(OLD), sha256(NEW))
    service.stop()


def test_both_versions_are_kept_when_the_config_says_so(home: Home, serve: Serve, bucket: Bucket) -> None:
    destinations = (
        bucket.destination("second") + f'[destination.archive]\ntype = "directory"\npath = "{home.archive}"\n'
    )
    service = serve(home.config('on_change = "keep-both"\ndestinations = ["archive", "second"]', destinations))
    for number, content in enumerate((OLD, NEW, b"once more"), start=1):
        home.land("run/reads.fastq", content)
        service.until_done(number)
    kept = {"run/reads.fastq": OLD, "run/reads~2.fastq": NEW, "run/reads~3.fastq": b"once more"}
    assert home.arrived() == {name.encode(): content for name, content in kept.items()}
    assert {key: bucket.content(key) for key in bucket.objects()} == kept
    service.stop()


def test_a_change_is_refused_when_the_config_says_so(home: Home, serve: Serve) -> None:
    service = serve(home.config('on_change = "refuse"'))
    home.land("reads", OLD)
    service.until_done(1)
    home.land("reads", NEW)
    (job,) = until(lambda: service.jobs(states=(State.PARKED,)))
    assert job.error_code == "conflict"
    assert "refuse" in job.error
    assert home.arrived() == {b"reads": OLD}
    code, dropped = service.cli("jobs", "drop", str(job.id))
    assert (code, dropped["dropped"]) == (0, [job.id])
    service.stop()


def test_what_others_put_there_is_never_overwritten(home: Home, serve: Serve, bucket: Bucket) -> None:
    destinations = (
        bucket.destination("second") + f'[destination.archive]\ntype = "directory"\npath = "{home.archive}"\n'
    )
    (home.archive / "reads").write_bytes(b"somebody else's")
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + "reads", Body=b"theirs too")
    service = serve(home.config('destinations = ["archive", "second"]', destinations))
    home.land("reads", OLD)
    (job,) = until(lambda: service.jobs(states=(State.PARKED,)))
    assert job.error_code == "conflict"
    assert home.arrived() == {b"reads": b"somebody else's"}
    assert bucket.content("reads") == b"theirs too"
    os.unlink(home.archive / "reads")
    bucket.client.delete_object(Bucket=bucket.name, Key=bucket.prefix + "reads")
    code, retried = service.cli("jobs", "retry", str(job.id))
    assert (code, retried["retried"]) == (0, [job.id])
    service.until_done(1)
    assert home.arrived() == {b"reads": OLD}
    assert bucket.content("reads") == OLD
    service.stop()


def test_a_copy_of_ours_that_somebody_changed_is_not_overwritten(home: Home, serve: Serve) -> None:
    service = serve(home.config())
    home.land("reads", OLD)
    service.until_done(1)
    (home.archive / "reads").write_bytes(b"annotated by hand")
    home.land("reads", NEW)
    (job,) = until(lambda: service.jobs(states=(State.PARKED,)))
    assert job.error_code == "conflict"
    assert home.arrived() == {b"reads": b"annotated by hand"}
    service.stop()


@contextmanager
def upload_held(proxy: FaultProxy) -> Iterator[threading.Event]:
    """Parts of files called *.bin wait while this is open. Yields an event that is set when the first one does."""
    waits, go = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        waits.set()
        go.wait(60)

    proxy.inject("UploadPart", request=hold, times=1_000_000, only=lambda request: request.path.endswith(".bin"))
    try:
        yield waits
    finally:
        proxy.clear()
        go.set()


LARGE = os.urandom(1 << 20) * 24


def touch(path: bytes) -> tuple[bytes, bytes]:
    os.utime(path)
    return path, LARGE


def grow(path: bytes) -> tuple[bytes, bytes]:
    with open(path, "ab") as file:
        file.write(b"more")
    return path, LARGE + b"more"


def shrink(path: bytes) -> tuple[bytes, bytes]:
    os.truncate(path, 7 << 20)
    return path, LARGE[: 7 << 20]


def change_inside(path: bytes) -> tuple[bytes, bytes]:
    """In place, with the size as it was."""
    with open(path, "r+b") as file:
        file.seek(9 << 20)
        file.write(b"changed")
    changed = bytearray(LARGE)
    changed[9 << 20 : (9 << 20) + 7] = b"changed"
    return path, bytes(changed)


def replace(path: bytes) -> tuple[bytes, bytes]:
    with open(path + b".new", "wb") as file:
        file.write(LARGE[::-1])
    os.rename(path + b".new", path)
    return path, LARGE[::-1]


def rename(path: bytes) -> tuple[bytes, bytes]:
    os.rename(path, path + b".renamed")
    return path + b".renamed", LARGE


@pytest.mark.parametrize("change", [touch, grow, shrink, change_inside, replace, rename])
def test_a_change_while_it_is_uploaded_delivers_the_new_version_alone(
    home: Home, serve: Serve, bucket: Bucket, change: Callable[[bytes], tuple[bytes, bytes]]
) -> None:
    """With room for two parts in memory, the upload is held while most of the file is not read yet."""
    with FaultProxy(bucket.endpoint) as proxy:
        destination = bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")
        service = serve(home.config('exclude = ["*.new"]', destination, limits="parts = 1"))
        with upload_held(proxy) as waits:
            path = home.land("model.bin", LARGE)
            assert waits.wait(30)
            new_path, expected = change(path)
            home.land("neighbour", b"is not held up")
            until(lambda: "neighbour" in bucket.objects())
        service.until_done(2)
        name = os.path.basename(new_path).decode()
        assert set(bucket.objects()) == {name, "neighbour"}
        assert sha256(bucket.content(name)) == sha256(expected)
        assert bucket.metadata(name)["quaymaster-sha256"] == sha256(expected)
        (older,) = [job for job in service.jobs() if job.state is not State.DONE]
        assert older.state is State.SUPERSEDED
        assert older.version.path == b"model.bin"
        assert bucket.uploads() == []
        assert [d.proof.source.sha256 for d in service.deliveries(name)] == [sha256(expected)]
        service.stop()


def test_a_newer_version_that_lands_while_the_older_is_published_replaces_it(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    """The older one was whole and has been read to its end: it is delivered, and then the newer one is."""
    with FaultProxy(bucket.endpoint) as proxy:
        destination = bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")
        service = serve(home.config("", destination))
        with upload_held(proxy) as waits:
            home.land("model.bin", LARGE)
            assert waits.wait(30)
            until(lambda: "publish" in str(service.progress()))
            home.land("model.bin", LARGE[::-1])
            until(lambda: len(service.jobs()) == 2)
        service.until_done(2)
        assert list(bucket.objects()) == ["model.bin"]
        assert sha256(bucket.content("model.bin")) == sha256(LARGE[::-1])
        older, newer = service.deliveries("model.bin")
        assert (older.replaced, newer.replaced) == (True, False)
        service.stop()


def test_a_file_renamed_before_its_turn_goes_under_its_new_name_only(home: Home, serve: Serve, bucket: Bucket) -> None:
    """One file at a time, and the first one is held: the second is renamed while it waits in the queue."""
    with FaultProxy(bucket.endpoint) as proxy:
        destination = bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")
        service = serve(home.config("", destination, limits="files = 1"))
        with upload_held(proxy) as waits:
            home.land("first.bin", LARGE)
            assert waits.wait(30)
            path = home.land("before", b"the same file")
            until(lambda: [job for job in service.jobs() if job.version.path == b"before"])
            os.rename(path, home.landing / "after")
        service.until_done(2)
        assert set(bucket.objects()) == {"first.bin", "after"}
        assert bucket.content("after") == b"the same file"
        service.stop()
