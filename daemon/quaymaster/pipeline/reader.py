"""The source of one job: opened safely, known to be the version the job is about, copied to staging when it lies
on a network (PRODUCT P1)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from quaymaster.errors import IntegrityError, OutOfSpace, SourceChanged, SourceUnavailable, TransferError
from quaymaster.model import Identity
from quaymaster.pipeline.budget import Cancelled, Staging
from quaymaster.source import Root, identity_of, source_error

PIECE = 1 << 20
"""Bytes read at a time."""


@dataclass(slots=True)
class Reader:
    """An open source. ``known_sha256`` is its digest where an earlier reading (of the network original) gave one."""

    descriptor: int
    size: int
    mode: int
    shown: str
    known_sha256: str = ""

    def pieces(
        self, cancelled: Callable[[], bool], told: Callable[[int], None] = lambda _: None
    ) -> Callable[[], bytes]:
        """A function that gives the content in order, b"" at its end. Each call of this method starts at byte 0."""
        offset = 0

        def read() -> bytes:
            nonlocal offset
            if cancelled():
                raise Cancelled
            data = self.at(offset, PIECE)
            offset += len(data)
            told(offset)
            return data

        return read

    def at(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``, fewer only at the end."""
        try:
            return os.pread(self.descriptor, length, offset)
        except OSError as error:
            raise source_error(error, self.shown) from None

    def digest(self, cancelled: Callable[[], bool]) -> str:
        """SHA-256 of the content, by reading it once."""
        total = hashlib.sha256()
        read = self.pieces(cancelled)
        while data := read():
            total.update(data)
        return total.hexdigest()


@contextmanager
def opened(root: Root, path: bytes, expected: Identity, present: Callable[[], bool]) -> Iterator[Reader]:
    """Open one version of a file beneath its root. Raises SourceChanged when another version is there by now, and
    SourceUnavailable rather than SourceVanished while ``present()`` says that the whole watch is away."""
    shown = root.shown(path)
    try:
        descriptor = root.open(path)
    except OSError as error:
        if not present() or not os.path.isdir(root.path):
            raise SourceUnavailable(
                f"{root.path} is away (unmounted, or its server does not answer)", "It goes on when it is back"
            ) from None
        raise source_error(error, shown) from None
    try:
        status = os.fstat(descriptor)
        if identity_of(status) != expected:
            raise SourceChanged(f"{shown} was changed after it was queued", "The newer version is taken")
        yield Reader(descriptor, status.st_size, status.st_mode & 0o7777, shown)
    finally:
        os.close(descriptor)


def unchanged(root: Root, path: bytes, reader: Reader, expected: Identity) -> None:
    """Raise SourceChanged unless both the open file and whatever has its name now are still that version."""
    if identity_of(os.fstat(reader.descriptor)) == expected:
        try:
            descriptor = root.open(path)
        except OSError as error:
            raise source_error(error, reader.shown) from None
        try:
            if identity_of(os.fstat(descriptor)) == expected:
                return
        finally:
            os.close(descriptor)
    raise SourceChanged(f"{reader.shown} was changed while it was read", "The newer version is taken")


@contextmanager
def staged(
    source: Reader,
    staging: Staging,
    name: str,
    earlier_sha256: str,
    cancelled: Callable[[], bool],
    done: Callable[[str], None],
    progress: Callable[[int], None],
) -> Iterator[Reader]:
    """A local copy of ``source`` to read from instead.

    ``earlier_sha256`` is the digest noted when a copy of that name was completed before a restart; ``done`` is told
    the digest once the copy is complete and on the disk. Whoever reads the copy compares with ``known_sha256``,
    which proves the copy without one more reading. It is removed at the end, unless the service is stopping.
    """
    path = os.path.join(staging.directory, name)
    with staging.reserve(source.size) as wrote:
        sha256 = earlier_sha256
        if not (sha256 and _size_of(path) == source.size):
            sha256 = _copy(source, path, cancelled, wrote, progress)
            done(sha256)
        keep = False
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                yield Reader(descriptor, source.size, source.mode, path, known_sha256=sha256)
            finally:
                os.close(descriptor)
        except Cancelled:
            keep = True
            raise
        finally:
            if not keep:
                with suppress(OSError):
                    os.unlink(path)


def _size_of(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except OSError:
        return -1


def _copy(
    source: Reader,
    path: str,
    cancelled: Callable[[], bool],
    wrote: Callable[[int], None],
    progress: Callable[[int], None],
) -> str:
    total = hashlib.sha256()
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _staging_error(error, path) from None
    try:
        read = source.pieces(cancelled, progress)
        while data := read():
            total.update(data)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
            except OSError as error:
                raise _staging_error(error, path) from None
            wrote(len(data))
        try:
            os.fsync(descriptor)
            # What is read next is to come from the disk, so that the copy that is proven is the one on the disk.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise _staging_error(error, path) from None
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    return total.hexdigest()


def _staging_error(error: OSError, path: str) -> TransferError:
    reason = os.strerror(error.errno or 0)
    return OutOfSpace(
        f"The staging directory {os.path.dirname(path)} cannot take the copy ({reason})",
        "Make room there, check its owner, or set service.staging_dir to another local disk",
    )


def same(expected: str, found: str, what: str) -> None:
    """Raise IntegrityError unless two SHA-256 agree."""
    if expected != found:
        raise IntegrityError(
            f"{what}: SHA-256 {found} instead of {expected}", "Nothing was published; it is read again"
        )
