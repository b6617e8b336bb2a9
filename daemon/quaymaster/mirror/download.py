"""One object, from the bucket to a verified file in the hidden directory (PRODUCT M1, X3).

    HEAD ──► room? ──► ranges, in order, onto the disk ──► digests as told? ──► expand ──► SHA-256 as told? ──► its name

What is on the disk after a crash is read again and the download goes on behind it, as long as the same kernel runs: a
power cut may have kept the length of a file and not its bytes. Each range is asked for by the ETag, so an object that
changes under way is never put together from two.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from quaymaster.destinations import disk
from quaymaster.errors import (
    Conflict,
    IntegrityError,
    NotSupported,
    OutOfSpace,
    PermanentError,
    SourceChanged,
    TransferError,
)
from quaymaster.mirror.checks import ADVICE, Beside, Checks
from quaymaster.mirror.plan import Listed, bare, tag_of
from quaymaster.mirror.ranges import Ranges
from quaymaster.mirror.release import Ground
from quaymaster.model import Compression, Job, Stored
from quaymaster.pipeline.adopt import Told
from quaymaster.pipeline.budget import Cancelled
from quaymaster.pipeline.formats import expand
from quaymaster.pipeline.route import Bounds
from quaymaster.store import Downloaded

if TYPE_CHECKING:
    from quaymaster.config import Mirror
    from quaymaster.destinations.s3 import S3

_LENGTH = 16 << 20
"""Bytes of the longest ranges. A server that keeps objects in chunks spends a quarter less on each byte than with half
as much, and no less with more."""
_AT_ONCE = 6
"""Ranges of one object under way; fewer, when there is no memory for more."""
_BUFFERS = _AT_ONCE + 2
"""Ranges under way, being hashed and being written."""
_LEAST = 2

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
    length: int = _LENGTH
    """Bytes of the longest ranges; whole pages."""
    _earlier: dict[bytes, set[bytes]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, job: Job, listed: Listed | None, progress: Progress) -> tuple[Downloaded, dict[str, Any]]:
        """The object of a job as a file, and what the custody log is to say of it. Raises TransferError, Cancelled."""
        now = self._as_it_is(job, listed)
        told = Told.by(now)
        compression = told.compression if told else Compression.NONE
        size = told.size if told else now.size
        with self.ground.objects() as directory, disk.disk_errors(self.ground.where(job.version.path)):
            name = b"%d.%b.part" % (job.id, self.boot.encode())
            self._remove_other_parts(directory, job, name)
            with open(self._opened(directory, name), "r+b", buffering=0) as part:
                here = os.fstat(part.fileno()).st_blocks * 512
                more = size if compression is not Compression.NONE else 0
                self._require_room(directory, max(0, now.size - here) + more)
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
        names = {b"%d.out" % job.id, b"%d.file" % job.id, b"%d.%b.part" % (job.id, self.boot.encode())}
        for name in (names | self._of_earlier_boots(directory, job.id)) - {but}:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)

    def _of_earlier_boots(self, directory: int, job: int) -> set[bytes]:
        """What is there of the job from before; the directory, which may hold many, is read once."""
        with self._lock:
            if self._earlier is None:
                self._earlier = {}
                for name in map(os.fsencode, os.listdir(directory)):
                    self._earlier.setdefault(name.partition(b".")[0], set()).add(name)
            return self._earlier.pop(b"%d" % job, set())

    # -- the bytes --

    def _fetch(self, part: int, now: Stored, told: Told | None, progress: Progress) -> Checks:
        checks = Checks(now, told, self.mirror.trust_etag)
        start = self._resumed(part, now, checks)
        progress(0, start)
        try:
            if start < now.size:
                self._read(part, now, start, checks, progress)
        except NotSupported:  # this server knows no ranges
            os.ftruncate(part, 0)
            checks = Checks(now, told, self.mirror.trust_etag)
            self._read_whole(part, now, checks, progress)
        except (Conflict, PermanentError) as error:
            if self._is_as_before(now):
                raise
            raise SourceChanged(f"{now.key} has changed under way ({error.message})", "") from None
        return checks

    def _resumed(self, part: int, now: Stored, checks: Checks) -> int:
        """How many bytes are there already; they are hashed. Whole pages, but for a whole object."""
        length = os.fstat(part).st_size
        if length < now.size:
            length -= length % disk.PAGE
        if length > now.size or not now.etag:
            length = 0
        os.ftruncate(part, length)
        for piece in _pieces(part):
            self._go_on()
            checks.update(memoryview(piece))
        return length

    def _read(self, part: int, now: Stored, start: int, checks: Checks, progress: Progress) -> None:
        """Bytes from ``start`` on, in ranges, go to the end of the file. The memory for them is asked for first."""
        length = min(self.length, now.size - start)
        least, most = (min(length * ranges, now.size) for ranges in (_LEAST, _BUFFERS))
        with self.bounds.memory.lend(least, self.cancelled, most) as lent, ExitStack() as threads:
            if now.size - start <= length:
                self._read_small(part, now, start, checks, progress)
                return
            disk.reserve(part, now.size)
            ranges = Ranges(
                lambda at, buffer: self.source.fill(now, at, buffer), start, now.size, length,
                at_once=_AT_ONCE, buffers=max(_LEAST, lent // length), uses=1 + len(checks.updates),
            )  # fmt: skip
            threads.enter_context(closing(ranges))
            beside = [threads.enter_context(closing(Beside(update))) for update in checks.updates]
            for came in ranges:
                self._take(len(came.data))
                for each in beside:
                    each.put(came)
                disk.write_past_cache(part, came.data, start)
                start += len(came.data)
                came.give_back()
                progress(0, start)

    def _read_small(self, part: int, now: Stored, start: int, checks: Checks, progress: Progress) -> None:
        """What is left, in one request."""
        data = memoryview(bytearray(now.size - start))
        self.source.fill(now, start, data)
        self._take(len(data))
        checks.update(data)
        _write(part, data, start)
        progress(0, now.size)

    def _read_whole(self, part: int, now: Stored, checks: Checks, progress: Progress) -> None:
        """In one request that gives the object from its beginning."""
        written = 0
        with self.source.read(replace(now, checksum="")) as pieces:
            for piece in pieces:
                self._take(len(piece))
                checks.update(memoryview(piece))
                _write(part, piece, written)
                written += len(piece)
                progress(0, written)
        if written != now.size:
            raise IntegrityError(f"{now.key} came to {written:,} bytes instead of {now.size:,}", ADVICE)

    def _take(self, size: int) -> None:
        self._go_on()
        self.bounds.traffic.take(self.source.name, size, self.cancelled)

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
                    raise IntegrityError(f"It has SHA-256 {digest.hexdigest()} instead of {told.sha256}", ADVICE)
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


def _write(descriptor: int, piece: bytes | memoryview, at: int) -> None:
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
