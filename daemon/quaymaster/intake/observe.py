"""One look at one file: what it is now, and whether a program is writing it (PRODUCT W4, X1).

By open and fstat, never stat alone: a network client answers stat from its cache.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from typing import TYPE_CHECKING

from quaymaster.intake.mounts import Ground
from quaymaster.intake.settle import Observation, Policy, Writer
from quaymaster.model import Identity
from quaymaster.source import Root, identity_of

if TYPE_CHECKING:
    from quaymaster.config import Watch


def ignore_lease_breaks() -> None:
    """To be called once, in the main thread, by whoever runs intake.

    A program that opens a file while its lease is held waits for the microseconds that this takes, and the kernel
    sends us SIGIO, whose default is to end the process.
    """
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def leases_are_safe() -> bool:
    return signal.getsignal(signal.SIGIO) is not signal.SIG_DFL


def policy_for(watch: Watch, ground: Ground) -> Policy:
    """Settle times of a watch where it stands. On network filesystems a file that is being written may seem to stand
    still for 35 s, hence 90 (PRODUCT W4)."""
    settle = watch.settle if watch.settle is not None else (90.0 if ground.network else 5.0)
    leases = ground.inotify and not ground.network and leases_are_safe()
    return Policy(settle, watch.settle_closed, watch.settle_per_gib, leases)


class Looks:
    """Looks at files one after the other; quicker when those of one directory follow each other, as it stays open.

    ``leases``: ask for a lease, on filesystems where the answer is true (fcntl(2), F_SETLEASE). ``wall_ns`` is the
    time now by the clock that stamps the files, or None where it is not to be trusted.
    """

    def __init__(self, root: Root, *, leases: bool, wall_ns: int | None) -> None:
        self._root, self._leases, self._wall_ns = root, leases, wall_ns
        self._directory = b""
        self._descriptor = -1

    def __enter__(self) -> Looks:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def look(self, path: bytes) -> Observation:
        """What is at ``path``. Raises SourceRefused for what is not taken, OSError for what cannot be read."""
        try:
            descriptor = self._open(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return Observation(None)
            raise
        try:
            # The lease is held while the file is looked at, so no writer can have changed what fstat says.
            writer = _writer(descriptor) if self._leases else Writer.UNKNOWN
            identity = identity_of(os.fstat(descriptor))
        finally:
            os.close(descriptor)  # gives the lease back
        age = None if self._wall_ns is None else (self._wall_ns - identity.mtime_ns) / 1e9
        return Observation(identity, writer, age)

    def _open(self, path: bytes) -> int:
        directory = path.rpartition(b"/")[0]
        if self._descriptor < 0 or directory != self._directory:
            self.__exit__()
            self._descriptor = self._root.open_directory(directory)
            self._directory = directory
        return self._root.open_in(self._descriptor, path)


def listed_identity(root: Root, path: bytes) -> Identity | None:
    """What the directory says of a file that cannot be opened."""
    folder, name = os.path.split(path)
    try:
        descriptor = root.open_directory(folder)
        try:
            return identity_of(os.stat(name, dir_fd=descriptor, follow_symlinks=False))
        finally:
            os.close(descriptor)
    except OSError:
        return None


def _writer(descriptor: int) -> Writer:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        # EACCES: the file is not ours and we have not CAP_LEASE. Anything else tells as little.
        return Writer.OPEN if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK) else Writer.UNKNOWN
    return Writer.NONE
