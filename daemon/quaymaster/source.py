"""Reaching a source file without being led astray (PRODUCT X1).

A watched directory may be writable by people who must not read what the service can read. So every path is resolved
beneath its watch's root, no symbolic link is followed in any component, what was opened must be a regular file, and
a file with other hard links is refused unless nobody but its owner could have made them.

openat2(2) with RESOLVE_BENEATH does this in one call (Linux 5.6); older kernels walk the components by descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quaymaster.errors import (
    OutOfSpace,
    PermissionDenied,
    SourceRefused,
    SourceUnavailable,
    SourceVanished,
    TransferError,
)
from quaymaster.model import Identity, shown

_SYS_OPENAT2 = 437  # the same number on every architecture: include/uapi/asm-generic/unistd.h
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS

_READ_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY

_libc = ctypes.CDLL(None, use_errno=True)
_openat2_works = True


def identity_of(status: os.stat_result) -> Identity:
    return Identity(status.st_ino, status.st_size, status.st_mtime_ns)


def source_error(error: OSError, where: str) -> TransferError:
    """An OSError from a source, as the error that says what the queue does with it."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return SourceVanished(
                f"{where} is gone", "If it was removed on purpose: quaymaster jobs drop; else put it back and retry"
            )
        case errno.EACCES | errno.EPERM:
            return PermissionDenied(
                f"{where} cannot be read ({reason})", "Give the service's user read permission, then retry the job"
            )
        case errno.ELOOP | errno.EXDEV:
            return SourceRefused(f"{where} is reached through a symbolic link", "Links are never followed")
        case errno.ENOSPC | errno.EDQUOT:
            return OutOfSpace(f"{where}: {reason}")
        case _:
            return SourceUnavailable(f"{where} cannot be read now ({reason})", "It is tried again")


class Pulse:
    """Questions to one filesystem that it has not answered yet, as seen by other threads.

    A server that is down lets a call hang for ever, and no timeout helps. So whoever asks enters the pulse for as long
    as the call takes, and whoever wants to know reads :meth:`silence`.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._asked: dict[int, float] = {}

    def __enter__(self) -> None:
        self._asked[threading.get_ident()] = self._monotonic()

    def __exit__(self, *_: object) -> None:
        self._asked.pop(threading.get_ident(), None)

    def beat(self) -> None:
        """There was an answer, and this thread asks the next question."""
        if threading.get_ident() in self._asked:
            self.__enter__()

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """For what takes time on the way and is not the filesystem's fault."""
        asking = self._asked.pop(threading.get_ident(), None) is not None
        try:
            yield
        finally:
            if asking:
                self.__enter__()

    def silence(self) -> float:
        """Seconds for which the oldest question has been waiting; 0 when there is none."""
        asked = self._asked.copy().values()
        return max(0.0, self._monotonic() - min(asked)) if asked else 0.0


class Root:
    """The directory of one watch. Links in its own path are followed, none below it.

    Nothing is kept open, so that an unmounted or replaced directory is noticed at the next call. ``pulse`` is for those
    who call: nothing here enters it.
    """

    def __init__(self, path: str, *, hard_links: bool = False, pulse: Pulse | None = None) -> None:
        self.path = path
        self.pulse = pulse or Pulse()
        self._hard_links = hard_links

    def __fspath__(self) -> str:
        return self.path

    def shown(self, path: bytes) -> str:
        return shown(os.path.join(os.fsencode(self.path), path))

    def open(self, path: bytes) -> int:
        """A read-only descriptor of the regular file at ``path``; the caller closes it. Raises OSError as the kernel
        gave it, SourceRefused for what is not a plain file of its owner."""
        return self._checked(self._open_beneath(path, _READ_FILE), path)

    def open_in(self, directory: int, path: bytes) -> int:
        """The same as ``open(path)``, quicker, when ``directory`` is a descriptor of the directory that ``path`` is in,
        from :meth:`open_directory`."""
        flags = _READ_FILE | os.O_NOFOLLOW | os.O_CLOEXEC
        return self._checked(os.open(path.rpartition(b"/")[2], flags, dir_fd=directory), path)

    def _checked(self, descriptor: int, path: bytes) -> int:
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SourceRefused(f"{self.shown(path)} is not a regular file", "Only regular files are taken")
            if status.st_nlink > 1 and not self._hard_links:
                self._refuse_foreign_link(path, status)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def open_directory(self, path: bytes) -> int:
        """A descriptor of the directory at ``path`` (b"" is the root itself), for the calls that take ``dir_fd``."""
        if not path:
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._open_beneath(path, os.O_RDONLY | os.O_DIRECTORY)

    def _open_beneath(self, path: bytes, flags: int) -> int:
        global _openat2_works
        root = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _openat2_works:
                how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
                while True:
                    descriptor = _libc.syscall(_SYS_OPENAT2, root, path, how, len(how))
                    if descriptor >= 0:
                        return int(descriptor)
                    code = ctypes.get_errno()
                    if code in (errno.EAGAIN, errno.EINTR):
                        continue  # a rename raced with the walk: openat2(2)
                    # Seccomp filters that do not know openat2 answer EPERM; so does the kernel for a few files. A path
                    # longer than PATH_MAX (4,096 bytes) is legal, but only reached component by component.
                    if code not in (errno.ENOSYS, errno.EPERM, errno.ENAMETOOLONG):
                        raise OSError(code, os.strerror(code), path)
                    if code == errno.ENOSYS:
                        _openat2_works = False
                    break
            return _walk(root, path, flags)
        finally:
            os.close(root)

    def _refuse_foreign_link(self, path: bytes, status: os.stat_result) -> None:
        directory = self.open_directory(os.path.dirname(path))
        try:
            parent = os.fstat(directory)
        finally:
            os.close(directory)
        if status.st_uid != parent.st_uid or parent.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SourceRefused(
                f"{self.shown(path)} has {status.st_nlink} hard links and others may have made them",
                "Copy the file instead of linking it, or set hard_links = true for this watch",
            )


def _walk(root: int, path: bytes, flags: int) -> int:
    """What openat2 does, by descriptors: one component at a time, never through a link, never upwards."""
    parts = path.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    current = os.dup(root)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = below
        return os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
    finally:
        os.close(current)
