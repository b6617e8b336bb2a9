"""One object, from the bucket to a verified file in the hidden directory (PRODUCT M1, X3).

    HEAD ──► room? ──► ranges, in order, onto the disk ──► digests as told? ──► expand ──► SHA-256 as told? ──► its name

What is on the disk after a crash is read again and the download goes on behind it, as long as the same kernel runs: a
power cut may have kept the length of a file and not its bytes. Each range is asked for by the ETag, so an object that
changes under way is never put together from two.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from quaymaster.destinations import disk
from quaymaster.destinations.s3_ranges import RANGE
from quaymaster.errors import (
    Conflict,
    IntegrityError,
    NotSupported,
    OutOfSpace,
    PermanentError,
    SourceChanged,
    TransferError,
)
from quaymaster.mirror.plan import Listed, bare, tag_of
from quaymaster.mirror.release import Ground
from quaymaster.model import Compression, Job, Stored
from quaymaster.pipeline import etag
from quaymaster.pipeline.adopt import Told
from quaymaster.pipeline.budget import Cancelled
from quaymaster.pipeline.formats import expand
from quaymaster.pipeline.transfer import Bounds
from quaymaster.store import Downloaded

if TYPE_CHECKING:
    from quaymaster.config import Mirror
    from quaymaster.destinations.s3 import S3

AT_ONCE = 8
"""Ranges of one object under way or not yet written; one, when there is no memory for more."""
_HASHED = 2
"""Ranges that wait to be hashed, beside those."""
_ADVICE = "It is downloaded anew; if it stays so, look at what was uploaded"

Progress = Callable[[int, int], None]
"""Told of bytes of the file made, and of bytes that came."""


@dataclass(slots=True)
class Download:
    """Downloads of one mirror. Thread-safe."""

    mirror: Mirror
    source: S3
    ground: Ground
    bounds: Bounds
    cancelled: Callable[[], bool]
    boot: str
    """Of the running kernel."""

    def run(self, job: Job, listed: Listed | None, progress: Progress) -> tuple[Downloaded, dict[str, Any]]:
        """The object of a job as a file, and what the custody log is to say of it. Raises TransferError, Cancelled."""
        now = self._as_it_is(job, listed)
        told = Told.by(now)
        compression = told.compression if told else Compression.NONE
        size = told.size if told else now.size
        with self.ground.objects() as directory, disk.disk_errors(self.ground.where(job.version.path)):
            name = b"%d.%b.part" % (job.id, self.boot.encode())
            self._remove_other_parts(directory, job, name)
            self._require_room(directory, now.size + (size if compression is not Compression.NONE else 0))
            with open(self._opened(directory, name), "r+b", buffering=0) as part:
                try:
                    checks = self._fetch(part.fileno(), now, told, progress)
                    evidence, sha256 = checks.verdict(now, told)
                except (IntegrityError, SourceChanged):
                    os.unlink(name, dir_fd=directory)
                    raise
                if compression is not Compression.NONE:
                    assert told is not None
                    name = self._expand(directory, job, part.fileno(), told, compression)
                    evidence, sha256 = "quaymaster-sha256", told.sha256
            status = self.ground.finish(directory, name, b"%d.file" % job.id, _mode(now), _mtime(now))
            self._remove_other_parts(directory, job, b"%d.file" % job.id)
        target = bare(job.version.path, compression is not Compression.NONE)
        done = Downloaded(
            job.version.path, job.version.identity.inode, job.id, target, size, sha256, evidence,
            status.st_ino, status.st_mtime_ns,
        )  # fmt: skip
        said = {"key": now.key, "etag": now.etag, "version_id": now.version_id, "stored_size": now.size}
        said |= {"size": size, "sha256": sha256, "compression": compression.value, "evidence": evidence or "size"}
        return done, said

    def _as_it_is(self, job: Job, listed: Listed | None) -> Stored:
        """The object with all that is told of it. SourceChanged when it is another one by now."""
        now = self.source.stat(listed.stored.key) if listed else None
        if now is None:
            raise SourceChanged("The object is not there any more", "Nothing is downloaded")
        if tag_of(now.etag, now.size) != job.version.identity.inode:
            raise SourceChanged(f"{now.key} has changed", "The newer one is downloaded")
        return now

    def _require_room(self, directory: int, size: int) -> None:
        status = os.fstatvfs(directory)
        free = status.f_bavail * status.f_frsize
        if free - size < self.mirror.disk_free:
            raise OutOfSpace(
                f"{self.mirror.path} has {free:,} bytes free; {size:,} are needed and {self.mirror.disk_free:,} must"
                " stay free",
                "Make room there, or set keep_versions or a lower disk_free for this mirror",
            )

    def _opened(self, directory: int, name: bytes) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=directory)

    def _remove_other_parts(self, directory: int, job: Job, but: bytes) -> None:
        beginning = b"%d." % job.id
        for name in map(os.fsencode, os.listdir(directory)):
            if name.startswith(beginning) and name != but:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)

    # -- the bytes --

    def _fetch(self, part: int, now: Stored, told: Told | None, progress: Progress) -> _Checks:
        checks = _Checks(now, told, self.mirror.trust_etag)
        start = self._resumed(part, now, checks)
        progress(0, start)
        try:
            self._read(part, now, start, checks, progress)
        except NotSupported:  # this server knows no ranges
            os.ftruncate(part, 0)
            checks = _Checks(now, told, self.mirror.trust_etag)
            self._read(part, now, 0, checks, progress, whole=True)
        return checks

    def _resumed(self, part: int, now: Stored, checks: _Checks) -> int:
        length = os.fstat(part).st_size
        if length > now.size or not now.etag:
            os.ftruncate(part, 0)
            return 0
        for piece in _pieces(part):
            self._go_on()
            checks.update(piece)
        return length

    def _read(
        self, part: int, now: Stored, start: int, checks: _Checks, progress: Progress, *, whole: bool = False
    ) -> None:
        """Bytes from ``start`` on go to the end of the file. The memory for ranges is asked for first."""
        if start == now.size and start:
            return
        least, most = (min(now.size, (ranges + _HASHED) * RANGE) for ranges in (1, AT_ONCE))
        memory = self.bounds.memory.lend(least, self.cancelled, most)
        written = start
        try:
            with memory as lent, self._pieces_of(now, start, whole, lent) as pieces, closing(_Beside(checks)) as beside:
                for piece in pieces:
                    self._go_on()
                    self.bounds.traffic.take(self.source.name, len(piece), self.cancelled)
                    beside.update(piece)
                    _write(part, piece, written)
                    written += len(piece)
                    progress(0, written)
        except NotSupported:
            raise
        except (Conflict, PermanentError) as error:
            if self._is_as_before(now):
                raise
            raise SourceChanged(f"{now.key} has changed under way ({error.message})", "") from None
        if written != now.size:
            raise IntegrityError(f"{now.key} came to {written:,} bytes instead of {now.size:,}", _ADVICE)

    def _pieces_of(self, now: Stored, start: int, whole: bool, memory: int) -> AbstractContextManager[Iterable[bytes]]:
        if whole:
            return self.source.read(replace(now, checksum=""))
        at_once = min(AT_ONCE, max(1, memory // RANGE - _HASHED))
        return closing(self.source.parts(now, start, at_once))

    def _is_as_before(self, then: Stored) -> bool:
        now = self.source.stat(then.key)
        return now is not None and (now.etag, now.size) == (then.etag, then.size)

    def _expand(self, directory: int, job: Job, part: int, told: Told, compression: Compression) -> bytes:
        name = b"%d.out" % job.id
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        digest = hashlib.sha256()
        with open(self._opened(directory, name), "r+b", buffering=0) as out:
            written = 0
            try:
                for piece in expand(self._while_wanted(_pieces(part)), compression, size=told.size):
                    _write(out.fileno(), piece, written)
                    digest.update(piece)
                    written += len(piece)
                if digest.hexdigest() != told.sha256:
                    raise IntegrityError(f"It has SHA-256 {digest.hexdigest()} instead of {told.sha256}", _ADVICE)
            except TransferError:
                self._remove_other_parts(directory, job, b"")
                raise
        return name

    def _while_wanted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._go_on()
            yield piece

    def _go_on(self) -> None:
        if self.cancelled():
            raise Cancelled


class _Beside:
    """Hashes on a thread of its own: that takes as long as the rest of what is done with bytes that came."""

    def __init__(self, checks: _Checks) -> None:
        self._checks = checks
        self._waiting: SimpleQueue[bytes | None] = SimpleQueue()
        self._room = threading.Semaphore(_HASHED)
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def update(self, piece: bytes) -> None:
        self._room.acquire()
        self._waiting.put(piece)

    def close(self) -> None:
        """Everything is hashed when this returns."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (piece := self._waiting.get()) is not None:
            self._checks.update(piece)
            self._room.release()


class _Checks:
    """Every digest of the stored bytes that something is told of."""

    def __init__(self, now: Stored, told: Told | None, trust_etag: bool) -> None:
        self._sha256 = hashlib.sha256()
        self._crc32: int | None = 0 if now.checksum.startswith("CRC32:") and "-" not in now.checksum else None
        proven = (now.checksum.startswith("SHA256:") and "-" not in now.checksum) or self._crc32 is not None
        by_content = told is not None and told.compression is Compression.NONE
        # The ETag alone costs a digest of its own; it is asked when nothing better is told.
        plain = etag.Told.by(replace(now, checksum="")) if not proven and not by_content else None
        plain = plain if plain and (trust_etag or plain.part_sizes) else None
        self._etag = etag.Running(plain) if plain else None

    def update(self, piece: bytes) -> None:
        self._sha256.update(piece)
        if self._crc32 is not None:
            self._crc32 = zlib.crc32(piece, self._crc32)
        if self._etag:
            self._etag.update(piece)

    def verdict(self, now: Stored, told: Told | None) -> tuple[str, str]:
        """What proved the stored bytes (empty: nothing but their number), and their SHA-256. Raises IntegrityError."""
        sha256 = self._sha256.hexdigest()
        kind, _, value = now.checksum.partition(":")
        found: list[str] = []
        if told and told.compression is Compression.NONE:
            _require(sha256 == told.sha256, now, f"SHA-256 {sha256} instead of {told.sha256}")
            found.append("quaymaster-sha256")
        if kind == "SHA256" and "-" not in value:
            ours = base64.b64encode(self._sha256.digest()).decode()
            _require(ours == value, now, f"SHA-256 {ours} instead of {value}")
            found.append("sha256")
        if self._crc32 is not None:
            crc = base64.b64encode(self._crc32.to_bytes(4)).decode()
            _require(crc == value, now, f"CRC32 {crc} instead of {value}")
            found.append("crc32")
        if self._etag:
            same, parts = self._etag.verdict()
            # Of parts only the sizes that programs commonly use were tried: another sum proves nothing.
            _require(same or parts, now, "another MD5 than its ETag (if the bucket is encrypted: trust_etag = false)")
            found += ["etag-md5-parts" if parts else "etag-md5"] if same else []
        return (found[0] if found else ""), sha256


def _require(true: bool, now: Stored, what: str) -> None:
    if not true:
        raise IntegrityError(f"{now.key} arrived with {what}", _ADVICE)


def _write(descriptor: int, piece: bytes, at: int) -> None:
    rest = memoryview(piece)
    while rest:
        done = os.pwrite(descriptor, rest, at)
        rest, at = rest[done:], at + done


def _pieces(descriptor: int) -> Iterator[bytes]:
    at = 0
    while piece := os.pread(descriptor, disk.PIECE, at):
        at += len(piece)
        yield piece


def _mode(now: Stored) -> int:
    """Readable for the model server, which is another user as a rule."""
    try:
        return 0o644 | (int(now.metadata["quaymaster-mode"], 8) & 0o111)
    except (KeyError, ValueError):
        return 0o644


def _mtime(now: Stored) -> int:
    try:
        exact = int(now.metadata["quaymaster-mtime"])
    except (KeyError, ValueError):
        exact = round(now.mtime * 1e6) * 1000
    return exact if 0 <= exact < 1 << 62 else 0
