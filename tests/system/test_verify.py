"""I7 on the real service, a real S3 server and a real directory: every kind of damage, found where it can be found."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.data import MIB, fastq, make
from servers.seaweed import Seaweed
from system.bucket import Bucket
from system.conftest import Home
from system.service import Service, until

Serve = Callable[..., Service]
Verify = Callable[..., tuple[int, Any]]


@pytest.fixture
def delivered(home: Home, serve: Serve, bucket: Bucket) -> Service:
    """Small files and one of several parts, in a bucket and in a directory; the service is stopped."""
    both = bucket.destination("s3") + f'[destination.nas]\ntype = "directory"\npath = "{home.archive}"\n'
    watch = 'destinations = ["s3", "nas"]\ncompress = { format = "zstd", level = 1, min_size = "1KiB" }'
    service = serve(home.config(watch, both))
    for name in ("a", "b", "c", "d"):
        home.land(name, name.encode() * 500)
    home.land("packed", b"ACGT" * 10_000)
    make(home.landing / "large", fastq, 30 * MIB)
    home.land("empty", b"")
    service.until_done(7)
    service.stop()
    return service


def verify(service: Service, level: str, *more: str) -> tuple[int, dict[str, Any], dict[tuple[str, str], str]]:
    """Exit status, the whole answer, and (destination, key) -> what is wrong."""
    code, said = service.cli("verify", "--level", level, *more)
    faults = {(f["delivery"]["destination"], f["delivery"]["key"]): f["what"] for f in said["faults"]}
    return code, said, faults


def test_what_was_delivered_is_good_at_every_level(delivered: Service) -> None:
    for level in ("listing", "checksum", "readback"):
        code, said, faults = verify(delivered, level)
        assert (code, faults) == (0, {})
        assert (said["copies"], said["good"], said["ok"]) == (14, 14, True)
        assert said["read"] == (14 if level == "readback" else 0)
    assert delivered.command("audit", "verify").returncode == 0


def test_every_kind_of_damage_is_found_at_the_level_that_can_find_it(
    delivered: Service, home: Home, bucket: Bucket
) -> None:
    put = bucket.client.put_object
    bucket.client.delete_object(Bucket=bucket.name, Key=bucket.prefix + "a")
    put(Bucket=bucket.name, Key=bucket.prefix + "b", Body=b"x" * 500)
    put(Bucket=bucket.name, Key=bucket.prefix + "c", Body=b"c" * 499)
    put(Bucket=bucket.name, Key=bucket.prefix + "d", Body=b"d" * 500)  # the same bytes again are no failure
    os.unlink(home.archive / "a")
    os.truncate(home.archive / "b", 499)
    (home.archive / "c").write_bytes(b"x" * 500)
    _flip(home.archive / "packed.zst")
    _flip(home.archive / "large.zst")
    (home.archive / "foreign").write_bytes(b"x")
    seen = {("s3", "a"): "missing", ("s3", "b"): "changed", ("s3", "c"): "changed", ("nas", "a"): "missing",
            ("nas", "b"): "changed", ("nas", "c"): "changed"}  # fmt: skip
    for level in ("listing", "checksum"):
        code, said, faults = verify(delivered, level)
        assert (code, faults, said["unknown"]) == (3, seen, 1)
    code, said, faults = verify(delivered, "readback")
    assert (code, faults) == (3, seen | {("nas", "packed.zst"): "damaged", ("nas", "large.zst"): "damaged"})
    job = next(fault["delivery"]["job"] for fault in said["faults"])
    entries = [entry["body"] for entry in delivered.cli("jobs", str(job))[1]["history"]]
    assert any('"kind":"integrity-failure"' in body for body in entries)
    told = delivered.command("verify", "--level", "listing", str(home.landing / "a"))
    assert told.returncode == 3
    assert "MISSING: a at nas" in told.stderr
    assert "known good" in told.stderr


def test_a_dead_server_and_a_directory_that_is_away_lose_nothing(
    delivered: Service, home: Home, bucket: Bucket
) -> None:
    config = delivered.config_file.read_text()
    delivered.config_file.write_text(config.replace(bucket.endpoint, "http://127.0.0.1:9"))
    os.rename(home.archive, f"{home.archive}.away")
    for level in ("listing", "checksum", "readback"):
        code, said, faults = verify(delivered, level)
        assert (code, faults, said["good"]) == (1, {}, 0)
        assert set(said["unreachable"]) == {"s3", "nas"}


def test_an_empty_directory_on_another_filesystem_is_an_outage(delivered: Service, home: Home) -> None:
    """The mount point shows through: what the archive stood on is remembered."""
    assert verify(delivered, "listing", "--destination", "nas")[0] == 0
    with closing(sqlite3.connect(home.folder / "state/quaymaster.db")) as database:
        (body,) = database.execute("SELECT body FROM reports WHERE name = 'mount:destination:nas'").fetchone()
        changed = body.replace('"device": "', '"device": "9').replace('"type": "', '"type": "not-')
        assert changed != body
        database.execute("UPDATE reports SET body = ? WHERE name = 'mount:destination:nas'", (changed,))
        database.commit()
    shutil.rmtree(home.archive)
    home.archive.mkdir()
    code, said, faults = verify(delivered, "listing", "--destination", "nas")
    assert (code, faults) == (1, {})
    assert "not on the same filesystem" in said["unreachable"]["nas"] or "not mounted" in said["unreachable"]["nas"]


def test_a_server_that_dies_midway_is_no_loss(home: Home, serve: Serve, tmp_path_factory) -> None:
    with Seaweed(tmp_path_factory.mktemp("dying")) as server:
        server.make_bucket("dying")
        secret = home.folder / "secret.toml"
        secret.write_text(f'access_key = "{server.access_key}"\nsecret_key = "{server.secret_key}"\n')
        secret.chmod(0o600)
        place = Bucket(server.client(), "dying", "", server.http_endpoint, str(secret))
        service = serve(home.config(destinations=place.destination()))
        for number in range(40):
            home.land(f"f{number}", b"x" * number)
        service.until_done(40)
        service.stop()
        assert verify(service, "checksum")[:1] == (0,)
        server.kill()
        code, said, faults = verify(service, "checksum")
        assert (code, faults, said["unanswered"]) == (1, {}, 40)
        place.client.close()


def test_the_schedule_tells_damage_and_goes_on_after_a_restart(home: Home, serve: Serve) -> None:
    service = serve(home.config() + '[verify]\ninterval = "1s"\nlevel = "readback"\n')
    home.land("kept", b"ACGT" * 100)
    home.land("hurt", b"ACGT" * 100)
    service.until_done(2)
    until(lambda: service.lines("verified 2 copies", "2 good"), what="a run that finds all well")
    _flip(home.archive / "hurt")
    until(
        lambda: service.lines("error:", "landing/hurt", "the copy hurt at archive is damaged"), what="the damage told"
    )
    status = service.cli("status")[1]["verify"]
    until(lambda: service.cli("status")[1]["verify"]["last"]["damaged"] == 1, what="the status")
    assert status["interval"] == 1.0
    assert "1 DAMAGED" in service.command("status").stdout
    assert service.stop() < 5
    config = service.config_file.read_text().replace('"1s"', '"1h"')
    service.config_file.write_text(config)
    runs = len(service.lines("verified 2 copies"))
    service.start()
    home.land("new", b"x")
    service.until_done(3)
    time.sleep(1.5)  # a run that begins anew would be there by now: the first one waits for no longer than an interval
    assert len(service.lines("verified 2 copies")) + len(service.lines("verified 3 copies")) == runs


def test_many_copies_are_listed_quickly(home: Home, serve: Serve) -> None:
    service = serve(home.config())
    for number in range(600):
        home.land(f"d{number % 7}/f{number}", b"%d" % number)
    service.until_done(600)
    service.stop()
    code, said, _ = verify(service, "listing")
    assert (code, said["good"]) == (0, 600)
    assert said["seconds"] < 5


def _flip(path: Path) -> None:
    """One bit, behind everybody's back: size, time and inode stay."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)[0]
        file.seek(status.st_size // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
