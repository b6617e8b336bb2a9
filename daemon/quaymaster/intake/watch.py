"""inotify: what happens in a tree, as hints (PRODUCT W2, W3).

watchdog's bindings, and its constants, but not its observer: that costs three times the processor time and hides
overflows. The scan decides what is there; a hint only says where to look.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from quaymaster.intake.scan import Rules
from quaymaster.intake.settle import Hint

_READ = 1 << 20
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name: inotify(7)

# MODIFY is left out: it would wake us for every write, and tells nothing that matters. When a file is due it is
# looked at, and size, mtime or the lease show a writer that went on; and the writer's close is reported.
_CLOSE_WRITE = 0x00000008
_MOVED_FROM = 0x00000040
_MOVED_TO = 0x00000080
_CREATE = 0x00000100
_DELETE_SELF = 0x00000400
_MOVE_SELF = 0x00000800
_UNMOUNT = 0x00002000
_Q_OVERFLOW = 0x00004000
_IGNORED = 0x00008000
_ONLYDIR = 0x01000000
_EXCL_UNLINK = 0x04000000
_ISDIR = 0x40000000
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _ONLYDIR | _EXCL_UNLINK
_ROOT_MASK = _MASK | _DELETE_SELF | _MOVE_SELF

_LIMITS = "/proc/sys/fs/inotify/"


class WatchLimit(Exception):
    """The kernel gives no more watches: without all of them inotify would miss files in silence."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


@dataclass(slots=True)
class Drained:
    """What happened since the last time."""

    hints: dict[bytes, Hint] = field(default_factory=dict)
    """Files, by path. Names that the rules refuse are left out, but for markers."""
    trees: dict[bytes, None] = field(default_factory=dict)
    """Directories that were made or moved in: files made in them before they were watched gave no events."""
    overflow: bool = False
    """The kernel's queue was full and events are lost: only a scan knows."""
    root_lost: bool = False


def parse(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(wd, mask, name) of each event in what was read."""
    offset, end, unpack = 0, len(data), _EVENT.unpack_from
    while offset < end:
        wd, mask, _, length = unpack(data, offset)
        offset += 16
        yield wd, mask, data[offset : offset + length].rstrip(b"\0")
        offset += length


class Inotify:
    """The watches of one tree. Owned by one thread. Raises WatchLimit when the kernel gives none."""

    def __init__(self, rules: Rules, marker: bytes = b"") -> None:
        from watchdog.observers import inotify_c  # takes a while, and a watch that polls never needs it

        self._c = inotify_c
        self._rules = rules
        self._marker = marker
        self._descriptor: int = inotify_c.inotify_init()
        if self._descriptor < 0:
            raise _limit(ctypes.get_errno(), 0)
        os.set_blocking(self._descriptor, False)
        os.set_inheritable(self._descriptor, False)
        self._path_of: dict[int, bytes] = {}
        self._watch_of: dict[bytes, int] = {}
        self._below: dict[bytes, set[bytes]] = {}  # watched directories, by the directory they are in
        self._swept: set[int] | None = None

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def directories(self) -> int:
        return len(self._path_of)

    def watch(self, path: bytes, descriptor: int) -> bool:
        """Watch the open directory, which is at ``path`` now. False when it was watched there already.

        By descriptor, so that nobody can swap a link into the path. To be listed only afterwards: then what is made
        before is listed, and what is made later is reported.
        """
        mask = _MASK if path else _ROOT_MASK
        wd = self._c.inotify_add_watch(self._descriptor, b"/proc/self/fd/%d" % descriptor, mask)
        if wd < 0:
            code = ctypes.get_errno()
            if code in (errno.ENOSPC, errno.ENOMEM):
                raise _limit(code, self.directories)
            raise OSError(code, os.strerror(code), path)
        if self._swept is not None:
            self._swept.add(wd)
        if self._path_of.get(wd) == path:
            return False
        # The kernel knows a directory by its inode: one that was moved while events were lost keeps its number.
        self._forget(wd)
        stale = self._watch_of.get(path)
        if stale is not None:
            self._forget(stale)
        self._path_of[wd] = path
        self._watch_of[path] = wd
        if path:
            self._below.setdefault(os.path.dirname(path), set()).add(path)
        return True

    def begin_sweep(self) -> None:
        """A scan of everything begins: it visits each directory that should be watched."""
        self._swept = set()

    def end_sweep(self) -> None:
        """It ended: watches of directories that it did not visit are of no use."""
        swept, self._swept = self._swept, None
        if swept is not None:
            for wd in [wd for wd in self._path_of if wd not in swept]:
                self._unwatch(wd)

    def drain(self) -> Drained:
        """Everything that the kernel has to tell, without waiting."""
        drained = Drained()
        while True:
            try:
                data = os.read(self._descriptor, _READ)
            except BlockingIOError:
                return drained
            self.take(parse(data), drained)
            if len(data) < _READ // 2:
                return drained

    def take(self, events: Iterator[tuple[int, int, bytes]], drained: Drained) -> None:
        """Sort events into ``drained``."""
        hints, takes, path_of, marker = drained.hints, self._rules.takes_in, self._path_of, self._marker
        for wd, mask, name in events:
            directory = path_of.get(wd)
            if directory is None or not name or mask & _ISDIR:
                self._take_directory(wd, mask, name, directory, drained)
                continue
            if mask & _MOVED_FROM or not (takes(directory, name) or name == marker):
                continue
            path = directory + b"/" + name if directory else name
            hints[path] = Hint.CLOSED if mask & _CLOSE_WRITE else Hint.MOVED_IN if mask & _MOVED_TO else Hint.CHANGED

    def _take_directory(self, wd: int, mask: int, name: bytes, directory: bytes | None, drained: Drained) -> None:
        if mask & _Q_OVERFLOW:
            drained.overflow = True
        elif directory is None:
            return  # the last words of a watch that was removed
        elif mask & (_IGNORED | _UNMOUNT | _DELETE_SELF | _MOVE_SELF):
            drained.root_lost = drained.root_lost or not directory
            if mask & _IGNORED:
                self._forget(wd)
        elif name:
            path = directory + b"/" + name if directory else name
            if mask & _MOVED_FROM:
                self._drop(path)
                drained.trees.pop(path, None)
            elif mask & (_CREATE | _MOVED_TO) and self._rules.enters(path):
                drained.trees[path] = None

    def _drop(self, path: bytes) -> None:
        """The directory at ``path`` is not there any more: nor is anything below it."""
        doomed = [path]
        while doomed:
            directory = doomed.pop()
            doomed.extend(self._below.get(directory, ()))
            wd = self._watch_of.get(directory)
            if wd is not None:
                self._unwatch(wd)

    def _unwatch(self, wd: int) -> None:
        self._c.inotify_rm_watch(self._descriptor, self._c.WatchDescriptor(wd))
        self._forget(wd)

    def _forget(self, wd: int) -> None:
        path = self._path_of.pop(wd, None)
        if path is None or self._watch_of.get(path) != wd:
            return
        del self._watch_of[path]
        parent = os.path.dirname(path)
        siblings = self._below.get(parent)
        if siblings is not None:
            siblings.discard(path)
            if not siblings:
                del self._below[parent]


def _limit(code: int, directories: int) -> WatchLimit:
    if code in (errno.EMFILE, errno.ENFILE):
        wanted = max(256, 2 * _setting("max_user_instances"))
        return WatchLimit("this user has no inotify instance left", f"sysctl fs.inotify.max_user_instances={wanted}")
    if code == errno.ENOSPC:
        wanted = max(524_288, 2 * _setting("max_user_watches"), 4 * directories)
        return WatchLimit(
            f"this user has no inotify watch left after {directories} directories",
            f"sysctl fs.inotify.max_user_watches={wanted}",
        )
    return WatchLimit(f"inotify is not available ({os.strerror(code)})", "")


def _setting(name: str) -> int:
    try:
        with open(_LIMITS + name) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
