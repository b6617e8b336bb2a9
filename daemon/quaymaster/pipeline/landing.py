"""Putting a file into a directory that others may write to: hidden at first, then visible in one step (PRODUCT I6, X2).

Every component is reached by descriptor and never through a symbolic link; nothing that is there is overwritten. What
an interrupted run left is removed when a later one comes to the same directory.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

from quaymaster.destinations import disk
from quaymaster.destinations.owner import TAG, is_dead, own_tag
from quaymaster.errors import Conflict, NameRefused, OutOfSpace, PermanentError, TransferError
from quaymaster.model import Identity, shown
from quaymaster.source import identity_of

T = TypeVar("T")

_LONGEST_PATH = 4096
"""Bytes (PATH_MAX). Longer ones could be made, but hardly be opened by anybody."""
_PART = re.compile(rb"\.qm-%b-restore-[0-9a-f]+\.part" % TAG.encode())
_HIDDEN = re.compile(rb"\.(qm|quaymaster)-.*", re.DOTALL)
_LEAVES = 64 << 20
"""Bytes that stay free on a disk that is restored to."""
_STRIDE = 8 << 20
"""Bytes after which the disk is set to work, so that it writes while the rest is fetched."""
_SYNCING = 16
"""Files that are brought to the disk at a time."""


def require_name(path: bytes) -> None:
    """Raise NameRefused for what cannot be a file below a directory."""
    parts = path.split(b"/")
    if path.startswith(b"/"):
        problem = "it is absolute"
    elif b"\0" in path:
        problem = "it holds a NUL"
    elif any(part in (b"", b".", b"..") for part in parts):
        problem = 'it has an empty part, "." or ".."'
    elif len(path) > _LONGEST_PATH:
        problem = f"it has {len(path):,} bytes of at most {_LONGEST_PATH:,}"
    elif _HIDDEN.fullmatch(parts[-1]):
        problem = "names like this are quaymaster's own"
    else:
        return
    raise NameRefused(f"{shown(path[:300])} cannot be restored: {problem}")


class Ground:
    """A directory that files are put below. It must exist. Thread-safe.

    ``anchor`` is given a descriptor of it, or None when it cannot be opened, and raises when what belongs there is not
    mounted.
    """

    def __init__(
        self,
        path: str,
        *,
        anchor: Callable[[int | None], None] = lambda _: None,
        tag: str | None = None,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self.path = path
        self._anchor = anchor
        self._tag, self._token = tag or own_tag(), token
        self._folders: dict[tuple[int, int], bool] = {}  # whether upper and lower case are the same there
        self._parts: dict[bytes, int] = {}  # of files on their way: their directory
        self._lock = threading.Lock()

    def where(self, path: bytes) -> str:
        return shown(os.path.join(os.fsencode(self.path), path))

    @contextmanager
    def folder(self, path: bytes, *, create: bool) -> Iterator[int | None]:
        """A descriptor of the directory that ``path`` is in; None when it is missing and not to be made. Raises
        TransferError."""
        require_name(path)
        *folders, leaf = path.split(b"/")
        with disk.disk_errors(self.where(path)):
            directory = self._root()
            longest = os.fstatvfs(directory).f_namemax
            try:
                if too_long := [part for part in (*folders, leaf) if len(part) > longest]:
                    raise NameRefused(
                        f"{self.where(path)[:300]} cannot be restored: a part of it has {len(too_long[0])} bytes of at"
                        f" most {longest}"
                    )
                for folder in folders:
                    above, directory = directory, -1
                    directory = disk.open_below(above, folder, [] if create else None)
            except FileNotFoundError:
                if create:
                    raise
                yield None
                return
            except BaseException:
                if directory >= 0:
                    os.close(directory)
                raise
            try:
                if create:
                    self._enter(directory)
                yield directory
            finally:
                os.close(directory)

    def present(self, directory: int, path: bytes) -> os.stat_result | None:
        """What has the name now. Raises NameRefused where the filesystem takes another file's name for it, Conflict
        when it is no regular file."""
        leaf = os.path.basename(path)
        try:
            found = os.stat(leaf, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        status = os.fstat(directory)
        if self._folders.get((status.st_dev, status.st_ino)) and os.fsdecode(leaf) not in os.listdir(directory):
            raise NameRefused(
                f"{self.where(path)} cannot be restored: its filesystem takes it for another file there, whose name"
                " differs in upper and lower case",
                "Restore it to another directory with --to",
            )
        if not stat.S_ISREG(found.st_mode):
            raise Conflict(f"{self.where(path)} is there already and no regular file", "It is left alone: look at it")
        return found

    def holds(self, directory: int, path: bytes, size: int, sha256: str) -> bool:
        """Whether the file that has the name now has exactly this content."""
        descriptor = os.open(os.path.basename(path), disk.READ_FLAGS, dir_fd=directory)
        try:
            if os.fstat(descriptor).st_size != size:
                return False
            digest = hashlib.sha256()
            while piece := os.read(descriptor, disk.PIECE):
                digest.update(piece)
            return digest.hexdigest() == sha256
        finally:
            os.close(descriptor)

    def begin(self, directory: int, path: bytes, size: int) -> Landing:
        """A new file of ``size`` bytes, hidden as long as it is not published. Raises OutOfSpace."""
        space = os.fstatvfs(directory)
        free = space.f_bavail * space.f_frsize
        if free < size + _LEAVES:
            raise OutOfSpace(
                f"There is no room for {self.where(path)}: it needs {size:,} bytes, and {free:,} are free",
                "Free space there and restore again: it goes on where it stopped",
            )
        part = f".qm-{self._tag}-restore-{self._token()}.part".encode()
        return Landing(self, os.dup(directory), part, path)

    def sweep(self) -> None:
        """Remove the hidden files of threads that did not end in time (after Ctrl-C)."""
        with self._lock:
            for part, directory in self._parts.items():
                with suppress(OSError):
                    os.unlink(part, dir_fd=directory)

    # For landings

    def under_way(self, part: bytes, directory: int) -> None:
        with self._lock:
            self._parts[part] = directory

    def ended(self, part: bytes) -> None:
        with self._lock:
            self._parts.pop(part, None)

    def _root(self) -> int:
        try:
            directory = disk.open_root(self.path)
        except BaseException:
            self._anchor(None)
            raise
        try:
            self._anchor(directory)
        except BaseException:
            os.close(directory)
            raise
        return directory

    def _enter(self, directory: int) -> None:
        """The first time in a directory: remove what dead runs left, and find out whether it tells cases apart."""
        status = os.fstat(directory)
        known = (status.st_dev, status.st_ino)
        with self._lock:
            if known in self._folders:
                return
            for name in os.listdir(directory):
                left = os.fsencode(name)
                if _PART.fullmatch(left) and is_dead(left.removeprefix(b".qm-").decode()):
                    with suppress(FileNotFoundError):
                        os.unlink(left, dir_fd=directory)
            probe = f".qm-{self._tag}-restore-{self._token()}.part".encode()
            os.close(os.open(probe, disk.NEW_FLAGS, 0o600, dir_fd=directory))
            try:
                self._folders[known] = disk.identity(directory, probe.upper()) is not None
            finally:
                os.unlink(probe, dir_fd=directory)


class Landing:
    """One file on its way; :meth:`abort` it whatever happens. Used by one thread."""

    def __init__(self, ground: Ground, directory: int, part: bytes, path: bytes) -> None:
        """Takes ``directory`` over."""
        self._ground, self._directory, self._part, self._path = ground, directory, part, path
        self._written = self._begun = 0  # bytes that were given to the kernel, and that it was told to write out
        self._durable: Identity | None = None
        ground.under_way(part, directory)
        try:
            self._file = os.open(part, disk.NEW_FLAGS, 0o600, dir_fd=directory)
        except BaseException:
            ground.ended(part)
            os.close(directory)
            raise

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._written += len(data)
        if self._written - self._begun >= _STRIDE:
            disk.begin_writing(self._file, self._begun, self._written - self._begun)
            self._begun = self._written

    def dress(self, mode: int, mtime_ns: int) -> None:
        """Everything is written: give it the source's permission bits and time, and the disk its bytes. Raises
        PermanentError for a time that no filesystem has."""
        os.fchmod(self._file, mode & 0o777)
        try:
            os.utime(self._file, ns=(mtime_ns, mtime_ns))
        except OverflowError:
            raise PermanentError(f"{self.where} has an impossible time: {mtime_ns} ns") from None
        disk.begin_writing(self._file, self._begun, self._written - self._begun)
        self._begun = self._written

    def harden(self) -> Identity:
        """It is on the disk when this returns."""
        if self._durable is None:
            os.fsync(self._file)
            self._durable = identity_of(os.fstat(self._file))
        return self._durable

    @property
    def where(self) -> str:
        return self._ground.where(self._path)

    @property
    def folder(self) -> tuple[int, int]:
        """What tells its directory from others."""
        status = os.fstat(self._directory)
        return status.st_dev, status.st_ino

    def publish(self) -> bool:
        """Give it its name. False when that is taken."""
        try:
            disk.publish_name(self._directory, self._part, os.path.basename(self._path))
        except FileExistsError:
            return False
        return True

    def sync_folder(self) -> None:
        """Make its name durable, and all others that its directory has."""
        disk.sync_directory(self._directory)

    def abort(self) -> None:
        """Remove it, unless it was published."""
        if self._file < 0:
            return
        with suppress(OSError):
            os.unlink(self._part, dir_fd=self._directory)
        self._ground.ended(self._part)
        os.close(self._file)
        os.close(self._directory)
        self._file = -1


def publish(
    landings: Sequence[Landing], expect: Callable[[Mapping[int, Identity]], None]
) -> list[bool | TransferError]:
    """Give files that are dressed their names, durably: first the bytes of all, then all names, of which a disk makes
    many durable in little more time than one. Returns for each whether it has its name now (False: that is taken), or
    why it could not be done.

    ``expect`` is told which of them (by their index) are on the disk and are to get their names next.
    """
    ends: list[bool | TransferError] = [False] * len(landings)
    durable: dict[int, Identity] = {}
    folders: dict[tuple[int, int], list[int]] = {}

    @contextmanager
    def noted(at: int) -> Iterator[None]:
        try:
            with disk.disk_errors(landings[at].where):
                yield
        except TransferError as error:
            ends[at] = error

    def harden(at: int) -> None:
        with noted(at):
            durable[at] = landings[at].harden()

    def sync(named: list[int]) -> None:
        with noted(named[0]):
            landings[named[0]].sync_folder()
        for at in named:
            ends[at] = ends[named[0]]

    _at_once(harden, range(len(landings)))
    expect(durable)
    for at in durable:
        with noted(at):
            ends[at] = landings[at].publish()
            if ends[at] is True:
                folders.setdefault(landings[at].folder, []).append(at)
    _at_once(sync, folders.values())
    return ends


def _at_once(act: Callable[[T], None], on: Collection[T]) -> None:
    """What waits for the disk, by several threads: flushes that are asked for together are one flush."""
    if len(on) < 2:
        for each in on:
            act(each)
        return
    with ThreadPoolExecutor(min(_SYNCING, len(on)), thread_name_prefix="sync") as pool:
        for done in [pool.submit(act, each) for each in on]:
            done.result()
