"""A scene for the commands: real directories, a real configuration and a real store, filled by hand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quaymaster.cli import main
from quaymaster.model import Compression, Digests, FileVersion, Identity, Job, Proof, State, Stored
from quaymaster.source import identity_of
from quaymaster.store import Filter, Store


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Scene:
    def __init__(self, base: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.base = base
        self._capture = capture
        self.watched = base / "landing"
        self.watched.mkdir()
        (base / "archive").mkdir()
        self.state = base / "state"
        self.config = base / "quaymaster.toml"
        self.config.write_text(
            f"""
[service]
state_dir = "{self.state}"
staging_dir = "{base}/staging"
[destination.archive]
type = "directory"
path = "{base}/archive"
[watch.sequencer]
path = "{self.watched}"
destinations = ["archive"]
settle = "5s"
"""
        )
        self.store = Store(str(self.state), create=True)

    def run(self, *arguments: str | bytes) -> Answer:
        """The command in this process, on this scene's configuration."""
        return self.run_bare(*arguments, "--config", str(self.config))

    def run_bare(self, *arguments: str | bytes) -> Answer:
        self._capture.readouterr()
        code = main([*map(os.fsdecode, arguments)])
        captured = self._capture.readouterr()
        return Answer(code, captured.out, captured.err)

    def spawn(
        self, *arguments: str | bytes, stdout: int = subprocess.PIPE, encoding: str = "utf-8",
        **environment: str,
    ) -> Answer:  # fmt: skip
        """The command as people call it, in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "quaymaster", *arguments],
            env={**os.environ, "QUAYMASTER_CONFIG": str(self.config), **environment},
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, timeout=60,
        )  # fmt: skip
        return Answer(done.returncode, (done.stdout or b"").decode(encoding), done.stderr.decode(encoding))

    def forget_store(self) -> None:
        """As before the first start of the service."""
        self.store.close()
        shutil.rmtree(self.state)

    def land(self, path: bytes = b"a.fastq", content: bytes = b"ACGT" * 100) -> FileVersion:
        """A file on the disk, quiet for an hour."""
        full = os.path.join(os.fsencode(self.watched), path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as file:
            file.write(content)
        os.utime(full, ns=(an_hour_ago := time.time_ns() - 3600 * 10**9, an_hour_ago))
        return FileVersion("sequencer", path, identity_of(os.stat(full)))

    def queue(self, path: bytes = b"a.fastq", size: int = 400, watch: str = "sequencer") -> Job:
        """A job whose file is not on the disk."""
        return self.enqueue(FileVersion(watch, path, Identity(7, size, 1_700_000_000_123_456_789)))

    def enqueue(self, version: FileVersion) -> Job:
        self.store.enqueue([version])
        return self.job(self.store.jobs(Filter(watch=version.watch, path=version.path))[-1].id)

    def job(self, number: int) -> Job:
        (found,) = self.store.jobs(Filter(ids=(number,)))
        return found

    def start(self, job: Job) -> Job:
        """Running: nothing else must be in the queue."""
        (claimed,) = self.store.claim(1)
        assert claimed.id == job.id
        return claimed

    def fail(self, job: Job, state: State, code: str, error: str, retry_at: float | None = None) -> Job:
        self.store.fail(self.start(job), state, code, error, retry_at=retry_at)
        return self.job(job.id)

    def park(self, job: Job, code: str = "permission-denied", error: str = "x cannot be read. Give permission") -> Job:
        return self.fail(job, State.PARKED, code, error)

    def deliver(self, job: Job, content: bytes = b"ACGT" * 100, disposal: str = "kept", key: str = "") -> Job:
        job = self.start(job)
        stored = content[::2]
        self.store.deliver(
            Proof(
                job=job.id,
                version=job.version,
                destination="archive",
                source=Digests(job.version.size, hashlib.sha256(content).hexdigest(), {"md5": "ab" * 16}),
                stored_digests=Digests(len(stored), hashlib.sha256(stored).hexdigest()),
                compression=Compression.ZSTD,
                compression_note="",
                stored=Stored(
                    key or "sequencer/a.fastq.zst", len(stored), "12:34", "v1", "sha256:00ff", {}, "readback"
                ),
                delivered_at=1_700_000_100.5,
            )
        )
        self.store.finish(job, disposal)
        return self.job(job.id)


@pytest.fixture
def scene_at(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Scene]]:
    for name in ("QUAYMASTER_CONFIG", "QUAYMASTER_DEBUG", "QUAYMASTER_DISABLE_COMPRESSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    with contextlib.ExitStack() as stack:

        def make(base: Path) -> Scene:
            made = Scene(base, capsys)
            stack.callback(made.store.close)
            return made

        yield make


@pytest.fixture
def scene(tmp_path: Path, scene_at: Callable[[Path], Scene]) -> Scene:
    return scene_at(tmp_path)
