"""A unit of very many files in many directories: nothing is held in memory, and nobody waits for it (PRODUCT W5)."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from system.bucket import Bucket
from system.conftest import Home
from system.service import Service, until
from system.units import RUN, published

Serve = Callable[..., Service]
FILES = 100_000
IN_ONE_DIRECTORY = 100
MIB = 1 << 20


def run_of(folder: Path, files: int) -> int:
    """Write it; returns the bytes of its files."""
    size = 0
    for number in range(files):
        directory = folder / f"tile_{number // IN_ONE_DIRECTORY:05}"
        if number % IN_ONE_DIRECTORY == 0:
            directory.mkdir(parents=True)
        content = b"%d " % number
        (directory / f"file_{number:07}.bin").write_bytes(content)
        size += len(content)
    return size


def peak(pid: int) -> int:
    """Bytes that a process had in memory at most: proc(5), VmHWM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_unit_of_100000_files_is_published_and_comes_back(home: Home, serve: Serve, bucket: Bucket) -> None:
    """Through the service, with another unit beside it; then checked and brought back by its manifest alone."""
    files, limit = FILES, 3000.0
    service = serve(home.config(RUN + '\nkey = "{path}"', bucket.destination()))
    size = run_of(home.folder / "ready", files)
    os.rename(home.folder / "ready", home.landing / "run1")
    home.land("run1/CopyComplete.txt", b"")
    until(lambda: service.jobs(watch="landing", limit=1), 60)
    for name in ("a", "CopyComplete.txt"):
        home.land(f"run2/{name}", b"a" if name == "a" else b"")
    asked, began = list[float](), time.monotonic()

    def there() -> bool:
        for command in ("units", "status"):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert service.command(command, timeout=limit).returncode == 0
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            asked.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        (one, *_) = service.cli("units")[1]["units"]
        return bool(one["state"] == "published")

    published(service, path=b"run2", timeout=limit)
    until(there, limit, f"{service.cli('units')}")
    unit = published(service)
    took = time.monotonic() - began
    assert (unit.files, unit.bytes, unit.missing) == (files + 1, size, 0)
    memory = peak(service.pid)
    print(f"{files:,} files: {took:.0f} s, {memory / MIB:.0f} MiB, questions {max(asked):.1f} s of processor time")
    assert memory < 200 * MIB
    assert max(asked) < 5
    service.stop()
    shutil.rmtree(home.folder / "state")
    to = home.folder / "back"
    for command in (["verify", "--unit", "run1"], ["restore", "--unit", "run1", "--to", str(to)]):
        done = service.command(*command, "--json", timeout=limit)
        assert done.returncode == 0, done.stderr[-2000:]
        said = json.loads(done.stdout)
        assert said.get("good", said.get("restored")) == files + 1
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=to, check=True)
