"""Which filesystem a path is on, told by the mount table alone (PRODUCT W2, W6).

``/proc/self/mountinfo`` (proc_pid_mountinfo(5)) is read, never the mount itself: a dead server cannot hang the answer.
Only :func:`survey` touches the watched directory, and it runs in that watch's own thread.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quaymaster.errors import SourceUnavailable

MOUNTINFO = "/proc/self/mountinfo"

# inotify reports what goes through this kernel. overlayfs is not here: it is blind to writes on its layers.
_SEEN_BY_INOTIFY = {"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "f2fs", "zfs", "bcachefs"}

# Others may write here without this kernel knowing. FUSE is counted in: it cannot be told what is behind it.
_NETWORK = {
    *("9p", "afs", "auristorfs", "autofs", "beegfs", "beegfs_nodev", "ceph", "coda", "davfs", "davfs2", "fuse"),
    *("fuseblk", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2"),
    *("vboxsf", "virtiofs", "vmhgfs", "wekafs"),
}
_NETWORK_PREFIXES = ("fuse.", "nfs", "cifs", "smb")

# Inode numbers are made up as files are met, and are others after the next mount.
_INODES_PASS = {"fuse", "fuseblk", "davfs", "davfs2", "vfat", "msdos", "exfat"}

# Their f_fsid (statfs(2)) is made of what is written on the disk. Others make it of the device number.
_FSID_LASTS = {"ext2", "ext3", "ext4", "btrfs", "zfs"}

_FAMILIES = {"nfs4": "nfs", "smb3": "cifs", "smb2": "cifs", "smbfs": "cifs", "ext2": "ext4", "ext3": "ext4"}

_UDEV = "/run/udev/data/b{}:{}"

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Filesystem:
    type: str
    mount_point: str
    device: str
    """The mount's source: ``/dev/sda1``, ``server:/export``."""
    network: bool
    """Other machines, or a process of its own, may change it unseen by this kernel."""
    inotify: bool
    """Every change is seen by inotify; file leases tell the truth too."""

    @property
    def keeps_inodes(self) -> bool:
        """Whether a file's inode number stays the same from one mount to the next."""
        return self.type not in _INODES_PASS and not self.type.startswith("fuse.")

    def __str__(self) -> str:
        return f"{self.type} filesystem {self.device} on {self.mount_point}"


@dataclass(frozen=True, slots=True)
class Mark:
    """By what a filesystem is known again after a restart, when device names and numbers may be others."""

    type: str
    device: str
    mount_point: str
    name: str
    """``server:/export`` of a network filesystem, the identifier on the disk of a local one; empty: has none."""

    def is_same(self, other: Mark) -> bool:
        """Whether both may be the same filesystem: two without a name of their own may, if they are of one kind."""
        kinds = [_FAMILIES.get(mark.type, mark.type) for mark in (self, other)]
        return kinds[0] == kinds[1] and (self.name == other.name or not self.name or not other.name)

    def body(self) -> dict[str, str]:
        return {"type": self.type, "device": self.device, "mount_point": self.mount_point, "name": self.name}

    @classmethod
    def of_body(cls, body: Mapping[str, Any]) -> Mark | None:
        """None when nothing is remembered."""
        values = [body.get(key) for key in ("type", "device", "mount_point", "name")]
        return cls(*map(str, values)) if all(isinstance(value, str) for value in values) else None

    def __str__(self) -> str:
        return f"{self.type} filesystem {self.device} on {self.mount_point}"


@dataclass(frozen=True, slots=True)
class Ground:
    """What a watch stands on. Two that differ mean that the watched directory is not the same one any more."""

    path: str
    """The watched directory without symbolic links: inotify sees nothing through one."""
    device: int
    inode: int
    filesystem: Filesystem
    blind: tuple[Filesystem, ...]
    """Filesystems mounted below ``path`` that inotify does not see."""
    mark: Mark
    mounts: frozenset[int] = field(default=frozenset(), compare=False)
    """The mounts above, at and below ``path``, by their numbers in the mount table."""
    has_sentinel: bool = field(default=True, compare=False)
    empty: bool | None = field(default=None, compare=False)
    """None: it was not looked at."""

    @property
    def inotify(self) -> bool:
        return self.filesystem.inotify and not self.blind

    @property
    def network(self) -> bool:
        return self.filesystem.network or any(below.network for below in self.blind)


@dataclass(frozen=True, slots=True)
class _Mount:
    id: int
    parent: int
    filesystem: Filesystem


def read_mountinfo() -> str:
    with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def filesystem_of(path: str, mountinfo: str | None = None) -> Filesystem:
    """The filesystem that the absolute path ``path`` is on. Links in it are not resolved: do that beforehand."""
    mounts = _parse(read_mountinfo() if mountinfo is None else mountinfo)
    ids = {mount.id for mount in mounts}
    # As the kernel walks: from the root of the table down, into whatever is mounted on each directory on the way. A
    # longest prefix alone would find a mount that a later one, on a directory above, has hidden.
    candidates = [mount for mount in mounts if mount.parent not in ids or mount.parent == mount.id]
    found: _Mount | None = None
    while True:
        below = [mount for mount in candidates if is_within(path, mount.filesystem.mount_point) and mount is not found]
        if not below:
            break
        found = min(reversed(below), key=lambda mount: len(mount.filesystem.mount_point))
        candidates = [mount for mount in mounts if mount.parent == found.id]
    if found is None:
        return Filesystem("unknown", "/", "unknown", network=True, inotify=False)
    return found.filesystem


def blind_below(path: str, mountinfo: str | None = None) -> tuple[Filesystem, ...]:
    """Filesystems mounted somewhere below ``path`` that inotify does not see."""
    mounts = _parse(read_mountinfo() if mountinfo is None else mountinfo)
    return tuple(
        mount.filesystem
        for mount in mounts
        if not mount.filesystem.inotify
        and mount.filesystem.mount_point != path
        and is_within(mount.filesystem.mount_point, path)
    )


def mounts_around(path: str, mountinfo: str) -> frozenset[int]:
    """The numbers of the mounts that ``path`` is below, at or above: no other can change what is found in it."""
    return frozenset(
        mount.id
        for mount in _parse(mountinfo)
        if is_within(mount.filesystem.mount_point, path) or is_within(path, mount.filesystem.mount_point)
    )


def mark_of(filesystem: Filesystem, descriptor: int) -> Mark:
    """``descriptor`` is of a directory on it. Raises OSError."""
    name = ""
    if filesystem.network and not filesystem.device.startswith("/dev/"):
        name = filesystem.device
    elif filesystem.type in _FSID_LASTS:
        name = f"{os.fstatvfs(descriptor).f_fsid:x}"
    else:
        name = _udev_uuid(os.fstat(descriptor).st_dev)
    return Mark(filesystem.type, filesystem.device, filesystem.mount_point, name)


def _udev_uuid(device: int) -> str:
    """What udev read from the disk of that number: it can be asked when /dev cannot be seen (PrivateDevices=)."""
    try:
        with open(_UDEV.format(os.major(device), os.minor(device)), encoding="utf-8", errors="replace") as file:
            found = [line for line in file if line.startswith("E:ID_FS_UUID=")]
    except OSError:
        return ""
    return found[0].partition("=")[2].strip() if found else ""


def is_within(path: str, directory: str) -> bool:
    return directory == "/" or path == directory or path.startswith(directory + "/")


def survey(path: str, mountinfo: str, *, sentinel: str = "", inside: bool = False) -> Ground:
    """What the watched directory ``path`` stands on now. Raises SourceUnavailable while it cannot be used.

    With ``inside`` it is also looked whether anything is in it.
    """
    try:
        real = os.path.realpath(path, strict=True)
        descriptor = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError
            filesystem = filesystem_of(real, mountinfo)
            return Ground(
                real,
                status.st_dev,
                status.st_ino,
                filesystem,
                blind_below(real, mountinfo),
                mark_of(filesystem, descriptor),
                mounts_around(real, mountinfo),
                not sentinel or _is_there(sentinel, descriptor),
                is_empty(descriptor) if inside else None,
            )
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unusable(path, error) from None


def is_empty(descriptor: int) -> bool:
    with os.scandir(descriptor) as entries:
        return next(entries, None) is None


def _is_there(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def unusable(path: str, error: OSError) -> SourceUnavailable:
    """What it means for the operator that the watched directory ``path`` gave this error."""
    match error:
        case FileNotFoundError():
            return SourceUnavailable(f"{path} does not exist", "Create the directory, or mount what it is on")
        case PermissionError():
            return SourceUnavailable(
                f"{path} cannot be listed (permission denied)", "Give the service's user read and search permission"
            )
        case NotADirectoryError():
            return SourceUnavailable(f"{path} is not a directory", "Correct the watch's path")
    return SourceUnavailable(f"{path} cannot be listed ({error.strerror})", "It is tried again until it can")


def _parse(text: str) -> list[_Mount]:
    # 36 35 98:0 /root /mnt/point rw,noatime master:1 - ext3 /dev/root rw
    mounts = []
    for line in text.split("\n"):
        left, separator, right = line.partition(" - ")
        fields, source = left.split(" "), right.split(" ")
        if separator and len(fields) >= 6 and len(source) >= 2 and fields[0].isdigit() and fields[1].isdigit():
            filesystem = _filesystem(_unescape(source[0]), _unescape(fields[4]), _unescape(source[1]))
            mounts.append(_Mount(int(fields[0]), int(fields[1]), filesystem))
    return mounts


def _filesystem(type_: str, mount_point: str, device: str) -> Filesystem:
    network = type_ in _NETWORK or type_.startswith(_NETWORK_PREFIXES)
    return Filesystem(type_, mount_point, device, network, type_ in _SEEN_BY_INOTIFY)


def _unescape(field: str) -> str:
    """Space, tab, newline and backslash stand as three octal digits; each is one byte."""
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), field)
