"""M1, X3: an object becomes a file when its bytes are proven; what a crash left on the disk is not fetched again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard

from quaymaster.config import Mirror
from quaymaster.config.bandwidth import Bandwidth
from quaymaster.destinations import checksums
from quaymaster.destinations.base import Reading
from quaymaster.errors import IntegrityError, NotSupported, OutOfSpace, SourceChanged, Unreachable
from quaymaster.mirror.download import Download
from quaymaster.mirror.plan import Listed, tag_of
from quaymaster.mirror.release import Ground
from quaymaster.model import FileVersion, Identity, Job, State, Stored
from quaymaster.pipeline.bandwidth import Meter, Traffic
from quaymaster.pipeline.budget import Pool

PATH = b"m/1/model.bin"
KEY = "m/1/model.bin"
LENGTH = 4096


class Source:
    """A bucket with one object; ``breaks_at``: the connection ends there."""

    name = "store"

    def __init__(self, content: bytes, stored: Stored) -> None:
        self.content, self.stored = content, stored
        self.ranges = True
        self.breaks_at, self.starts = len(content) + 1, list[int]()

    def stat(self, key: str) -> Stored | None:
        return self.stored

    def fill(self, stored: Stored, at: int, buffer: memoryview) -> None:
        if not self.ranges:
            raise NotSupported("no ranges")
        if at + len(buffer) > self.breaks_at:
            raise Unreachable("the connection ended")
        self.starts.append(at)
        buffer[:] = self.content[at : at + len(buffer)]

    @contextmanager
    def read(self, stored: Stored, at_once: int = 1) -> Iterator[Reading]:
        self.starts.append(-1)
        yield Reading(stored, iter([self.content[:500], self.content[500:]]))


class Scene:
    def __init__(self, folder: Path, content: bytes, **told: object) -> None:
        etag = hashlib.md5(content).hexdigest()
        self.content = content
        self.source = Source(content, replace(Stored(KEY, len(content), etag, mtime=1e9), **told))  # type: ignore[arg-type]
        self.root = folder
        self.boot = "b1"
        self.settings: dict[str, object] = {"disk_free": "1MiB"}

    def run(self) -> tuple[bytes, str]:
        """The file's content, and what proved it."""
        mirror = Mirror(name="models", source="store", path=str(self.root), **self.settings)  # type: ignore[arg-type]
        traffic = Traffic(Meter(Bandwidth()))
        bounds = SimpleNamespace(memory=Pool(1 << 30), traffic=traffic)
        ground = Ground(str(self.root), "models", lambda: "token", lambda: 1e9)
        download = Download(mirror, self.source, ground, bounds, lambda: False, self.boot, LENGTH)  # type: ignore[arg-type]
        stored = self.source.stored
        tag = tag_of(stored.etag, stored.size)
        version = FileVersion("models", PATH, Identity(tag, stored.size, 0))
        job = Job(7, version, State.RUNNING, None, 0, 0, None, "", "", 0.0, None, None)
        done, _ = download.run(job, Listed(PATH, stored, tag), lambda *_: None)
        return (self.root / ".qm-mirror-models/objects/7.file").read_bytes(), done.evidence

    def left(self) -> list[str]:
        return sorted(os.listdir(self.root / ".qm-mirror-models/objects"))


@pytest.fixture
def scene(tmp_path: Path) -> Callable[..., Scene]:
    return lambda content=os.urandom(20_000), **told: Scene(tmp_path, content, **told)


def told_by(content: bytes, compression: str = "none") -> dict[str, str]:
    sha256 = hashlib.sha256(content).hexdigest()
    said = {"quaymaster-sha256": sha256, "quaymaster-size": str(len(content)), "quaymaster-mtime": "5"}
    return said | {"quaymaster-compression": compression}


def kept(name: str, content: bytes) -> str:
    running = checksums.of_whole(f"{name.upper()}:=")
    assert running is not None
    running.update(content)
    return f"{name.upper()}:{running.text()}"


def test_what_came_before_a_crash_is_not_fetched_again(scene: Callable[..., Scene]) -> None:
    s = scene()
    s.source.breaks_at = 9_000
    with pytest.raises(Unreachable):
        s.run()
    assert s.left() == ["7.b1.part"]
    s.source.breaks_at = len(s.content) + 1
    s.source.starts.clear()
    assert s.run() == (s.content, "etag-md5")
    assert sorted(s.source.starts) == [2 * LENGTH, 3 * LENGTH, 4 * LENGTH]
    assert s.left() == ["7.file"]


def test_a_server_without_ranges_sends_it_whole(scene: Callable[..., Scene]) -> None:
    s = scene()
    s.source.ranges = False
    assert s.run()[0] == s.content
    assert s.source.starts == [-1]


def test_after_a_power_cut_it_begins_anew(scene: Callable[..., Scene]) -> None:
    s = scene()
    s.source.breaks_at = 9_000
    with pytest.raises(Unreachable):
        s.run()
    s.boot, s.source.breaks_at = "b2", len(s.content) + 1
    s.source.starts.clear()
    assert s.run()[0] == s.content
    assert sorted(s.source.starts) == list(range(0, len(s.content), LENGTH))
    assert s.left() == ["7.file"]


def test_a_damaged_beginning_is_noticed_and_fetched_again(scene: Callable[..., Scene]) -> None:
    s = scene()
    s.source.breaks_at = 9_000
    with pytest.raises(Unreachable):
        s.run()
    part = s.root / ".qm-mirror-models/objects/7.b1.part"
    part.write_bytes(bytes(2 * LENGTH))
    s.source.breaks_at = len(s.content) + 1
    with pytest.raises(IntegrityError):
        s.run()
    assert s.left() == []
    assert s.run()[0] == s.content


@pytest.mark.parametrize("what", ["sha256", "sha1", "crc64nvme", "crc32c", "crc32", "metadata", "etag", "parts"])
def test_wrong_bytes_are_refused_by_each_proof(scene: Callable[..., Scene], what: str) -> None:
    content = os.urandom(20_000)
    sums = {
        **{name: {"checksum": kept(name, content)} for name in ("sha256", "sha1", "crc64nvme", "crc32c", "crc32")},
        "metadata": {"metadata": told_by(content), "etag": "0" * 32},
        "etag": {},
        "parts": {"etag": hashlib.md5(hashlib.md5(content).digest()).hexdigest() + "-1"},
    }
    evidence = {"metadata": "quaymaster-sha256", "etag": "etag-md5", "parts": "etag-md5-parts"}
    s = scene(content, **sums[what])
    assert s.run() == (content, evidence.get(what, what))
    s.source.content = content[:-1] + bytes([content[-1] ^ 1])
    if what == "parts":  # the size of the parts is a guess: this proves no difference, and no equality
        assert s.run()[1] == ""
    else:
        with pytest.raises(IntegrityError):
            s.run()


def test_an_etag_that_is_no_md5_proves_nothing_where_that_is_known(scene: Callable[..., Scene]) -> None:
    s = scene(etag="f" * 32)
    with pytest.raises(IntegrityError, match="trust_etag = false"):
        s.run()
    s.settings["trust_etag"] = False
    assert s.run() == (s.content, "")


def test_what_was_compressed_is_expanded_within_its_bounds(scene: Callable[..., Scene]) -> None:
    content = bytes(100_000)
    packed = zstandard.compress(content)
    s = scene(packed, metadata=told_by(content, "zstd"))
    assert s.run() == (content, "quaymaster-sha256")
    s.source.stored = replace(s.source.stored, metadata=told_by(content[:-1], "zstd"))
    with pytest.raises(IntegrityError):
        s.run()
    assert s.left() == []


def test_an_object_that_changed_is_left_to_its_newer_version(scene: Callable[..., Scene]) -> None:
    s = scene()
    before = s.source.stored
    s.source.stat = lambda key: replace(before, etag="another")  # type: ignore[method-assign]
    with pytest.raises(SourceChanged):
        s.run()


def test_the_floor_of_the_disk_is_kept(scene: Callable[..., Scene]) -> None:
    s = scene()
    s.settings["disk_free"] = "900TiB"
    with pytest.raises(OutOfSpace, match="must stay free"):
        s.run()
    assert s.source.starts == []
