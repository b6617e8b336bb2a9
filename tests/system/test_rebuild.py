"""A database that is lost, damaged or rolled back: the service says so and stops; rebuild makes it whole from what the
destinations hold, and nothing is uploaded again or forgotten (PRODUCT I5, Q6)."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bench.data import MIB, fastq
from quaymaster.model import State
from servers.faultproxy import FaultProxy
from system.bucket import Bucket
from system.conftest import Home, quoted
from system.mishaps import is_calm, refused
from system.service import Service, until

Serve = Callable[..., Service]
NAMES = [b"plain.bin", b"run/deep/a b.txt", b"not\xffutf8", b"new\nline", b"empty", b"q%25.bin"]


def setting(home: Home, bucket: Bucket, *, endpoint: str = "", watch: str = "") -> str:
    directory = f'[destination.archive]\ntype = "directory"\npath = {quoted(home.archive)}\n'
    far = bucket.destination("far", more=f"endpoint_url = {quoted(endpoint)}" if endpoint else "")
    both = 'destinations = ["archive", "far"]\ncompress = { format = "zstd", level = 1, min_size = "64KiB" }\n'
    return home.config(both + watch, directory + far)


def landed(home: Home) -> dict[bytes, bytes]:
    text = b"".join(piece for piece, _ in zip(fastq(), range(2), strict=False))
    contents = {name: os.urandom(3_000) for name in NAMES} | {b"empty": b"", b"reads.fastq": text[: 3 * MIB]}
    contents[b"large.bin"] = random.Random(7).randbytes(12 * MIB)
    for name, content in contents.items():
        home.land(name, content)
    return contents


def lose(home: Home) -> None:
    for path in (home.folder / "state").glob("quaymaster.db*"):
        path.unlink()


def test_a_deleted_database_is_never_begun_anew_in_silence_and_rebuild_sends_nothing_again(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    service = serve(setting(home, bucket))
    contents = landed(home)
    service.until_done(len(contents))
    before = {path: [d.proof.stored.etag for d in service.deliveries(path)] for path in contents}
    service.stop()
    lose(home)
    line = refused(service.config_file.read_text(), home.folder)
    assert "quaymaster.db is gone; it held" in line
    assert "quaymaster rebuild" in line
    code, summary = service.cli("rebuild")
    assert code == 0, summary
    assert (summary["files"], summary["known"], summary["adopted"]) == (len(contents), 0, len(contents))
    assert (summary["orphans"], summary["problems"]) == (0, [])
    with FaultProxy(bucket.endpoint) as proxy:
        service.config_file.write_text(setting(home, bucket, endpoint=proxy.endpoint))
        service.start()
        service.until_done(len(contents))
        for path, etags in before.items():
            assert [d.proof.stored.etag for d in service.deliveries(path)] == etags, path
        own = [path for operation, path in proxy.seen if operation in ("PutObject", "UploadPart")]
        assert not [path for path in own if ".quaymaster-" not in path], "something was sent again"
        fresh = home.land("later.bin", b"later")
        service.until_done(len(contents) + 1)
        assert os.path.basename(fresh) in home.arrived()
        service.stop()
    assert service.cli("audit", "verify")[0] == 0
    code, proof = service.cli("prove", str(home.landing / "large.bin"))
    assert code == 0
    assert proof["custody"][0]["body"].find('"adopted"') > 0
    is_calm(service.log)


def test_without_rebuild_a_lost_state_directory_still_uploads_nothing_large_again(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    service = serve(setting(home, bucket))
    home.land("large.bin", random.Random(7).randbytes(12 * MIB))
    service.until_done(1)
    service.stop()
    shutil.rmtree(home.folder / "state")
    with FaultProxy(bucket.endpoint) as proxy:
        service.config_file.write_text(setting(home, bucket, endpoint=proxy.endpoint))
        service.start()
        service.until_done(1)
        assert not [p for operation, p in proxy.seen if operation == "UploadPart" and p.endswith("large.bin")]
        service.stop()


def test_copies_whose_sources_are_gone_are_recorded_from_the_bucket(home: Home, serve: Serve, bucket: Bucket) -> None:
    service = serve(home.config("", bucket.destination()))
    for name in NAMES:
        home.land(name, b"content of " + name)
    service.until_done(len(NAMES))
    service.stop()
    for name in NAMES:
        os.unlink(os.path.join(os.fsencode(home.landing), name))
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + "somebody-elses", Body=b"x")
    lose(home)
    code, summary = service.cli("rebuild")
    assert (code, summary["orphans"], summary["objects"]) == (0, len(NAMES), len(NAMES) + 1)
    for name in NAMES:
        (delivery,) = service.deliveries(name)
        assert delivery.proof.stored.size == len(b"content of " + name)
    assert service.states()[State.DONE] == len(NAMES)
    again = service.cli("rebuild")[1]
    assert (again["orphans"], again["loss"]) == (0, "")


def test_a_file_that_changed_since_is_a_new_version_of_what_is_there(home: Home, serve: Serve, bucket: Bucket) -> None:
    service = serve(home.config("", bucket.destination()))
    home.land("a", b"first")
    service.until_done(1)
    service.stop()
    home.land("a", b"second, and longer")
    lose(home)
    assert service.cli("rebuild")[1]["adopted"] == 0
    service.start()
    service.until_done(2)
    assert bucket.content("a") == b"second, and longer"
    assert [d.replaced for d in service.deliveries("a")] == [True, False]
    service.stop()


def test_another_file_of_the_same_size_at_a_directory_is_not_taken_for_a_copy(home: Home, serve: Serve) -> None:
    service = serve(home.config())
    home.land("a", b"AAAA")
    service.until_done(1)
    service.stop()
    stamp = os.stat(home.landing / "a").st_mtime_ns
    (home.archive / "a").write_bytes(b"BBBB")
    os.utime(home.archive / "a", ns=(stamp, stamp))
    lose(home)
    assert service.cli("rebuild")[1]["adopted"] == 0
    service.start()
    until(lambda: service.states()[State.PARKED] == 1)
    assert (home.archive / "a").read_bytes() == b"BBBB"
    service.stop()


def corrupt(database: Path, chance: random.Random, pages: int = 6) -> None:
    size = database.stat().st_size
    with database.open("r+b") as file:
        for _ in range(pages):
            file.seek(chance.randrange(1, size // 4096) * 4096)
            file.write(chance.randbytes(4096))


def unfinished(service: Service) -> int:
    return sum(number for state, number in service.states().items() if not state.final and state is not State.PARKED)


def test_a_corrupt_database_is_kept_what_can_be_read_is_carried_over_and_nothing_is_sent_again(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    service = serve(setting(home, bucket))
    for number in range(400):
        home.land(f"{number % 7}/{number}.bin", b"%d" % number * 9)
    (home.archive / "0").mkdir(exist_ok=True)
    (home.archive / "0" / "odd").write_bytes(b"somebody else's")
    home.land("0/odd", b"ours")
    until(lambda: service.states()[State.DONE] == 400 and service.states()[State.PARKED] == 1, 60)
    service.stop()
    database = home.folder / "state" / "quaymaster.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    corrupt(database, random.Random(3))
    code, summary = service.cli("rebuild")
    assert code == 0, summary
    assert "is damaged" in summary["loss"]
    kept = Path(summary["salvaged"]["folder"])
    assert (kept / "quaymaster.db").exists()
    assert (kept / "custody-salvaged.jsonl").stat().st_size > 1000
    assert summary["known"] + summary["adopted"] >= 400
    assert summary["known"] > 0, "nothing was carried over"
    with FaultProxy(bucket.endpoint) as proxy:
        service.config_file.write_text(setting(home, bucket, endpoint=proxy.endpoint))
        service.start()
        until(lambda: service.states()[State.PARKED] == 1 and not unfinished(service), 60)
        for number in range(400):
            found = service.deliveries(f"{number % 7}/{number}.bin")
            assert {delivery.proof.destination for delivery in found} == {"archive", "far"}, number
        sent = [p for operation, p in proxy.seen if operation == "PutObject" and ".quaymaster-" not in p]
        assert sent == [] or all(p.endswith("/0/odd") for p in sent)
        service.stop()
    assert service.cli("audit", "verify")[0] == 0
    is_calm(service.log)


@pytest.mark.parametrize(
    ("step", "when"),
    [("rename in _move", "after"), ("commit of salvage.<lambda>", "before"), ("rename in ended", "before")],
)
def test_a_rebuild_that_was_killed_goes_on_with_what_it_had_set_aside(
    home: Home, serve: Serve, step: str, when: str
) -> None:
    """The next one forgets nothing of it: neither what was parked, nor what was in the log that SQLite had not merged
    into the database yet."""
    service = serve(home.config())
    (home.archive / "odd").write_bytes(b"somebody else's")
    home.land("odd", b"ours")
    until(lambda: service.states()[State.PARKED] == 1, 60)
    files = [home.folder / "state" / f"quaymaster.db{suffix}" for suffix in ("", "-wal")]
    with closing(sqlite3.connect(files[0])) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'mirror_objects'")
        home.land("a", b"content")
        until(lambda: service.states()[State.DONE] == 1, 60)
        service.kill()
        held = [bytearray(file.read_bytes()) for file in files]  # whoever closes it last merges the two
    held[0][(page - 1) * 4096 : page * 4096] = os.urandom(4096)
    for file, content in zip(files, held, strict=True):
        file.write_bytes(content)
    (home.archive / "a").unlink()  # so that nothing but the database knows of it
    assert service.is_killed_at(step, when, word="rebuild"), service.log
    refused(service.config_file.read_text(), home.folder)
    code, summary = service.cli("rebuild")
    assert code == 0, summary
    assert +service.states() == {State.PARKED: 1, State.DONE: 1}
    assert [delivery.proof.stored.key for delivery in service.deliveries("a")] == ["a"]
    (kept,) = (home.folder / "state").glob("damaged-*")
    assert str(kept) == summary["salvaged"]["folder"]
    assert {"quaymaster.db", "custody-salvaged.jsonl"} <= {path.name for path in kept.iterdir()}
    assert service.cli("audit", "verify")[0] == 0
    is_calm(service.log)


def test_a_database_from_a_backup_is_found_out_and_filled_up(home: Home, serve: Serve, bucket: Bucket) -> None:
    service = serve(setting(home, bucket))
    home.land("a", b"a")
    service.until_done(1)
    service.stop()
    shutil.copytree(home.folder / "state", home.folder / "backup")
    service.start()
    home.land("b", b"b")
    service.until_done(2)
    service.stop()
    lose(home)
    for path in (home.folder / "backup").glob("quaymaster.db*"):
        shutil.copy(path, home.folder / "state" / path.name)
    line = refused(service.config_file.read_text(), home.folder)
    assert "is not what it was: entry" in line
    assert "quaymaster rebuild" in line
    code, found = service.cli("audit", "verify")
    assert (code, found["ok"]) == (3, False)
    code, summary = service.cli("rebuild")
    assert (code, summary["known"], summary["adopted"]) == (0, 1, 1)
    service.start()
    service.until_done(2)
    service.stop()
    assert service.cli("audit", "verify")[0] == 0


def test_the_service_must_be_stopped(home: Home, serve: Serve) -> None:
    service = serve(home.config())
    code, _ = service.cli("rebuild")
    assert code == 1
    assert service.running


def test_a_destination_that_is_away_is_told_and_nothing_is_taken_for_missing(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    service = serve(setting(home, bucket))
    home.land("a", b"a")
    service.until_done(1)
    service.stop()
    lose(home)
    home.archive.rename(home.folder / "away")
    done = service.command("rebuild")
    assert done.returncode == 1
    assert "1 thing could not be looked at; the first: destination archive:" in done.stderr
    (home.folder / "away").rename(home.archive)
    assert service.command("rebuild").returncode == 0
    service.start()
    service.until_done(1)
    service.stop()
    assert home.arrived() == {b"a": b"a"}
