"""Whatever lands is noticed, waited for and delivered whole: many files, odd names, huge ones, slow writers, and files
that were there before the service was (PRODUCT W1 to W7)."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from bench.data import MIB
from quaymaster.keys import escape
from quaymaster.model import State
from system.bucket import Bucket
from system.conftest import Home
from system.evidence import expanded_sha256, file_sha256, sha256
from system.service import Service, until

Serve = Callable[..., Service]


def copy_tree(home: Home, count: int) -> dict[bytes, str]:
    """Real small files: what is installed beside this test. Path below the landing -> SHA-256."""
    source = Path(sysconfig.get_path("purelib"))
    digests: dict[bytes, str] = {}
    for path in sorted(source.rglob("*.py*")):
        name = path.relative_to(source)
        if len(digests) == count:
            break
        if path.is_file() and path.stat().st_size < MIB and not path.name.startswith("."):
            target = home.landing / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            digests[os.fsencode(name)] = file_sha256(target)
    return digests


def test_thousands_of_small_files_arrive(home: Home, serve: Serve) -> None:
    service = serve(home.config())
    expected = copy_tree(home, 2500)
    assert len(expected) == 2500
    service.until_done(len(expected), 150)
    assert {path: sha256(content) for path, content in home.arrived().items()} == expected
    assert len(service.jobs()) == len(expected)
    service.stop()


ODD_NAMES = [
    b"not \xff\xfe utf-8",
    b"new\nline",
    b"tab\tand \x01 control",
    b"x" * 255,
    b"README",
    b"readme",
    b"ReadMe",
    b"per%cent%41\\back",
    b" leading and trailing ",
    "\N{LATIN SMALL LETTER E WITH ACUTE}".encode(),
    "e\N{COMBINING ACUTE ACCENT}".encode(),
    b"quote'\"`$(id)*?[x]{path}",
    b"-rf",
    b"-/--/deep",
    b"empty file",
]
DEEP = b"/".join([b"d" * 60] * 50) + b"/deep"


def land_odd(home: Home, names: list[bytes]) -> dict[bytes, bytes]:
    files = {name: b"" if name == b"empty file" else b"content of " + name for name in names}
    for name, content in files.items():
        home.land(name, content)
    return files


def test_odd_names_come_back_from_a_directory_as_they_were(home: Home, serve: Serve) -> None:
    service = serve(home.config('compress = "zstd"'))
    files = land_odd(home, [*ODD_NAMES, DEEP])
    service.until_done(len(files))
    assert home.arrived() == files
    code, proof = service.cli("prove", os.path.join(os.fsencode(home.landing), ODD_NAMES[0]))
    assert code == 0
    assert bytes.fromhex(proof["path_bytes_hex"]) == ODD_NAMES[0]
    service.stop()


def test_odd_names_come_back_from_a_bucket_as_they_were(home: Home, serve: Serve, bucket: Bucket) -> None:
    service = serve(home.config("", bucket.destination()))
    files = land_odd(home, [*ODD_NAMES, b"/".join([b"d" * 30] * 20) + b"/deep"])
    service.until_done(len(files))
    assert {key: bucket.content(key) for key in bucket.objects()} == {escape(name): files[name] for name in files}
    service.stop()


def test_a_name_that_leaves_no_room_for_the_suffix_goes_as_it_is(home: Home, serve: Serve) -> None:
    service = serve(home.config('compress = { format = "zstd", min_size = "1KiB" }'))
    name, content = b"x" * 254, b"long name " * 1000
    home.land(name, content)
    service.until_done(1)
    assert home.arrived() == {name: content}
    assert "no room" in service.deliveries(name)[0].proof.compression_note
    service.stop()


def test_more_than_two_gibibytes(home: Home, serve: Serve, bucket: Bucket) -> None:
    """A sparse file with islands of noise, past what 32 bits hold, from one read to a directory and a bucket."""
    directory = f'[destination.near]\ntype = "directory"\npath = "{home.archive}"\n'
    watch = 'destinations = ["near", "archive"]\ncompress = { format = "zstd", level = 1 }'
    service = serve(home.config(watch, directory + bucket.destination()))
    size, chance = (2 << 30) + 12_345, random.Random(7)
    with open(home.landing / "huge.bin", "wb") as file:
        file.truncate(size)
        for offset in range(0, size, 64 * MIB):
            file.seek(min(offset + chance.randrange(MIB), size - MIB))
            file.write(chance.randbytes(MIB))
    expected = file_sha256(home.landing / "huge.bin")
    service.until_done(1, 150)
    assert expanded_sha256(home.archive / "huge.bin.zst") == expected
    bucket.download("huge.bin.zst", home.folder / "back.zst")
    assert expanded_sha256(home.folder / "back.zst") == expected
    assert bucket.metadata("huge.bin.zst")["quaymaster-sha256"] == expected
    assert bucket.metadata("huge.bin.zst")["quaymaster-size"] == str(size)
    assert not home.leftovers()
    service.stop()


def test_a_file_is_not_taken_while_its_writer_has_it_open(home: Home, serve: Serve) -> None:
    """Pauses much longer than the settle time do not make an open file whole."""
    service = serve(home.config('settle = "0.3s"'))
    digest = hashlib.sha256()
    with open(home.landing / "slow.bin", "wb") as file:
        for number in range(4):
            piece = b"%d" % number * 100_000
            file.write(piece)
            file.flush()
            digest.update(piece)
            seen = service.lines("landing")
            home.land(f"other{number}", b"its neighbours do not wait for it")
            service.until_done(number + 1)
            time.sleep(0.7)  # the writer is slow: this is what is tested
            assert [job.version.path for job in service.jobs() if job.version.path == b"slow.bin"] == [], seen
        code, answer = service.cli("why", str(home.landing / "slow.bin"))
        assert code == 0
        assert "open for writing" in str([item for item in answer["evidence"] if item["ok"] is False])
    service.until_done(5)
    assert file_sha256(home.archive / "slow.bin") == digest.hexdigest()
    assert len(service.deliveries("slow.bin")) == 1
    service.stop()


def test_a_temporary_name_is_passed_over_until_the_rename(home: Home, serve: Serve) -> None:
    service = serve(home.config())
    for temporary, final in ((".reads.fastq.Xy12Zw", "reads.fastq"), ("model.part", "model.bin"), ("a~", "a")):
        home.land(temporary, final.encode())
        home.land(f"after {final}", b"")
    service.until_done(3)
    assert set(home.arrived()) == {b"after reads.fastq", b"after model.bin", b"after a"}
    for temporary, final in ((".reads.fastq.Xy12Zw", "reads.fastq"), ("model.part", "model.bin"), ("a~", "a")):
        os.rename(home.landing / temporary, home.landing / final)
    service.until_done(6)
    assert {name for name in home.arrived() if not name.startswith(b"after")} == {b"reads.fastq", b"model.bin", b"a"}
    assert home.arrived()[b"model.bin"] == b"model.bin"
    service.stop()


def test_a_directory_moved_in_is_taken_with_all_that_is_below(home: Home, serve: Serve) -> None:
    service = serve(home.config())
    outside = home.folder / "outside"
    for number in range(50):
        (outside / f"a/b{number % 5}").mkdir(parents=True, exist_ok=True)
        (outside / f"a/b{number % 5}/{number}").write_bytes(b"%d" % number)
    os.rename(outside, home.landing / "run")
    service.until_done(50)
    home.land("run/a/b0/later", b"the directories that were moved in are watched too")
    service.until_done(51)
    assert home.arrived()[b"run/a/b3/43"] == b"43"
    service.stop()


def test_a_marker_holds_its_directory_back(home: Home, serve: Serve) -> None:
    service = serve(home.config('marker = "CopyComplete.txt"'))
    home.land("run1/reads", b"held")
    home.land("run1/deep/more", b"held too")
    home.land("run2/reads", b"free")
    home.land("run2/CopyComplete.txt", b"")
    service.until_done(2)
    home.land("run1/deep/later", b"in a directory that is watched by now")
    home.land("run2/later", b"free as well")
    service.until_done(3)
    assert set(home.arrived()) == {b"run2/reads", b"run2/later", b"run2/CopyComplete.txt"}
    code, answer = service.cli("why", str(home.landing / "run1/reads"))
    assert code == 0
    assert "CopyComplete.txt is missing" in str([item for item in answer["evidence"] if item["ok"] is False])
    home.land("run1/CopyComplete.txt", b"")
    service.until_done(7)
    assert home.arrived()[b"run1/deep/more"] == b"held too"
    service.stop()


def test_what_landed_while_the_service_was_stopped_is_found(home: Home, serve: Serve) -> None:
    service = serve(home.config())
    home.land("before", b"first version")
    home.land("same", b"stays as it is")
    service.until_done(2)
    service.stop()
    home.land("meanwhile/new", b"landed while nobody looked")
    home.land("before", b"second version, written while nobody looked")
    service.start()
    service.until_done(4)
    assert home.arrived() == {
        b"before": b"second version, written while nobody looked",
        b"same": b"stays as it is",
        b"meanwhile/new": b"landed while nobody looked",
    }
    assert len(service.deliveries("same")) == 1
    service.stop()


def test_without_events_the_scan_alone_finds_everything(home: Home, serve: Serve) -> None:
    """mode = "poll", as on filesystems where inotify is blind."""
    service = serve(home.config('mode = "poll"\npoll_interval = "0.3s"'))
    files = {f"d{number % 7}/{number}".encode(): os.urandom(100) for number in range(40)}
    for name, content in files.items():
        home.land(name, content)
    service.until_done(len(files))
    assert home.arrived() == files
    home.land("d1/1", b"changed")
    service.until_done(len(files) + 1)
    assert home.arrived()[b"d1/1"] == b"changed"
    until(lambda: service.states()[State.DONE] == len(files) + 1)
    service.stop()
