"""What becomes of the source, and of a file with several destinations: nothing is removed before every copy is proven
(PRODUCT P10, P11)."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable

import pytest

from bench.data import MIB, fastq, make
from quaymaster.model import State
from servers.faultproxy import FaultProxy, Request, Reset
from system.bucket import Bucket
from system.conftest import Home, files_below, quoted
from system.evidence import expanded_sha256, file_sha256
from system.service import Service, until

Serve = Callable[..., Service]
TIME_NS = 1_234_567_890_123_456_789
COMPRESS = 'compress = { format = "zstd", level = 1, min_size = "1MiB" }'


def land_some(home: Home) -> dict[str, str]:
    """Made elsewhere and moved in, since the service may remove them at once: path -> SHA-256."""
    made = home.folder / "made"
    (made / "run").mkdir(parents=True)
    (made / "small").write_bytes(b"small file")
    os.chmod(made / "small", 0o600)
    (made / "run/empty").touch()
    os.utime(made / "run/empty", ns=(TIME_NS, TIME_NS))
    make(made / "run/reads.fastq", fastq, 20 * MIB)
    digests = {name: file_sha256(made / name) for name in ("small", "run/empty", "run/reads.fastq")}
    for name in os.listdir(made):
        os.rename(made / name, home.landing / name)
    return digests


def check_copies(home: Home, expected: dict[str, str]) -> None:
    for name, digest in expected.items():
        assert expanded_sha256(home.archive / (name + (".zst" if name.endswith("fastq") else ""))) == digest


def test_keep_leaves_the_sources_alone(home: Home, serve: Serve) -> None:
    service = serve(home.config(COMPRESS))
    expected = land_some(home)
    before = {path: os.stat(path) for path in files_below(os.fsencode(home.landing))}
    service.until_done(3)
    check_copies(home, expected)
    after = {path: os.stat(path) for path in files_below(os.fsencode(home.landing))}
    assert {p: (s.st_ino, s.st_size, s.st_mtime_ns) for p, s in after.items()} == {
        p: (s.st_ino, s.st_size, s.st_mtime_ns) for p, s in before.items()
    }
    service.stop()


@pytest.mark.parametrize("place", ["directory", "bucket"])
def test_delete_removes_a_source_once_it_is_proven(home: Home, serve: Serve, bucket: Bucket, place: str) -> None:
    service = serve(home.config(f'after = "delete"\n{COMPRESS}', bucket.destination() if place == "bucket" else ""))
    expected = land_some(home)
    service.until_done(3)
    if place == "bucket":
        for key in bucket.objects():
            (home.archive / key).parent.mkdir(exist_ok=True)
            bucket.download(key, home.archive / key)
    check_copies(home, expected)
    assert list(files_below(os.fsencode(home.landing))) == []
    for name in expected:
        code, proof = service.cli("prove", str(home.landing / name))
        assert code == 0
        assert [delivery["disposal"] for delivery in proof["deliveries"]] == ["deleted"]
    service.stop()


@pytest.mark.parametrize("whole", [True, False])
def test_what_another_host_finished_first_is_no_failure(home: Home, whole: bool) -> None:
    """Two hosts work in place on one share, each with a queue of its own. A copy that does not hold what the source
    held is none, and the file that is gone is a failure."""
    config = home.config(
        f'destinations = ["beside"]\ninclude = ["*.fastq"]\nafter = "delete"\n{COMPRESS}',
        '[destination.beside]\ntype = "beside"\n',
    )
    second = home.folder / "second"
    second.mkdir()
    for name in ("state", "staging"):
        config = config.replace(quoted(home.folder / name), quoted(second / name))
    slower = Service(config, second)
    with slower:
        assert slower.cli("pause", "landing")[0] == 0
    made = make(home.folder / "reads.fastq", fastq, 2 * MIB)
    os.utime(made, ns=(TIME_NS, TIME_NS))
    digest, source, copy = file_sha256(made), home.landing / "reads.fastq", home.landing / "reads.fastq.zst"
    with slower:
        os.rename(made, source)
        until(lambda: slower.states()[State.QUEUED] == 1)
        first = Service(config.replace(str(second), str(home.folder)), home.folder)
        assert first.command("sync", "--quiet").returncode == 0
        assert not source.exists()
        if not whole:
            copy.write_bytes(copy.read_bytes()[:-1000])
            os.utime(copy, ns=(TIME_NS, TIME_NS))
        assert slower.cli("resume", "landing")[0] == 0
        if whole:
            slower.until_done(1)
            (delivery,) = slower.deliveries("reads.fastq")
            assert (delivery.proof.source.sha256, delivery.proof.stored.evidence) == (digest, "readback")
            assert slower.cli("prove", str(source))[0] == 0
        else:
            until(lambda: slower.states()[State.PARKED] == 1)
            assert slower.jobs()[0].error_code == "source-vanished"
    assert not whole or expanded_sha256(copy) == digest


def test_move_puts_a_source_away_as_it_was(home: Home, serve: Serve) -> None:
    done = home.folder / "done"
    done.mkdir()
    service = serve(home.config(f'after = "move:{done}"\n{COMPRESS}'))
    expected = land_some(home)
    service.until_done(3)
    check_copies(home, expected)
    assert list(files_below(os.fsencode(home.landing))) == []
    assert {name: file_sha256(done / name) for name in expected} == expected
    assert (done / "run/empty").stat().st_mtime_ns == TIME_NS
    assert stat.S_IMODE((done / "small").stat().st_mode) == 0o600
    assert service.deliveries("small")[0].disposal == f"moved:{done}/small"
    service.stop()


def test_a_grace_period_is_kept_also_over_a_restart(home: Home, serve: Serve) -> None:
    service = serve(home.config('after = "delete"\nafter_grace = "3s"'))
    home.land("file", b"content")
    until(lambda: service.deliveries("file"))
    delivered = service.deliveries("file")[0].proof.delivered_at
    service.stop()
    service.start()
    until(lambda: not (home.landing / "file").exists())
    assert time.time() - delivered >= 3
    service.until_done(1)
    assert home.arrived() == {b"file": b"content"}
    service.stop()


def test_a_source_stays_when_its_copy_went_away_in_the_grace_period(home: Home, serve: Serve) -> None:
    service = serve(home.config('after = "delete"\nafter_grace = "1s"'))
    home.land("file", b"content")
    until(lambda: service.deliveries("file"))
    os.unlink(home.archive / "file")
    (job,) = until(lambda: service.jobs(error_code="integrity"))
    assert "is gone" in job.error
    assert (home.landing / "file").read_bytes() == b"content"
    service.stop()
    assert not home.leftovers()


def test_a_source_that_changed_in_the_grace_period_stays_and_is_delivered_again(home: Home, serve: Serve) -> None:
    service = serve(home.config('after = "delete"\nafter_grace = "2s"'))
    home.land("file", b"first")
    until(lambda: service.deliveries("file"))
    home.land("file", b"second version")
    until(lambda: not (home.landing / "file").exists(), 40)
    service.until_done(1)
    assert home.arrived() == {b"file": b"second version"}
    service.stop()


def dead(_: Request) -> None:
    raise Reset


def test_a_dead_destination_holds_up_neither_the_other_nor_the_files_safety(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    """The other gets its files at once; the sources stay; when the dead one is back it gets them too, from the sources
    again; only then are they removed."""
    with FaultProxy(bucket.endpoint) as proxy:
        proxy.inject("*", request=dead, times=1_000_000)
        directory = f'[destination.near]\ntype = "directory"\npath = {quoted(home.archive)}\n'
        far = bucket.destination("far", more=f"endpoint_url = {quoted(proxy.endpoint)}")
        watch = f'destinations = ["near", "far"]\nafter = "delete"\n{COMPRESS}'
        service = serve(home.config(watch, directory + far))
        expected = land_some(home)
        until(lambda: all(len(service.deliveries(name)) == 1 for name in expected))
        check_copies(home, expected)
        until(lambda: service.states()[State.WAITING] == 3)
        code, answer = service.cli("status")
        assert (code, answer["destinations"][1]["name"], answer["destinations"][1]["state"]) == (0, "far", "failing")
        service.stop()
        assert bucket.objects(own=True) == {}
        assert {name: file_sha256(home.landing / name) for name in expected} == expected
        proxy.clear()
        service.start()
        code, _ = service.cli("jobs", "retry", "--all")
        assert code == 0
        service.until_done(3)
        assert list(files_below(os.fsencode(home.landing))) == []
        for key in bucket.objects():
            bucket.download(key, home.folder / "back.zst" if key.endswith(".zst") else home.folder / "back")
            back = expanded_sha256(home.folder / ("back.zst" if key.endswith(".zst") else "back"))
            assert back == expected[key.removesuffix(".zst")]
        assert len(bucket.objects()) == 3
        for name in expected:
            assert [d.proof.destination for d in service.deliveries(name)] == ["near", "far"]
        service.stop()


def test_a_destination_that_comes_back_is_noticed_without_being_asked(home: Home, serve: Serve, bucket: Bucket) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        proxy.inject("*", request=dead, times=2)
        service = serve(home.config("", bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")))
        home.land("file", b"content")
        service.until_done(1)
        assert bucket.content("file") == b"content"
        assert service.jobs()[0].attempts > 0
        service.stop()
