"""An archive to verify and to restore from: a real store, a real directory, and a bucket that lies as it is told."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from quaymaster.destinations.base import Destination, Put, Reading
from quaymaster.destinations.directory import Directory
from quaymaster.errors import Conflict, PermanentError, TransferError
from quaymaster.keys import escape
from quaymaster.model import Compression, Digests, FileVersion, Identity, Proof, Stored
from quaymaster.store import Delivery, Store

ENCODE = {Compression.NONE: bytes, Compression.ZSTD: zstandard.compress, Compression.GZIP: gzip.compress}


class Bucket:
    """Objects in memory, with what S3 keeps of them."""

    def __init__(self, name: str = "bucket") -> None:
        self.name = name
        self.objects: dict[str, tuple[Stored, bytes]] = {}
        self.versions: dict[str, tuple[Stored, bytes]] = {}
        self.asked: list[str] = []
        self.fail: Callable[[str, str], TransferError | None] = lambda what, key: None
        """Given ``stat``, ``list`` or ``read`` and a key, the error that this ends in."""

    def put(self, key: str, content: bytes, *, metadata: dict[str, str] | None = None, version: str = "") -> Stored:
        checksum = "SHA256:" + base64.b64encode(hashlib.sha256(content).digest()).decode()
        etag = hashlib.md5(content).hexdigest()
        stored = Stored(key, len(content), etag, version, checksum, metadata or {}, mtime=1000.0 + len(self.versions))
        self.objects[key] = stored, content
        self.versions[version] = stored, content
        return stored

    def _may(self, what: str, key: str) -> None:
        self.asked.append(f"{what} {key}")
        if error := self.fail(what, key):
            raise error

    def stat(self, key: str) -> Stored | None:
        self._may("stat", key)
        return self.objects[key][0] if key in self.objects else None

    def listing(self, prefix: str = "") -> Iterator[Stored]:
        for key, (stored, _) in list(self.objects.items()):
            self._may("list", key)
            if key.startswith(prefix):
                yield replace(stored, checksum="", metadata={})

    @contextmanager
    def read(self, stored: Stored, at_once: int = 1) -> Iterator[Reading]:
        self._may("read", stored.key)
        found = self.versions.get(stored.version_id) if stored.version_id else self.objects.get(stored.key)
        if found is None:
            raise PermanentError(f"{stored.key} is gone")
        if found[0].etag != stored.etag:
            raise Conflict(f"{stored.key} is not the object that was put there")
        yield Reading(found[0], iter([found[1][i : i + 1000] for i in range(0, len(found[1]), 1000)]))


class Archive:
    """A store, and the destinations ``nas`` (a directory) and ``bucket``."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_700_000_000.0
        self.store = Store(str(folder / "state"), create=True, clock=lambda: self.now)
        self.watched, self.path = folder / "landing", folder / "nas"
        self.watched.mkdir()
        self.path.mkdir()
        self.nas = Directory("nas", str(self.path), emit=lambda _: None)
        self.bucket = Bucket()
        self.configured: dict[str, Destination | Bucket] = {"nas": self.nas, "bucket": self.bucket}
        self._inode = 1000

    # quaymaster.pipeline.scrub.Places
    def known(self, name: str) -> bool:
        return name in self.configured

    def shared(self, name: str):
        return self.configured.get(name)

    def of(self, name: str, watch: str):
        return self.configured.get(name)

    def deliver(
        self,
        path: bytes,
        content: bytes = b"ACGT" * 100,
        compression: Compression = Compression.NONE,
        *,
        to: str | tuple[str, ...] = "nas",
        key: str = "",
        mtime_ns: int = 1_600_000_000_123_456_789,
        mode: int = 0o640,
        version_id: str = "",
    ) -> Delivery:
        """One version of a file, delivered a minute after the one before; the last of its deliveries."""
        self._inode += 1
        version = FileVersion("landing", path, Identity(self._inode, len(content), mtime_ns))
        self.store.enqueue([version])
        (job,) = self.store.claim(1)
        body = ENCODE[compression](content)
        source = Digests(len(content), hashlib.sha256(content).hexdigest())
        encoded = Digests(len(body), hashlib.sha256(body).hexdigest())
        for name in (to,) if isinstance(to, str) else to:
            self.now += 60
            at = key or escape(path) + compression.suffix
            if name == "nas":
                present = self.nas.stat(at)
                before = self.store.current(name, at)
                put = Put(at, len(body), replace=before.proof.stored if present and before else None)
                upload = self.nas.begin(replace(put, mtime_ns=mtime_ns, mode=mode))
                upload.write(body)
                stored = upload.publish(encoded, {})
            else:
                metadata = metadata_of(content, compression, mtime_ns, mode)
                stored = self.bucket.put(at, body, metadata=metadata, version=version_id)
            self.store.deliver(
                Proof(job.id, version, name, source, encoded, compression, "", stored, delivered_at=self.now)
            )
        self.store.finish(job, "kept")
        return self.store.deliveries("landing", path)[-1]

    def custody(self, kind: str) -> list[dict]:
        return [entry.fields for entry in self.store.custody() if entry.fields["kind"] == kind]


def metadata_of(content: bytes, compression: Compression, mtime_ns: int = 5, mode: int = 0o640) -> dict[str, str]:
    return {
        "quaymaster-size": str(len(content)),
        "quaymaster-mtime": str(mtime_ns),
        "quaymaster-mode": f"{mode:04o}",
        "quaymaster-compression": compression.value,
        "quaymaster-sha256": hashlib.sha256(content).hexdigest(),
    }


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def flip() -> Callable[[Path], None]:
    """Changes one bit in the middle of a file; its time, size and inode stay."""

    def act(path: Path) -> None:
        status = path.stat()
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return act
