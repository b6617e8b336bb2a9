"""Putting a version in place in one step, and taking it away again (PRODUCT M2, M4).

Everything that is not released lies below ``<path>/.qm-mirror-<name>/``, which only the service's user may enter:

    objects/<job>.BOOT.part, <job>.file   downloads, and files that are verified
    assembly/<token>/                     a version being put together, from hard links to those files
    old/<epoch>-<token>                   what was replaced or removed, until its time has passed
    quarantine/<name>                     a version that its server did not take

A new version gets its name by one rename; a changed one is exchanged with the old one (renameat2(2)). Every path is
reached by descriptor and never through a symbolic link, and nothing that is not ours is replaced.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import quote_from_bytes

from quaymaster.destinations import disk
from quaymaster.errors import Conflict, NotSupported, Unreachable
from quaymaster.model import shown
from quaymaster.store import Downloaded

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_TO_ALL = 0o755
_ours: dict[tuple[int, int], int] = {}
"""The hidden directories that this process works in (device, inode) -> what keeps other processes out, to its end: the
configuration may be read anew, and what was begun before still be downloading."""
_claiming = threading.Lock()


class Ground:
    """The directory of one mirror. It must exist: what is below an unmounted share must not fill. Thread-safe.

    ``token`` makes names that nobody else has; ``clock`` tells seconds since the epoch.
    """

    def __init__(self, path: str, name: str, token: Callable[[], str], clock: Callable[[], float]) -> None:
        self.path = path
        self._hidden = b".qm-mirror-" + name.encode()
        self._token, self._clock = token, clock

    def where(self, path: bytes) -> str:
        return shown(os.path.join(os.fsencode(self.path), path))

    @contextmanager
    def objects(self) -> Iterator[int]:
        with self._own(b"objects") as directory:
            yield directory

    def finish(self, directory: int, name: bytes, final: bytes, mode: int, mtime_ns: int) -> os.stat_result:
        """Make a verified file durable, under its final name in ``objects``. Should a power cut take the name, that is
        noticed at the next pass."""
        descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fchmod(descriptor, mode)
            os.utime(descriptor, ns=(mtime_ns, mtime_ns))
            os.fsync(descriptor)
            os.rename(name, final, src_dir_fd=directory, dst_dir_fd=directory)
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While a pass changes something: the service may read its configuration anew, and an earlier pass still end.
        Raises Unreachable, also when another process mirrors into the directory: what two of them download would have
        the same names, and be one file."""
        self._claim()
        with self._own(b"assembly") as assembly, disk.alone(assembly, self.path):
            yield

    def _claim(self) -> None:
        with self.objects() as objects, _claiming:
            status = os.fstat(objects)
            which = status.st_dev, status.st_ino
            if which in _ours:
                return
            kept = os.dup(objects)
            try:
                fcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(kept)
                raise Unreachable(
                    f"Another quaymaster mirrors into {self.path}",
                    "Let one do it for all, or give each its own path",
                ) from None
            except OSError:
                pass  # there are no locks on directories there (NFS)
            _ours[which] = kept

    # -- what is there --

    def has(self, unit: bytes, directory: bool) -> bool:
        """Whether something of that kind has the unit's name now."""
        try:
            with self._parent(unit, create=False) as (parent, leaf):
                status = os.stat(leaf, dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return stat.S_ISDIR(status.st_mode) if directory else stat.S_ISREG(status.st_mode)

    def kept(self, files: Sequence[Downloaded]) -> set[bytes]:
        """Targets of those files that are still as they were verified: in ``objects``, or where they were released."""
        found = set()
        with self.objects() as directory:
            for each in files:
                # One that is being downloaded again has its name before it is recorded.
                if _is_at(directory, b"%d.file" % each.job, each) or self._is_there(each):
                    found.add(each.target)
        return found

    def _is_there(self, file: Downloaded) -> bool:
        try:
            with self._parent(file.target, create=False) as (parent, leaf):
                return _is_at(parent, leaf, file)
        except OSError:
            return False

    def content(self, file: Downloaded, most: int) -> bytes:
        """Of a small verified file."""
        with self.objects() as directory:
            try:
                descriptor = os.open(b"%d.file" % file.job, _READ, dir_fd=directory)
            except FileNotFoundError:
                with self._parent(file.target, create=False) as (parent, leaf):
                    descriptor = os.open(leaf, _READ, dir_fd=parent)
        with open(descriptor, "rb") as opened:
            data = opened.read(most + 1)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise Conflict(f"{self.where(file.target)} was changed by somebody", "It is downloaded again")
        return data

    # -- releasing --

    def assemble(self, unit: bytes, files: Mapping[bytes, Downloaded], directory: bool) -> bytes:
        """Put a unit together under a hidden name (below ``assembly``), durably; that name. ``files``: by target."""
        token = b"%d-%b" % (int(self._clock()), self._token().encode())
        with self._own(b"assembly") as assembly:
            if not directory:
                self._link(next(iter(files.values())), assembly, token)
                disk.sync_directory(assembly)
                return token
            os.mkdir(token, 0o700, dir_fd=assembly)
            top = os.open(token, _DIRECTORY, dir_fd=assembly)
            try:
                folders: dict[bytes, int] = {b"": top}
                for target in sorted(files):
                    below = target[len(unit) + 1 :]
                    folder, _, leaf = below.rpartition(b"/")
                    self._link(files[target], self._folder(folders, folder), leaf)
                for descriptor in folders.values():
                    os.fchmod(descriptor, _OPEN_TO_ALL)
                    disk.sync_directory(descriptor)
            finally:
                for name, descriptor in folders.items():
                    if name:
                        os.close(descriptor)
                os.close(top)
            disk.sync_directory(assembly)
        return token

    def _folder(self, folders: dict[bytes, int], path: bytes) -> int:
        if path not in folders:
            above, _, leaf = path.rpartition(b"/")
            directory = self._folder(folders, above)
            os.mkdir(leaf, 0o700, dir_fd=directory)
            folders[path] = os.open(leaf, _DIRECTORY, dir_fd=directory)
        return folders[path]

    def _link(self, file: Downloaded, directory: int, leaf: bytes) -> None:
        """From ``objects``, or from where it was released before. Where there are no links, it is moved: after a crash
        it is downloaded again."""
        name = b"%d.file" % file.job
        with self.objects() as objects:
            try:
                os.link(name, leaf, src_dir_fd=objects, dst_dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                with self._parent(file.target, create=False) as (parent, old):
                    os.link(old, leaf, src_dir_fd=parent, dst_dir_fd=directory, follow_symlinks=False)
            except PermissionError:
                os.rename(name, leaf, src_dir_fd=objects, dst_dir_fd=directory)
        if not untouched(os.stat(leaf, dir_fd=directory, follow_symlinks=False), file):
            raise Conflict(f"{self.where(file.target)} was changed by somebody", "It is downloaded again")

    def publish(self, assembled: bytes, unit: bytes, *, replace: bool) -> bool:
        """Give what was assembled the unit's name, in one step. What had it before, if we may replace it, goes to
        ``old`` under the name that ``assembled`` was; False: there was nothing."""
        with self._own(b"assembly") as assembly, self._parent(unit, create=True) as (parent, leaf):
            if disk.identity(parent, leaf) is None:
                if not disk.rename_noreplace(assembly, assembled, leaf, parent):
                    os.rename(assembled, leaf, src_dir_fd=assembly, dst_dir_fd=parent)
                disk.sync_directory(parent)
                return False
            if not replace:
                raise Conflict(
                    f"{self.where(unit)} is there already, and quaymaster did not put it there",
                    "Move it away: then the mirror's own is released",
                )
            if not disk.exchange(assembly, assembled, leaf, parent):
                raise NotSupported(
                    f"The filesystem of {self.path} cannot exchange two names in one step (renameat2)",
                    "Put the mirror on a local filesystem such as ext4 or xfs",
                )
            disk.sync_directory(parent)
            self._retire(assembly, assembled, assembled)
            return True

    def went_on(self, files: Mapping[bytes, Downloaded], old: bytes) -> bool:
        """After a crash while it was published: whether it is in place. What it replaced is in ``old`` then."""
        if not files or not all(self._is_there(file) for file in files.values()):
            return False
        with self._own(b"assembly") as assembly:
            if old and disk.identity(assembly, old) is not None:
                self._retire(assembly, old, old)
        return True

    def discard(self, assembled: bytes) -> None:
        """What an earlier life assembled, and did not publish."""
        if assembled:
            with self._own(b"assembly") as assembly:
                _remove(assembly, assembled)

    def has_old(self, old: bytes) -> bool:
        with self._own(b"old") as kept:
            return bool(old) and disk.identity(kept, old) is not None

    def withdraw(self, unit: bytes) -> None:
        """Take the unit's name away; what it was is in ``old`` for its time."""
        with disk.disk_errors(self.where(unit)):
            with self._parent(unit, create=False) as (parent, leaf):
                self._retire(parent, leaf, b"%d-%b" % (int(self._clock()), self._token().encode()))
                disk.sync_directory(parent)
            self._remove_empty_above(unit)

    def quarantine(self, unit: bytes, old: bytes) -> str:
        """Set a released unit aside, and put back what it had replaced (``old``; empty: nothing). Where it is now."""
        name = quote_from_bytes(unit, safe="").encode()
        with self._own(b"quarantine") as quarantine, self._parent(unit, create=True) as (parent, leaf):
            _remove(quarantine, name)
            if old:
                with self._own(b"old") as kept:
                    if disk.exchange(kept, old, leaf, parent):
                        os.rename(old, name, src_dir_fd=kept, dst_dir_fd=quarantine)
            else:
                os.rename(leaf, name, src_dir_fd=parent, dst_dir_fd=quarantine)
            disk.sync_directory(parent)
            disk.sync_directory(quarantine)
        self._remove_empty_above(unit)
        return shown(os.path.join(os.fsencode(self.path), self._hidden, b"quarantine", name))

    def leave_quarantine(self, unit: bytes) -> None:
        with self._own(b"quarantine") as quarantine:
            _remove(quarantine, quote_from_bytes(unit, safe="").encode())

    def same_as_released(self, unit: bytes, files: Mapping[bytes, Downloaded], directory: bool) -> bool:
        """Whether exactly these contents have the unit's name: after the state was lost. Reads all of it."""
        root = os.path.join(os.fsencode(self.path), unit)
        paths = (
            {os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names}
            if directory
            else {root}
        )
        base = os.fsencode(self.path)
        found = {os.path.relpath(path, base): path for path in paths}
        if found.keys() != files.keys():
            return False
        return all(_digest(path) == (files[name].size, files[name].sha256) for name, path in found.items())

    # -- clearing up --

    def drop(self, jobs: Sequence[int]) -> None:
        """Verified files that are released, or that nobody wants any more."""
        with self.objects() as directory:
            for job in jobs:
                with suppress(FileNotFoundError):
                    os.unlink(b"%d.file" % job, dir_fd=directory)

    def clear(self, keep: set[bytes]) -> None:
        """Remove assemblies of an earlier life, but for ``keep``."""
        with self._own(b"assembly") as assembly:
            for name in os.listdir(assembly):
                if os.fsencode(name) not in keep:
                    _remove(assembly, os.fsencode(name))

    def sweep(self, wanted: Callable[[], set[int]]) -> None:
        """Remove downloads of jobs that are no more. ``wanted`` tells the others, if there is anything: after the names
        are read, so that none is missed that began meanwhile."""
        with self.objects() as objects:
            names = os.listdir(objects)
            keep = wanted() if names else set()
            for name in names:
                number = name.partition(".")[0]
                if not number.isdigit() or int(number) not in keep:
                    with suppress(OSError):
                        os.unlink(name, dir_fd=objects)

    def clear_old(self, keep_old: float) -> None:
        with self._own(b"old") as old:
            for name in os.listdir(old):
                epoch = name.partition("-")[0]
                if not epoch.isdigit() or not -keep_old <= self._clock() - int(epoch) < keep_old:
                    _remove(old, os.fsencode(name))

    def _retire(self, directory: int, name: bytes, kept: bytes) -> None:
        with self._own(b"old") as old:
            os.rename(name, kept, src_dir_fd=directory, dst_dir_fd=old)
            disk.sync_directory(old)

    def _remove_empty_above(self, unit: bytes) -> None:
        while b"/" in unit:
            unit = unit.rpartition(b"/")[0]
            try:
                with self._parent(unit, create=False) as (parent, leaf):
                    os.rmdir(leaf, dir_fd=parent)
            except OSError:
                return

    # -- directories --

    @contextmanager
    def _own(self, kind: bytes) -> Iterator[int]:
        with disk.disk_errors(self.where(self._hidden)):
            hidden = disk.open_below(disk.open_root(self.path), self._hidden, [])
            if stat.S_IMODE(os.fstat(hidden).st_mode) & 0o077:
                os.fchmod(hidden, 0o700)
            directory = disk.open_below(hidden, kind, [])
            try:
                yield directory
            finally:
                os.close(directory)

    @contextmanager
    def _parent(self, path: bytes, *, create: bool) -> Iterator[tuple[int, bytes]]:
        """The directory that ``path`` is in, and its name there."""
        *folders, leaf = path.split(b"/")
        directory = disk.open_root(self.path)
        for folder in folders:
            made: list[int] = []
            directory = disk.open_below(directory, folder, made if create else None)
            if made:
                os.fchmod(directory, _OPEN_TO_ALL)
        try:
            yield directory, leaf
        finally:
            os.close(directory)


def _is_at(directory: int, name: bytes, file: Downloaded) -> bool:
    try:
        return untouched(os.stat(name, dir_fd=directory, follow_symlinks=False), file)
    except OSError:
        return False


def untouched(status: os.stat_result, file: Downloaded) -> bool:
    """Whether it is the file that was verified, untouched."""
    inode = status.st_ino - 2**64 if status.st_ino >= 2**63 else status.st_ino
    ours = file.file_inode - 2**64 if file.file_inode >= 2**63 else file.file_inode
    return (inode, status.st_size, status.st_mtime_ns) == (ours, file.size, file.file_mtime)


def _digest(path: bytes) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    try:
        with open(os.open(path, _READ), "rb", buffering=0) as file:
            while piece := file.read(disk.PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError:
        return -1, ""
    return size, digest.hexdigest()


def _remove(directory: int, name: bytes) -> None:
    """A file, or a directory with all that is in it; by descriptor, never through a link."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=directory)
        return
    below = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        for each in os.listdir(below):
            _remove(below, os.fsencode(each))
    finally:
        os.close(below)
    os.rmdir(name, dir_fd=directory)
