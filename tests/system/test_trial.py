"""The command line on much real data: programs, libraries and texts as this machine has them, and sequencing reads. The
figures of every command are held against what find, zstd and the server itself say (PRODUCT I1-I7)."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.data import MIB, fastq, make
from system.bucket import OWN, Bucket
from system.conftest import Home, quoted
from system.evidence import expanded_sha256, file_sha256
from system.service import Service

PLACES = (Path("/usr/lib"), Path("/usr/share"), Path(sys.prefix))
LARGEST = 256 * MIB
"""Of a real file; what is larger is made."""
UNTAKEN = (b"~", b".part", b".tmp", b".swp")
"""Names that every watch leaves out."""


@dataclass(frozen=True)
class Amount:
    files: int
    real_bytes: int
    """At most."""
    reads: tuple[int, ...]
    """Sizes of the FASTQ files."""
    looked_at: int
    """Every so manieth copy is expanded with the stock tools."""
    timeout: float
    """Seconds for one command."""


SHORT = Amount(700, 40 * MIB, (24 * MIB, 14 * MIB), 50, 240)
WHOLE = Amount(24_000, 2_048 * MIB, (1_536 * MIB, 512 * MIB, 512 * MIB, 512 * MIB, 512 * MIB), 200, 3_600)


@dataclass
class Trial:
    """A landing with two destinations, and what each command took."""

    home: Home
    service: Service
    """Never started: its command line alone is used."""
    bucket: Bucket
    amount: Amount
    took: list[tuple[str, float, float]] = field(default_factory=list)
    """(what, seconds, CPU-seconds of the command)."""

    def call(self, *arguments: str) -> Any:
        """What a command printed; it must have succeeded."""
        with self.timed(" ".join(arguments[:2])):
            done = self.service.command(*arguments, "--json", timeout=self.amount.timeout)
        assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stderr}\n{done.stdout[:4_000]}"
        return json.loads(done.stdout)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began, before = time.monotonic(), os.times()
        yield
        after = os.times()
        cpu = sum(after[2:4]) - sum(before[2:4])
        self.took.append((what, time.monotonic() - began, cpu))


@pytest.fixture
def trial_of(home: Home, bucket: Bucket) -> Iterator[Callable[[Amount], Trial]]:
    trials: list[Trial] = []

    def begin(amount: Amount) -> Trial:
        near = f'[destination.near]\ntype = "directory"\npath = {quoted(home.archive)}\n'
        watch = 'destinations = ["near", "archive"]\ncompress = { format = "zstd", level = 1, min_size = "16KiB" }'
        config = home.config(watch, near + bucket.destination(more='part_size = "16MiB"'))
        service = Service(config, home.folder, environment={"XDG_CACHE_HOME": str(home.folder / "cache")})
        trials.append(Trial(home, service, bucket, amount))
        return trials[-1]

    yield begin
    for trial in trials:
        for what, seconds, cpu in trial.took:
            print(f"  {what:<42} {seconds:8.2f} s {cpu:8.2f} CPU-s")


def real_files(amount: Amount) -> list[Path]:
    """So many files, taken evenly from all there are."""
    found: list[tuple[Path, int]] = []
    for place in PLACES:
        for folder, _, names in os.walk(place):
            for name in names:
                path = Path(folder, name)
                if not os.fsencode(name).endswith(UNTAKEN) and (size := size_of(path)) <= LARGEST:
                    found.append((path, size))
    found.sort()
    chosen, left = [], amount.real_bytes
    for path, size in found[:: max(1, len(found) // (amount.files * 11 // 10))]:
        if size <= left and size < 1 + amount.real_bytes // 8 and len(chosen) < amount.files:
            chosen.append(path)
            left -= size
    return chosen


def size_of(path: Path) -> int:
    """More than any that is wanted, for what is no readable regular file."""
    status = path.lstat()
    return status.st_size if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK) else 1 << 62


def fill(trial: Trial) -> None:
    landing = trial.home.landing
    for path in real_files(trial.amount):
        target = landing / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for number, size in enumerate(trial.amount.reads):
        make(landing / f"reads-{number}.fastq", partial(fastq, number + 1), size)
    for name in (b"not\xffutf8", b"new\nline", b"empty"):
        trial.home.land(b"odd/" + name, name * 3 if name != b"empty" else b"")
    time.sleep(0.5)  # longer than these files take to settle


def found_by_find(root: Path, *tests: str) -> tuple[int, int]:
    """Files and bytes below a directory."""
    printed = subprocess.run(["find", root, "-type", "f", *tests, "-printf", "%s\\n"], check=True, capture_output=True)
    sizes = [int(line) for line in printed.stdout.split()]
    return len(sizes), sum(sizes)


def tree(root: Path) -> dict[bytes, tuple[str, int, int]]:
    """Path below ``root`` -> SHA-256, mtime (ns), permission bits."""
    base, found = os.fsencode(root), {}
    for folder, _, names in os.walk(base):
        for name in names:
            path = os.path.join(folder, name)
            status = os.stat(path)
            found[os.path.relpath(path, base)] = file_sha256(path), status.st_mtime_ns, status.st_mode & 0o777
    return found


def objects(bucket: Bucket) -> dict[str, tuple[str, Any, int]]:
    """Key -> ETag, time and size: what tells whether anything was put there again."""
    pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=bucket.prefix)
    items = {i["Key"].removeprefix(bucket.prefix): i for page in pages for i in page.get("Contents", [])}
    return {k: (i["ETag"], i["LastModified"], i["Size"]) for k, i in items.items() if not k.startswith(OWN)}


def published(home: Home) -> dict[bytes, tuple[int, int, int]]:
    """The same for the directory."""
    base, found = os.fsencode(home.archive), {}
    for folder, _, names in os.walk(base):
        for name in names:
            path = os.path.join(folder, name)
            status = os.stat(path)
            found[os.path.relpath(path, base)] = status.st_ino, status.st_ctime_ns, status.st_size
    return {path: told for path, told in found.items() if not path.startswith(b".quaymaster-")}


# -- the steps --


def synced(trial: Trial) -> int:
    """Everything is sent once, and the summary adds up to what find and the server say; how many files."""
    count, total = found_by_find(trial.home.landing)
    said = trial.call("sync", "--quiet")
    print({name: value for name, value in said.items() if value})
    assert (said["files"], said["sent"], said["failed"], said["failures"]) == (count, count, 0, [])
    assert said["bytes_in"] == total
    at_server = sum(size for _, _, size in objects(trial.bucket).values())
    _, in_directory = found_by_find(trial.home.archive, "-not", "-path", "*/.quaymaster-*")
    assert said["bytes_out"] == at_server + in_directory
    assert said["ratio"] == pytest.approx(2 * total / (at_server + in_directory), rel=1e-6)
    assert len(objects(trial.bucket)) == len(published(trial.home)) == count
    again = trial.call("sync", "--quiet")
    assert (again["skipped"], again["sent"]) == (count, 0)
    return count


def reported(trial: Trial) -> None:
    """The directories of the report add up to what find says, of both sides."""
    for root in (trial.home.landing, trial.home.archive):
        said = trial.call("report", str(root))["directories"]
        plain, packed = sum(d["uncompressed"] for d in said), sum(d["compressed"] for d in said)
        total = sum(d["uncompressed_bytes"] + d["compressed_bytes"] for d in said)
        own = ("-not", "-path", "*/.quaymaster-*")
        assert (plain + packed, total) == found_by_find(root, *own)
        assert packed <= found_by_find(root, *own, "-regex", r".*\.\(gz\|zst\)")[0]
        assert len(said) == len({d["path"] for d in said})


def verified(trial: Trial, count: int) -> None:
    for level in ("listing", "checksum", "readback"):
        said = trial.call("verify", "--quiet", "--level", level)
        assert (said["copies"], said["good"], said["ok"]) == (2 * count, 2 * count, True), said
    assert said["read"] == 2 * count
    assert said["read_bytes"] == said["bytes"]


def restored(trial: Trial, before: dict[bytes, tuple[str, int, int]]) -> None:
    """From either destination, every byte, time and permission bit."""
    for name in ("archive", "near"):
        to = trial.home.folder / f"back-from-{name}"
        said = trial.call("restore", "--quiet", "--destination", name, "--to", str(to))
        assert (said["restored"], said["bytes"]) == (len(before), sum(size for _, size in [found_by_find(to)]))
        assert tree(to) == before
        shutil.rmtree(to)


def opened_by_stock_tools(trial: Trial, before: dict[bytes, tuple[str, int, int]]) -> None:
    names = sorted(published(trial.home))
    for name in [*names[:: trial.amount.looked_at], *(n for n in names if n.startswith(b"reads-"))]:
        path = os.path.join(os.fsencode(trial.home.archive), name)
        source = name if name in before else name.removesuffix(b".zst")
        digest = file_sha256(path) if name in before else expanded_sha256(Path(os.fsdecode(path)))
        assert digest == before[source][0], name


def lost_and_found(trial: Trial, count: int) -> None:
    """Without its database, and without any state, nothing is sent again."""
    there = objects(trial.bucket), published(trial.home)
    state = trial.home.folder / "state"
    (state / "quaymaster.db").unlink()
    refused = trial.service.command("sync", "--quiet", timeout=trial.amount.timeout)
    assert refused.returncode, "a lost database is never a silent new beginning"
    assert "quaymaster rebuild" in refused.stderr
    said = trial.call("rebuild")
    assert (said["adopted"], said["orphans"], said["problems"]) == (count, 0, [])
    again = trial.call("sync", "--quiet")
    assert (again["skipped"], again["sent"]) == (count, 0)
    shutil.rmtree(state)
    again = trial.call("sync", "--quiet")
    assert (again["adopted"], again["sent"], again["failed"]) == (count, 0, 0), again
    assert (objects(trial.bucket), published(trial.home)) == there


@pytest.mark.parametrize(
    "amount",
    [
        pytest.param(SHORT, id="short", marks=pytest.mark.timeout(900)),  # where everything else runs too
        pytest.param(WHOLE, id="whole", marks=[pytest.mark.soak, pytest.mark.timeout(4 * 3_600)]),
    ],
)
def test_much_real_data_goes_there_and_back(trial_of: Callable[[Amount], Trial], amount: Amount) -> None:
    trial = trial_of(amount)
    with trial.timed("filling the landing"):
        fill(trial)
    before = tree(trial.home.landing)
    count = synced(trial)
    print(f"{count:,} files, {found_by_find(trial.home.landing)[1] / MIB:,.0f} MiB")
    reported(trial)
    verified(trial, count)
    opened_by_stock_tools(trial, before)
    restored(trial, before)
    lost_and_found(trial, count)
    assert tree(trial.home.landing) == before
    assert not trial.home.leftovers()
    assert not trial.bucket.uploads()
    trial.call("audit", "verify")
