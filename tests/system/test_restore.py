"""I6 on the real service, a real S3 server and a real directory: what was delivered comes back to the last bit."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.data import MIB, fastq, make
from system.bucket import Bucket
from system.conftest import Home, content_of, files_below
from system.evidence import file_sha256
from system.service import COMMAND, Service, until

Serve = Callable[..., Service]

ODD = [
    b"\xff\xfe.fastq",
    b"new\nline",
    b"n" * 251,
    b"%41",
    b"back\\slash",
    b"\x01\x1b[31m",
    "\N{SNOWMAN}".encode(),
    b" ",
]
FORMS = {"none": "", "zstd": "zstd", "gzip": "gzip"}


def compressing(form: str) -> str:
    return "" if form == "none" else f'compress = {{ format = "{form}", level = 1, min_size = "100B" }}'


def tree(root: str | Path) -> dict[bytes, tuple[bytes, int, int]]:
    """Path below ``root`` -> content, mtime (ns), permission bits."""
    base, found = os.fsencode(root), {}
    for path in files_below(base):
        status = os.stat(path)
        found[os.path.relpath(path, base)] = content_of(path), status.st_mtime_ns, stat.S_IMODE(status.st_mode)
    return found


def landed(home: Home) -> dict[bytes, tuple[bytes, int, int]]:
    for number, name in enumerate(ODD):
        path = home.land(b"run/" + name, b"ACGT" * 100 * number)
        os.chmod(path, 0o600 + number)
        os.utime(path, ns=(0, 10**18 + number))
    home.land("empty", b"")
    return tree(home.landing)


def empty(directory: Path) -> None:
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("kind", ["s3", "directory"])
def test_everything_comes_back_to_its_place_and_is_not_delivered_again(
    home: Home, serve: Serve, bucket: Bucket, kind: str, form: str
) -> None:
    service = serve(home.config(compressing(form), bucket.destination() if kind == "s3" else ""))
    before = landed(home)
    service.until_done(len(before))
    delivered = len(service.lines("delivered to archive"))
    empty(home.landing)
    code, said = service.cli("restore", str(home.landing))
    assert (code, said["restored"]) == (0, len(before))
    assert tree(home.landing) == before
    code, said = service.cli("restore", str(home.landing))
    assert (code, said["there"]) == (0, len(before))
    # What lands after it is noticed after it: by then the service has looked at every restored file too.
    home.land("later", b"x")
    until(lambda: service.lines("landing/later: delivered"), what="a file that landed later")
    time.sleep(0.6)  # longer than restored files take to settle
    assert len(service.lines("delivered to archive")) == delivered + 1
    service.stop()
    assert not home.leftovers()
    assert service.command("audit", "verify").returncode == 0


@pytest.mark.parametrize("form", list(FORMS))
def test_a_bucket_alone_is_enough(home: Home, serve: Serve, bucket: Bucket, form: str, tmp_path: Path) -> None:
    watch = compressing(form) + '\nkey = "{watch}/{path}"'
    service = serve(home.config(watch, bucket.destination()))
    before = landed(home)
    service.until_done(len(before))
    service.stop()
    empty(home.landing)
    shutil.rmtree(home.folder / "state")
    code, said = service.cli("restore", "--from-destination", "--destination", "archive")
    assert (code, said["restored"], said["unproven"]) == (0, len(before), 0)
    assert tree(home.landing) == before
    code, said = service.cli("restore", "--from-destination", "--to", str(tmp_path / "to"))
    assert code == 0
    assert tree(tmp_path / "to/landing") == before
    assert not (home.folder / "state").exists()


def test_a_directory_alone_gives_its_files_as_they_are(home: Home, serve: Serve, tmp_path: Path) -> None:
    service = serve(home.config(compressing("zstd")))
    before = landed(home)
    service.until_done(len(before))
    service.stop()
    shutil.rmtree(home.folder / "state")
    code, said = service.cli("restore", "--from-destination", "--to", str(tmp_path / "to"))
    assert (code, said["restored"], said["unproven"]) == (0, len(before), len(before))
    assert tree(tmp_path / "to") == tree(home.archive)


def test_hostile_objects_in_a_bucket_lead_nowhere(home: Home, serve: Serve, bucket: Bucket, tmp_path: Path) -> None:
    service = serve(home.config("", bucket.destination()))
    home.land("good", b"good")
    service.until_done(1)
    service.stop()
    for key in ("%2E%2E/x", "a%2F..%2F..%2Fx", "nul%00", ".qm-x.part", "%2Fetc%2Fx", "a/%2e%2e/%2e%2e/x"):
        bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + key, Body=b"evil")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to/link").symlink_to(outside)
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + "link/x", Body=b"evil")
    before = sorted(tmp_path.rglob("*"))
    code, said = service.cli("restore", "--from-destination", "--to", str(tmp_path / "to"))
    assert code == 1
    assert (said["restored"], said["refused"] + said["conflict"]) == (1, 7)
    assert all(f["text"] for f in said["files"] if f["outcome"] != "restored")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "to/good"])


def test_versions_that_were_kept_come_back_by_time(home: Home, serve: Serve, tmp_path: Path) -> None:
    service = serve(home.config('on_change = "keep-both"'))
    home.land("a", b"first")
    service.until_done(1)
    then = time.time()
    time.sleep(0.01)
    home.land("a", b"second version")
    service.until_done(2)
    code, _ = service.cli("restore", str(home.landing / "a"), "--at", f"@{then:.6f}", "--to", str(tmp_path / "then"))
    assert code == 0
    assert (tmp_path / "then/a").read_bytes() == b"first"
    assert service.cli("restore", str(home.landing / "a"), "--to", str(tmp_path / "now"))[0] == 0
    assert (tmp_path / "now/a").read_bytes() == b"second version"
    assert service.cli("restore", str(home.landing), "--at", "2001-01-01", "--to", str(tmp_path / "no"))[0] == 1


def test_what_is_there_stays_and_damage_is_told(home: Home, serve: Serve, tmp_path: Path) -> None:
    service = serve(home.config())
    for name in ("own", "hurt", "gone", "fine"):
        home.land(name, name.encode() * 100)
    service.until_done(4)
    service.stop()
    to = tmp_path / "to"
    to.mkdir()
    (to / "own").write_bytes(b"somebody's own")
    with (home.archive / "hurt").open("r+b") as file:
        file.write(b"x")
    (home.archive / "gone").unlink()
    done = service.command("restore", "--watch", "landing", "--to", str(to))
    assert done.returncode == 3
    assert "CONFLICT" in done.stderr
    assert done.stderr.count("DAMAGED") == 2
    assert tree(to).keys() == {b"own", b"fine"}
    assert (to / "own").read_bytes() == b"somebody's own"


def test_a_large_file_killed_and_interrupted_in_the_middle(
    home: Home, serve: Serve, bucket: Bucket, tmp_path: Path
) -> None:
    service = serve(home.config('compress = { format = "zstd", level = 1, min_size = "1MiB" }', bucket.destination()))
    make(home.landing / "large.fastq", fastq, 300 * MIB)
    digest = file_sha256(home.landing / "large.fastq")
    service.until_done(1, timeout=120)
    service.stop()
    to = tmp_path / "to"
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        left = set(os.listdir(to)) if to.exists() else set()
        process = _begin(service, to)
        until(lambda: _part_size(to, left) > 20 * MIB, what="a part of the file")
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
        assert process.returncode == status, told
        assert "Traceback" not in told
        assert not (to / "large.fastq").exists()
        if number == signal.SIGINT:
            assert os.listdir(to) == []
    process = _begin(service, to)
    assert process.wait(60) == 0
    process.communicate()
    assert file_sha256(to / "large.fastq") == digest
    assert os.listdir(to) == ["large.fastq"]


def test_thousands_of_files_killed_in_the_middle_and_gone_on_with(home: Home, serve: Serve, tmp_path: Path) -> None:
    service = serve(home.config())
    for number in range(1_500):
        home.land(f"d{number % 11}/f{number}", b"%d" % number)
    service.until_done(1_500, timeout=200)
    service.stop()
    to = tmp_path / "to"
    process = _begin(service, to)
    until(lambda: to.exists() and _named(to) > 300, what="some files")
    process.kill()
    process.communicate()
    some = len(tree(to))
    assert some < 1_500
    code, said = service.cli("restore", "--watch", "landing", "--to", str(to))
    assert code == 0
    assert said["there"] + said["restored"] == 1_500
    assert said["there"] > 300
    assert tree(to) == tree(home.landing)


def _named(to: Path) -> int:
    """Files that have their names."""
    return sum(not os.path.basename(path).startswith(b".qm-") for path in files_below(os.fsencode(to)))


def _begin(service: Service, to: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "restore", "--watch", "landing", "--to", str(to), "--config", str(service.config_file)],
        env=service.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _part_size(to: Path, others: set[str]) -> int:
    """Bytes of the hidden file that is being written."""
    return max((path.stat().st_size for path in to.glob(".qm-*.part") if path.name not in others), default=0)
