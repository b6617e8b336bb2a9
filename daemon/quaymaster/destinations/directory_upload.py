"""One file on its way into a directory: written under a hidden name, synced, read back and compared, then named
(PRODUCT P8)."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quaymaster import keys
from quaymaster.destinations import disk
from quaymaster.destinations.base import Put
from quaymaster.destinations.disk import disk_errors
from quaymaster.errors import Conflict, IntegrityError
from quaymaster.model import Digests, Stored

if TYPE_CHECKING:
    from quaymaster.destinations.directory import Directory

_WRITE_BEHIND = 64 << 20  # bytes; after so many, write-back is started and what is clean leaves the cache


@dataclass(frozen=True, slots=True)
class Place:
    """A key's directory and name."""

    folders: tuple[bytes, ...]
    leaf: bytes


class DirectoryUpload:
    """The :class:`~quaymaster.destinations.base.Upload` of a directory."""

    way = ""
    """How the name was given: a key of ``_WAYS``."""

    def __init__(self, home: Directory, put: Put, place: Place, directory: int, made: int) -> None:
        """Raises OSError. Takes ``directory`` over once it has succeeded."""
        self._home, self._put, self._place = home, put, place
        self._made = made
        self._part = home.part_name()
        self._where = home.where(put.key)
        self._written = self._started = 0
        self._left_behind = False
        self._directory = directory
        put.note(self.resume_token)
        self._file = os.open(self._part, disk.NEW_FLAGS, 0o600, dir_fd=directory)

    @property
    def resume_token(self) -> str:
        """Names the part for :meth:`Directory.abandon`; empty once it is gone."""
        if self._directory < 0 and not self._left_behind:
            return ""
        return keys.escape(b"/".join((*self._place.folders, self._part)))

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data).cast("B")
        with disk_errors(self._where):
            while rest:
                count = os.write(self._file, rest)
                self._written += count
                rest = rest[count:]
            if self._written - self._started >= _WRITE_BEHIND:
                # Keeps the sync at the end short, and the host's cache for those who need it.
                os.posix_fadvise(self._file, 0, self._written, os.POSIX_FADV_DONTNEED)
                self._started = self._written

    def publish(self, digests: Digests, metadata: Mapping[str, str]) -> Stored:
        with disk_errors(self._where):
            os.fsync(self._file)
            self._compare(digests)
            self._dress()
            os.fsync(self._file)
            descriptor, self._file = self._file, -1
            os.close(descriptor)
            stored = self._make_visible(digests)
            disk.sync_directory(self._directory)
        self._made = 0
        self._release()
        return stored

    def suspend(self) -> None:
        self.abort()

    def abort(self) -> None:
        """Removes the part, and the directories that were made for it if they are still empty."""
        if self._directory < 0:
            return
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._part, dir_fd=self._directory)
        except OSError:
            self._left_behind = True
        self._release()
        self._home.remove_empty(self._place.folders, self._made)

    def _compare(self, digests: Digests) -> None:
        """What the device or server holds under the part's name is what the caller hashed."""
        descriptor = os.open(self._part, disk.READ_FLAGS, dir_fd=self._directory)
        try:
            size, sha256 = disk.digest_past_cache(descriptor, self._home.beat, self._home.at_once())
        finally:
            os.close(descriptor)
        if (size, sha256) != (digests.size, digests.sha256):
            raise IntegrityError(
                f"{self._where} reads back as {size} bytes with SHA-256 {sha256} instead of {digests.size} bytes with "
                f"{digests.sha256}",
                "It is written again; if it happens again, test this host's memory and that filesystem",
            )

    def _dress(self) -> None:
        """Mode and mtime of the source; some shares keep neither, which is told once and stops nothing."""
        try:
            os.fchmod(self._file, self._put.mode & 0o777)
            if self._put.mtime_ns:
                os.utime(self._file, ns=(self._put.mtime_ns, self._put.mtime_ns))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            text = f"{self._home.path} does not let file modes and times be set ({os.strerror(error.errno)})"
            self._home.tell_once("attributes-not-kept", text)

    def _make_visible(self, digests: Digests) -> Stored:
        home, directory, leaf = self._home, self._directory, self._place.leaf
        old = self._put.replace
        present = home.present(directory, leaf, self._put.key)
        if present is None or old is None:
            try:
                self.way = disk.publish_name(directory, self._part, leaf)
            except FileExistsError:
                return self._adopt(digests)
        elif (present.etag, present.size) != (old.etag, old.size) or not self._holds(old.checksum):
            return self._adopt(digests)
        else:
            with disk.alone(directory, self._where):
                self._take_place_of(old)
        stored = home.present(directory, leaf, self._put.key)
        if stored is None or stored.size != digests.size:
            raise Conflict(f"{self._where} was changed by somebody else the moment it appeared", "Look at it")
        return Stored(stored.key, stored.size, stored.etag, checksum=f"sha256:{digests.sha256}", evidence="readback")

    def _holds(self, checksum: str) -> bool:
        """Whether the file that has the name now has this content (``sha256:<hex>``). Only two readings of all of it
        that agree say no: one that differs, or ends early, may itself be what is damaged."""
        found = self._read()
        if found == checksum:
            return True
        if self._read() != found:
            raise IntegrityError(f"{self._where} reads back differently each time", "Look at its filesystem")
        return False

    def _read(self) -> str:
        descriptor = os.open(self._place.leaf, disk.READ_FLAGS, dir_fd=self._directory)
        try:
            size, sha256 = disk.digest_past_cache(descriptor, self._home.beat, self._home.at_once())
            whole = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if size != whole:
            raise IntegrityError(f"{self._where} reads back as {size} of its {whole} bytes", "Look at its filesystem")
        return f"sha256:{sha256}"

    def _adopt(self, digests: Digests) -> Stored:
        """The name is taken. A file with the very same bytes counts as delivered; anything else is in the way."""
        present = self._home.present(self._directory, self._place.leaf, self._put.key)
        checksum = f"sha256:{digests.sha256}"
        if present is None or present.size != digests.size or not self._holds(checksum):
            size = f" ({present.size} bytes)" if present else ""
            raise Conflict(
                f"Something else is already at {self._where}{size}; it is never overwritten",
                "Rename or remove it there, or change the key of the watch, then retry the job",
            )
        disk.sync_found(self._directory, self._place.leaf)
        os.unlink(self._part, dir_fd=self._directory)
        return Stored(present.key, present.size, present.etag, checksum=checksum, evidence="readback")

    def _take_place_of(self, old: Stored) -> None:
        directory, leaf = self._directory, self._place.leaf
        if disk.exchange(directory, self._part, leaf):
            if etag(os.stat(self._part, dir_fd=directory, follow_symlinks=False)) != old.etag:
                disk.exchange(directory, self._part, leaf)
                raise self._home.taken(self._put.key)
            os.unlink(self._part, dir_fd=directory)
        else:
            present = self._home.present(directory, leaf, self._put.key)
            if present is None or present.etag != old.etag:
                raise self._home.taken(self._put.key)
            os.rename(self._part, leaf, src_dir_fd=directory, dst_dir_fd=directory)
        self.way = "replace"

    def _release(self) -> None:
        for descriptor in (self._file, self._directory):
            if descriptor >= 0:
                with suppress(OSError):
                    os.close(descriptor)
        self._file = self._directory = -1


def etag_of(inode: int, mtime_ns: int) -> str:
    """What a directory has for an ETag."""
    return f"{inode}:{mtime_ns}"


def etag(status: os.stat_result) -> str:
    return etag_of(status.st_ino, status.st_mtime_ns)
