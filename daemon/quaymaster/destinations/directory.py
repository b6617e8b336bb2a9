"""A directory on a mounted filesystem as a destination: NFS, SMB or local (PRODUCT P8, P9).

The bytes go into a hidden ``.qm-….part`` beside the target, are synced, read back past the cache and compared, and
only then get their name. What a reader or another writer can meet depends on what the filesystem offers:

1. link(2), then unlink of the part. The kernel (or the file server) refuses an existing name. A reader sees nothing
   or the whole file; nothing is ever overwritten, whoever writes. A crash in between leaves a hidden second name.
2. renameat2(2) with RENAME_NOREPLACE, where there are no hard links (vfat, some SMB mounts): the same guarantees.
3. A hidden claim file made with O_EXCL, a look that the name is free, and rename(2), where there is neither (some FUSE
   filesystems). A reader still sees nothing or the whole file, and no quaymaster on any host overwrites another's file,
   since only the holder of the claim renames. A program that is not quaymaster and makes the same name in the
   microseconds between look and rename would lose its file. (Claiming the name itself would avoid that, but shows
   readers an empty file, and a crash would leave it there.)

A file of ours is replaced by exchanging two names (RENAME_EXCHANGE) and looking at what came out: if it is not the file
that we left there, it is put back. Without that, the look comes just before a plain rename.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from quaymaster import keys
from quaymaster.destinations import disk
from quaymaster.destinations.base import OWN, Put, Reading
from quaymaster.destinations.directory_upload import DirectoryUpload, Place, etag
from quaymaster.destinations.disk import disk_errors
from quaymaster.destinations.owner import TAG, is_dead, own_tag
from quaymaster.errors import (
    Conflict,
    IntegrityError,
    NameRefused,
    PermanentError,
    TransferError,
    Unreachable,
)
from quaymaster.model import Digests, Emit, Event, Level, Stored, shown

_PART = re.compile(rb"\.qm-%b-[^/]+\.part" % TAG.encode())

_AT_ONCE = 8
"""Pieces of a file that are asked for at a time over the network: each answer comes late, several together no later."""
_WAYS = {
    "link": "names are given with hard links: never overwrites",
    "rename": "has no hard links; names are given with RENAME_NOREPLACE: never overwrites",
    "claim": "has neither hard links nor RENAME_NOREPLACE: no quaymaster overwrites another's file, but a file that "
    "another program makes in the very moment of publication could be",
}


class Directory:
    """A destination below ``path``, which must exist. Thread-safe; keeps nothing open between calls."""

    def __init__(
        self,
        name: str,
        path: str,
        *,
        emit: Emit,
        tag: str | None = None,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        anchor: Callable[[int | None], None] = lambda _: None,
        beat: Callable[[], None] = lambda: None,
        distant: Callable[[], bool] = lambda: False,
    ) -> None:
        """``anchor`` is given a descriptor of the root each time it is entered, or None when it cannot be, and raises
        Unreachable when what belongs there is not mounted. ``beat`` is called in the midst of what takes long, as a
        sign of life. ``distant``: whether it is on a network filesystem."""
        self._anchor = anchor
        self._distant = distant
        self.beat = beat
        self.name = name
        self.path = path
        self._emit = emit
        self._tag = tag or own_tag()
        self._token = token
        self._told: set[str] = set()

    def at_once(self) -> int:
        """Pieces of a file that are read back at a time."""
        return _AT_ONCE if self._distant() else 1

    def metadata_first(self, size_bound: int) -> bool:
        return False

    def by_crc(self, size_bound: int) -> bool:
        return False  # what was written is read back

    def longest_name(self) -> int:
        try:
            # Not os.pathconf(): it holds the interpreter's lock, so one that hangs would stop every thread.
            return os.statvfs(self.path).f_namemax
        except OSError:
            return 255

    def memory_needed(self, size_bound: int) -> int:
        """The most bytes of buffers that one upload holds."""
        return self.at_once() * disk.PIECE

    def memory_least(self, size_bound: int) -> int:
        return self.at_once() * disk.PIECE

    def begin(self, put: Put) -> DirectoryUpload:
        place = self.place(put.key)
        if len(place.leaf) > self.longest_name():
            raise NameRefused(
                f"The name of {self.where(put.key)} has {len(place.leaf)} bytes of at most {self.longest_name()}",
                "Shorten it, or leave it out of the watch",
            )
        with disk_errors(self.where(put.key)):
            for _ in range(10):  # an abort elsewhere may remove the empty directory just made
                with suppress(FileNotFoundError):
                    directory, made = self.open_folder(place.folders, create=True)
                    try:
                        return DirectoryUpload(self, put, place, directory, made)
                    except BaseException:
                        os.close(directory)
                        self.remove_empty(place.folders, made)
                        raise
        raise Unreachable(f"The directory of {self.where(put.key)} keeps vanishing", "It is tried again")

    def stat(self, key: str) -> Stored | None:
        place = self.place(key)
        with disk_errors(self.where(key)):
            try:
                directory, _ = self.open_folder(place.folders)
            except FileNotFoundError:
                return None
            try:
                found = self.present(directory, place.leaf, key)
                status = os.stat(place.leaf, dir_fd=directory, follow_symlinks=False)
                return found and replace(found, metadata=_attributes(status))
            except FileNotFoundError:
                return None
            finally:
                os.close(directory)

    def holding(self, key: str, digests: Digests) -> Stored | None:
        present = self.stat(key)
        if present is None or present.size != digests.size:
            return None
        found = self._digest(present)
        if found == digests.sha256:
            self.make_durable(present)
            return replace(present, checksum=f"sha256:{digests.sha256}", evidence="readback")
        if self._digest(present) != found:  # one reading that differs may itself be what is damaged
            raise IntegrityError(f"{self.where(key)} reads back differently each time", "Look at its filesystem")
        return None

    def make_durable(self, stored: Stored) -> None:
        place = self.place(stored.key)
        with disk_errors(self.where(stored.key)):
            directory, _ = self.open_folder(place.folders)
            try:
                disk.sync_found(directory, place.leaf)
            finally:
                os.close(directory)

    def _digest(self, present: Stored) -> str:
        total = hashlib.sha256()
        with self.read(present) as pieces:
            for piece in pieces:
                total.update(piece)
        return total.hexdigest()

    def listing(self, prefix: str = "", known: Callable[[], Sequence[str]] = tuple) -> Iterator[Stored]:
        with disk_errors(self.path):
            root = self.open_root()
            try:
                for base, files, directory in self._walked(root, prefix, _raise):
                    for name in files:
                        key = keys.escape(base + name)
                        if key.startswith(prefix) and not _PART.fullmatch(name):
                            yield from self._listed(directory, name, key)
            finally:
                os.close(root)

    def _walked(
        self, root: int, prefix: str, onerror: Callable[[OSError], None] | None
    ) -> Iterator[tuple[bytes, list[bytes], int]]:
        """(path with its slash, names of files, descriptor) of every directory that leads to keys with this prefix.
        Links are not followed: what they lead to is not what was put here."""
        for folder, folders, files, directory in os.fwalk(b".", dir_fd=root, onerror=onerror):
            self.beat()
            base = folder[2:] + b"/" if folder != b"." else b""
            folders[:] = [name for name in folders if _leads_to(keys.escape(base + name) + "/", prefix)]
            yield base, files, directory

    def _listed(self, directory: int, name: bytes, key: str) -> Iterator[Stored]:
        with suppress(Conflict):  # not a regular file: not put here by anybody like us
            if found := self.present(directory, name, key):
                yield found

    @contextmanager
    def read(self, stored: Stored, at_once: int = 1) -> Iterator[Reading]:
        place = self.place(stored.key)
        with disk_errors(self.where(stored.key)):
            try:
                directory, _ = self.open_folder(place.folders)
                try:
                    descriptor = os.open(place.leaf, disk.READ_FLAGS, dir_fd=directory)
                finally:
                    os.close(directory)
            except FileNotFoundError:
                raise PermanentError(
                    f"{self.where(stored.key)} is gone",
                    "Look who removed it",
                ) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or (stored.etag and etag(status) != stored.etag):
                raise self.taken(stored.key)
            found = replace(stored, size=status.st_size, metadata=_attributes(status))
            yield Reading(found, self._pieces(descriptor, stored))
        finally:
            with suppress(OSError):  # says nothing about what was read
                os.close(descriptor)

    def _pieces(self, descriptor: int, stored: Stored) -> Iterator[bytes]:
        size, digest = 0, hashlib.sha256()
        known = stored.checksum.removeprefix("sha256:")
        with disk_errors(self.where(stored.key)):
            for piece in disk.pieces_past_cache(descriptor):
                self.beat()
                size += len(piece)
                if known:
                    digest.update(piece)
                yield bytes(piece)
        if size != stored.size or (known and known != digest.hexdigest()):
            raise IntegrityError(
                f"{self.where(stored.key)} reads back with other bytes than were put there", "Look at its filesystem"
            )

    def remove(self, stored: Stored) -> None:
        """The file is first moved to a hidden name and looked at there, so that nothing else is ever removed."""
        place = self.place(stored.key)
        with disk_errors(self.where(stored.key)):
            try:
                directory, _ = self.open_folder(place.folders)
            except FileNotFoundError:
                return
            try:
                self._remove(directory, place.leaf, stored)
            finally:
                os.close(directory)

    def _remove(self, directory: int, leaf: bytes, stored: Stored) -> None:
        present = self.present(directory, leaf, stored.key)
        if present is None:
            return
        if (present.etag, present.size) != (stored.etag, stored.size):
            raise self.taken(stored.key)
        hidden = self.part_name()
        try:
            os.rename(leaf, hidden, src_dir_fd=directory, dst_dir_fd=directory)
        except FileNotFoundError:
            return
        if etag(os.stat(hidden, dir_fd=directory, follow_symlinks=False)) != stored.etag:
            disk.publish_name(directory, hidden, leaf)
            raise self.taken(stored.key)
        os.unlink(hidden, dir_fd=directory)
        disk.sync_directory(directory)

    def resumable(self, token: str, put: Put) -> bool:
        return False  # what reached a disk without fsync proves nothing after a crash, and writing it again is cheap

    def abandon(self, token: str) -> bool:
        try:
            place = self.place(token)
            if not _PART.fullmatch(place.leaf):
                return True
            with disk_errors(self.where(token)), suppress(FileNotFoundError):
                directory, _ = self.open_folder(place.folders)
                try:
                    os.unlink(place.leaf, dir_fd=directory)
                finally:
                    os.close(directory)
        except NameRefused:
            pass  # not one of ours
        except TransferError as error:
            self.tell("upload-left-behind", f"A part that nobody will finish could not be removed: {error}")
            return False
        return True

    def sweep(self, *, now: float, older_than: float = 3600, prefix: str = "") -> int:
        """Remove the parts that dead processes of this host left, anywhere below the root and ``prefix``; how many.

        ``now`` in seconds since the epoch. Those of other hosts are theirs to sweep. Costs a walk of that tree.
        """
        removed = 0
        with disk_errors(self.path):
            root = self.open_root()
            try:
                for base, files, directory in self._walked(root, prefix, None):
                    for name in filter(_PART.fullmatch, files):
                        if not keys.escape(base + name).startswith(prefix):
                            continue
                        with suppress(FileNotFoundError):
                            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                            if now - status.st_mtime >= older_than and self._is_dead(name):
                                os.unlink(name, dir_fd=directory)
                                removed += 1
            finally:
                os.close(root)
        return removed

    def _is_dead(self, part: bytes) -> bool:
        return is_dead(part.removeprefix(b".qm-").decode(errors="replace"))

    def check(self) -> list[str]:
        body = b"quaymaster\n" * 3
        digests = Digests(len(body), hashlib.sha256(body).hexdigest())
        upload = self.begin(Put(f".quaymaster-probe-{self._token()}", len(body)))
        try:
            upload.write(body)
            stored = upload.publish(digests, {})
        finally:
            upload.abort()
        try:
            with self.read(stored) as pieces:
                b"".join(pieces)
        finally:
            self.remove(stored)
        with disk_errors(self.path):
            space = os.statvfs(self.path)
        return [
            f"wrote {len(body)} bytes and read them back past the cache",
            _WAYS[upload.way],
            f"{space.f_bavail * space.f_frsize / (1 << 30):,.1f} GiB free; names of up to {self.longest_name()} bytes",
        ]

    def close(self) -> None:
        pass

    # For uploads

    def place(self, key: str) -> Place:
        *folders, leaf = keys.unescape(key).split(b"/")
        return Place(tuple(folders), leaf)

    def where(self, key: str) -> str:
        return shown(os.path.join(os.fsencode(self.path), keys.unescape(key)))

    def open_root(self) -> int:
        try:
            directory = disk.open_root(self.path)
        except TransferError:
            self._anchor(None)
            raise
        try:
            self._anchor(directory)
        except BaseException:
            os.close(directory)
            raise
        return directory

    def open_folder(self, folders: tuple[bytes, ...], *, create: bool = False) -> tuple[int, int]:
        """A descriptor of the directory that a name is in, and how many of its last components were made for it."""
        directory, made = self.open_root(), 0
        for depth, folder in enumerate(folders, 1):
            new: list[int] = []
            try:
                directory = disk.open_below(directory, folder, new if create else None)
            except OSError:
                self.remove_empty(folders[: depth - 1 + len(new)], made + len(new))
                raise
            made = made + 1 if new else 0
        return directory, made

    def remove_empty(self, folders: tuple[bytes, ...], count: int) -> None:
        """Take away the last ``count`` of these directories, as far as they are empty."""
        for depth in range(len(folders), len(folders) - count, -1):
            with suppress(OSError, TransferError):
                above, _ = self.open_folder(folders[: depth - 1])
                try:
                    os.rmdir(folders[depth - 1], dir_fd=above)
                finally:
                    os.close(above)

    def present(self, directory: int, leaf: bytes, key: str) -> Stored | None:
        try:
            status = os.stat(leaf, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise Conflict(f"{self.where(key)} is not a regular file", "Remove what is in the way, then retry the job")
        return Stored(key, status.st_size, etag(status), mtime=status.st_mtime)

    def part_name(self) -> bytes:
        return f".qm-{self._tag}-{self._token()}.part".encode()

    def taken(self, key: str) -> Conflict:
        return Conflict(
            f"{self.where(key)} is not the file that was put there", "Something else has taken its place: look at it"
        )

    def tell(self, kind: str, message: str) -> None:
        self._emit(Event(kind, message, Level.WARNING, destination=self.name))

    def tell_once(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self.tell(kind, message)


def _attributes(status: os.stat_result) -> dict[str, str]:
    """What the file itself keeps of its source, in the words of an object's metadata."""
    return {"quaymaster-mtime": str(status.st_mtime_ns), "quaymaster-mode": f"{stat.S_IMODE(status.st_mode):04o}"}


def _raise(error: OSError) -> None:
    raise error  # an unreadable folder makes the listing incomplete


def _leads_to(folder: str, prefix: str) -> bool:
    """Whether keys that begin with ``prefix`` can be below this folder (with its slash)."""
    if folder.startswith(OWN) and not prefix.startswith(OWN):
        return False
    return folder.startswith(prefix) or prefix.startswith(folder)
