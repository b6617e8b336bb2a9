"""What the directory destination asks of the kernel: reading past the cache, and publishing a name in one step."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from quaymaster.destinations.ahead import in_order
from quaymaster.errors import (
    Conflict,
    DestinationMissing,
    NameRefused,
    NotSupported,
    OutOfSpace,
    PermanentError,
    PermissionDenied,
    TransferError,
    Unreachable,
)
from quaymaster.model import shown

PIECE = 1 << 20  # bytes
NEW_FLAGS = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
"""What link(2) answers where a filesystem has no hard links."""

_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # rename(2)
_WRITE = 2  # sync_file_range(2): SYNC_FILE_RANGE_WRITE
_KEEP_SIZE = 1  # fallocate(2): FALLOC_FL_KEEP_SIZE
PAGE = 4096
"""Bytes; what is written past the cache begins and ends at a multiple of it, in memory and in the file."""
_NO_FLAGS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def disk_errors(where: str) -> Iterator[None]:
    """An OSError inside becomes the error that says what the queue does with it."""
    try:
        yield
    except OSError as error:
        raise _disk_error(error, where) from None


def _disk_error(error: OSError, where: str) -> TransferError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return OutOfSpace(f"There is no room for {where} ({reason})", "Free space there; it is tried again")
        case errno.EROFS:
            return PermissionDenied(
                f"{where} cannot be written ({reason})",
                "Mount it writable; if it is, the unit keeps the service out: quaymaster doctor prints what to add."
                " Then retry the job",
            )
        case errno.EACCES | errno.EPERM:
            return PermissionDenied(
                f"{where} cannot be written or read ({reason})",
                "Give the service's user (quaymaster, as installed) permission there, then retry the job",
            )
        case errno.ENAMETOOLONG | errno.EILSEQ:
            return NameRefused(f"The filesystem does not take the name of {where} ({reason})", "Rename the file")
        case errno.EFBIG:
            return NotSupported(f"{where} is larger than that filesystem allows", "Use another destination for it")
        case errno.ENOTDIR | errno.ELOOP | errno.EISDIR:
            return Conflict(
                f"A symbolic link, or a file in place of a directory, is in the way of {where} ({reason})",
                "Links are never followed below a destination: remove what is in the way, then retry the job",
            )
        case (
            errno.EIO | errno.ESTALE | errno.ETIMEDOUT | errno.EHOSTDOWN | errno.EHOSTUNREACH | errno.ENETUNREACH
            | errno.ENOENT | errno.EBUSY | errno.EAGAIN | errno.ENODEV | errno.ENXIO | errno.EREMOTEIO
            | errno.ECONNREFUSED | errno.ECONNRESET | errno.ENOTCONN | errno.ESHUTDOWN
            | errno.EMFILE | errno.ENFILE | errno.ENOMEM  # of this process or machine, and over when others let go
        ):  # fmt: skip
            return Unreachable(f"{where} cannot be reached now ({reason})", "It is tried again; look at the mount")
        case _:
            return PermanentError(f"{where} cannot be used ({reason})", "Correct the cause, then retry the job")


def open_root(path: str) -> int:
    """A descriptor of a destination's root, which is never created: what is below an unmounted share must not fill."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DestinationMissing(
            f"The directory {path} does not exist", "Mount or create it (it is never created by itself)"
        ) from None
    except NotADirectoryError:
        raise DestinationMissing(f"{path} is a file, not a directory", "Correct path of the destination") from None
    except OSError as error:
        raise _disk_error(error, path) from None


def open_below(directory: int, name: bytes, made: list[int] | None = None) -> int:
    """A descriptor of a directory's child directory, never through a symbolic link. Takes ``directory`` over.

    With ``made``, a missing one is created durably, and its depth appended (the caller counts).
    """
    try:
        try:
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            if made is None:
                raise
        try:
            os.mkdir(name, 0o777, dir_fd=directory)
            made.append(1)
            sync_directory(directory)
        except FileExistsError:
            pass  # another writer was faster
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)


def begin_writing(descriptor: int, offset: int, length: int) -> None:
    """Let the kernel write these bytes of a file to the disk now and not all at fsync (sync_file_range(2)). A hint:
    where it cannot be had, nothing is lost but time."""
    _libc.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), _WRITE)


def reserve(descriptor: int, size: int) -> None:
    """Take the room for a file of that size, whose length stays what it is (fallocate(2)). Raises OSError when there is
    none; a filesystem that cannot do it takes the room as the file grows."""
    call = getattr(_libc, "fallocate", None)
    if call and call(descriptor, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size)):
        code = ctypes.get_errno()
        if code not in _NO_FLAGS:
            raise OSError(code, os.strerror(code))


def write_past_cache(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of it, and do not keep it in the page cache: that costs several times what the disk does. Where the
    filesystem cannot, or the bytes are not whole pages, by the cache, with the disk at work at once."""
    direct = not (len(data) % PAGE or offset % PAGE) and _set_direct(descriptor, True)
    done = 0
    while done < len(data):
        try:
            done += os.pwrite(descriptor, data[done:], offset + done)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            direct = _set_direct(descriptor, False)
    if direct:
        _set_direct(descriptor, False)
    else:
        begin_writing(descriptor, offset, len(data))


def sync_directory(directory: int) -> None:
    """Make names durable. Some network filesystems cannot, and say EINVAL: there the server's own order holds."""
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise


def sync_found(directory: int, name: bytes) -> None:
    """Make a file that was found there durable, and its name: whoever wrote it may not have done so."""
    descriptor = os.open(name, READ_FLAGS, dir_fd=directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(directory)


def pieces_past_cache(descriptor: int) -> Iterator[memoryview]:
    """The file's bytes from the device or server, not from this host's page cache: O_DIRECT where it works, else the
    clean pages are dropped first (posix_fadvise(2); the file must have been synced). On tmpfs there is nothing but
    the cache. Each piece is valid until the next one is asked for."""
    direct = _set_direct(descriptor, True)
    if not direct:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    offset = 0
    with mmap.mmap(-1, PIECE) as buffer, memoryview(buffer) as view:  # page-aligned, as O_DIRECT needs it
        while True:
            try:
                size = os.preadv(descriptor, [view], offset)
            except OSError as error:
                if not direct or error.errno != errno.EINVAL:
                    raise
                direct = _set_direct(descriptor, False)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                continue
            if not size:
                return
            with view[:size] as piece:
                yield piece
            if not direct:
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)
            offset += size


def _set_direct(descriptor: int, wanted: bool) -> bool:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return wanted


def digest_past_cache(descriptor: int, beat: Callable[[], None] = lambda: None, at_once: int = 1) -> tuple[int, str]:
    """(bytes, SHA-256 in hex) of the file as the device or server has it. ``beat`` is called for each piece. With
    ``at_once``, so many pieces are asked for at a time, where each takes long to come."""
    size, digest = 0, hashlib.sha256()
    for piece in _pieces_at_once(descriptor, at_once) if at_once > 1 else pieces_past_cache(descriptor):
        beat()
        size += len(piece)
        digest.update(piece)
    return size, digest.hexdigest()


def _pieces_at_once(descriptor: int, at_once: int) -> Iterator[bytes]:
    direct = _set_direct(descriptor, True)
    if not direct:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def fetch(offset: int) -> bytes:
        with mmap.mmap(-1, PIECE) as buffer, memoryview(buffer) as view:  # page-aligned, as O_DIRECT needs it
            try:
                size = os.preadv(descriptor, [view], offset)
            except OSError as error:
                if not direct or error.errno != errno.EINVAL:
                    raise
                _set_direct(descriptor, False)
                size = os.preadv(descriptor, [view], offset)
            return bytes(view[:size])

    yield from in_order(fetch, range(0, os.fstat(descriptor).st_size, PIECE), at_once)
    if not direct:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def publish_name(directory: int, part: bytes, leaf: bytes) -> str:
    """Give ``part`` the name ``leaf`` in one step, unless it is taken (FileExistsError). Returns the way it was done:
    ``link``, ``rename`` or ``claim``; directory.py says what each guarantees."""
    ours = identity(directory, part)
    try:
        try:
            os.link(part, leaf, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            os.unlink(part, dir_fd=directory)
            return "link"
        if rename_noreplace(directory, part, leaf):
            return "rename"
        _rename_claimed(directory, part, leaf)
        return "claim"
    except OSError:
        # NFS repeats a request whose reply was lost, and then reports that the name exists, or that the part is gone.
        if identity(directory, leaf) != ours:
            raise
        with suppress(FileNotFoundError):
            os.unlink(part, dir_fd=directory)
        return "link"


def _rename_claimed(directory: int, part: bytes, leaf: bytes) -> None:
    claim = b".qm-" + hashlib.sha256(leaf).hexdigest()[:32].encode() + b".claim"
    try:
        os.close(os.open(claim, NEW_FLAGS, 0o600, dir_fd=directory))
    except FileExistsError:
        raise Unreachable(
            f"Another quaymaster is giving the name {shown(leaf)}",
            f"It is tried again; if none runs, remove {shown(claim)} in that directory",
        ) from None
    try:
        if identity(directory, leaf) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), leaf)
        os.rename(part, leaf, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.unlink(claim, dir_fd=directory)


def identity(directory: int, name: bytes) -> tuple[int, int] | None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def rename_noreplace(directory: int, old: bytes, new: bytes, beyond: int | None = None) -> bool:
    """Rename within a directory, or into the directory ``beyond``, unless ``new`` exists (FileExistsError). False: this
    filesystem cannot promise that."""
    return _renameat2(directory, old, new, _RENAME_NOREPLACE, beyond)


@contextmanager
def alone(directory: int, where: str) -> Iterator[None]:
    """One at a time of those who replace files in this directory: of three who exchange and put back at once, two can
    put back each other's. Lasts for a few calls of the kernel, which drops it with the process (flock(2)). Filesystems
    that know no locks on directories (NFS) cannot exchange names either."""
    for _ in range(500):
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            break
    else:
        raise Unreachable(f"Another program keeps the directory of {where} locked", "It is tried again")
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(directory, fcntl.LOCK_UN)


def exchange(directory: int, one: bytes, other: bytes, beyond: int | None = None) -> bool:
    """Swap two names in one step; ``other`` is in the directory ``beyond``, if given. False: this filesystem cannot."""
    return _renameat2(directory, one, other, _RENAME_EXCHANGE, beyond)


def _renameat2(directory: int, old: bytes, new: bytes, flags: int, beyond: int | None = None) -> bool:
    # The C library has it since glibc 2.28 and musl 1.2.5; without it the answer is that it cannot be done.
    call = getattr(_libc, "renameat2", None)
    if call is None:
        return False
    if call(directory, old, directory if beyond is None else beyond, new, flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_FLAGS:
        return False
    raise OSError(code, os.strerror(code), new)
