"""A filesystem that fails as it is told: a FUSE passthrough to a directory, in a process of its own.

``FaultyFilesystem`` is for tests; run as a program, this module is that process.
"""

from __future__ import annotations

import ctypes.util
import errno
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def reason_to_skip() -> str:
    """Why there can be none on this machine, or an empty string."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        return "fusermount3 is not installed"
    if not ctypes.util.find_library("fuse3"):
        return "libfuse3 is not installed"
    if not importlib.util.find_spec("mfusepy"):
        return "mfusepy is not installed"
    return ""


class FaultyFilesystem:
    """Mounts ``seen`` (``below``/seen), which shows ``below``/held. Files put into ``held`` are there without its ado.
    With ``direct`` the kernel caches nothing of it, and each reading is one of its own."""

    program = __file__
    """What is run to serve it, with ``arguments`` after its own."""

    def __init__(self, below: Path, seen: Path | None = None, *, direct: bool = False) -> None:
        self.arguments: list[str] = []
        self.held, self.seen, self._faults = below / "held", seen or below / "seen", below / "faults.json"
        self._direct = direct
        for directory in (self.held, self.seen):
            directory.mkdir(parents=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.fail()

    def fail(self, **faults: str) -> None:
        """From now on these operations (link, read, fsync …), and no others, fail with the named errno; or with "hang"
        give no answer until they are told to do otherwise. ``every`` means all that are not named.

        A write with "ENOSPC:N" fails beyond the first N bytes of a file. A read with "flip" gives a wrong bit, another
        one each time, and with "short" half of what is there; a write puts a wrong bit there, or half of what it was
        given. An fsync with "lost" fails with EIO, and what was written since the last one is gone, as it is on a disk
        when the cache forgets the pages that could not be written."""
        scratch = self._faults.with_suffix(".new")
        scratch.write_text(json.dumps(faults))
        scratch.replace(self._faults)

    def mount(self) -> None:
        process = subprocess.Popen(
            [
                *(sys.executable, self.program, self.held, self.seen, self._faults),
                *("direct" if self._direct else "", *self.arguments),
            ]
        )
        self._processes.append(process)
        deadline = time.monotonic() + 15
        while not os.path.ismount(self.seen):
            assert process.poll() is None, "the filesystem did not start"
            assert time.monotonic() < deadline, "the filesystem was not mounted"
            time.sleep(0.02)

    def unmount(self) -> None:
        """Lazily: what is open stays so."""
        command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*command, self.seen], check=False)

    def die(self) -> None:
        """The process ends without unmounting: ENOTCONN from now on."""
        self._processes[-1].kill()
        self._processes[-1].wait()

    def __enter__(self) -> FaultyFilesystem:
        self.mount()
        return self

    def __exit__(self, *_: object) -> None:
        self.fail()  # so that nothing hangs any more
        self.unmount()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


_Around = Callable[[str, Callable[..., Any]], Callable[..., Any]]


def serve(held: str, seen: str, faults: str, direct: str, around: _Around = lambda _, act: act) -> None:
    """``around`` is given each operation's name and what does it, and says what does it instead."""
    import mfusepy

    class Fuse(mfusepy.FUSE):  # type: ignore[misc]
        def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
            if flags:  # which the library would pass over in silence
                raise OSError(errno.EINVAL, "no flags here")
            return int(self.rename_fuse_2(old, new))

    def set_up(self: object, connection: Any, config: Any) -> None:
        config.direct_io = bool(direct)

    operations = _operations(mfusepy.Operations, held, faults, around)
    type(operations).init_with_config = set_up
    Fuse(
        operations,
        seen,
        foreground=True,
        nothreads=False,  # so that one call that hangs does not hold up the others
        use_ino=True,
        hard_remove=True,
    )


class Unsynced:
    """What was written to each file since its last fsync, so that it can be lost."""

    MOST = 4096
    """Writes of one file; one that is never synced (SQLite's shared memory) is not remembered for ever."""

    def __init__(self) -> None:
        self._before: dict[int, list[tuple[int, int, bytes]]] = {}
        self._lock = threading.Lock()

    def write(self, handle: int, data: bytes, offset: int) -> int:
        status = os.fstat(handle)
        before = os.pread(handle, len(data), offset)
        with self._lock:
            writes = self._before.setdefault(status.st_ino, [])
            if status.st_size == 0 or len(writes) >= self.MOST:  # another file may have had this number
                writes.clear()
            writes.append((status.st_size, offset, before))
        return os.pwrite(handle, data, offset)

    def sync(self, handle: int) -> None:
        self._forget(handle)
        os.fsync(handle)

    def lose(self, handle: int) -> None:
        for size, offset, before in reversed(self._forget(handle)):
            os.pwrite(handle, before, offset)
            os.truncate(handle, size)

    def _forget(self, handle: int) -> list[tuple[int, int, bytes]]:
        with self._lock:
            return self._before.pop(os.fstat(handle).st_ino, [])


def readable(flags: int) -> int:
    """What is overwritten has to be read first."""
    return flags & ~os.O_ACCMODE | os.O_RDWR if flags & os.O_ACCMODE == os.O_WRONLY else flags


def _operations(base: Any, held: str, faults: str, around: _Around) -> Any:
    def under(path: str) -> str:
        return held + path

    def told(name: str) -> str:
        with open(faults) as file:
            known: dict[str, str] = json.load(file)
        return known.get(name, known.get("every", ""))

    turn = itertools.count(1)

    def flipped(data: bytes) -> bytes:
        at = next(turn) * 7919 % max(1, len(data))
        return data[:at] + bytes(byte ^ 1 for byte in data[at : at + 1]) + data[at + 1 :]

    damages: dict[str, Callable[[bytes], bytes]] = {"flip": flipped, "short": lambda data: data[: (len(data) + 1) // 2]}
    unsynced = Unsynced()

    def guarded(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def operation(self: object, *arguments: Any) -> Any:
            while (code := told(name)) == "hang":
                time.sleep(0.02)
            code, _, least = code.partition(":")
            damage = damages.get(code) if name in ("read", "write") else None
            # write's arguments: path, data, offset, handle; fsync's: path, whether data only, handle
            if code == "lost":
                unsynced.lose(arguments[2])
                code = "EIO"
            if code and not damage and not (least and arguments[2] + len(arguments[1]) <= int(least)):
                raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
            if damage and name == "write":
                return act(arguments[0], damage(arguments[1]), *arguments[2:])
            answer = act(*arguments)
            if damage:
                return damage(answer)
            return 0 if answer is None else answer

        return operation

    def status(path: str, handle: int | None = None) -> dict[str, int]:
        found = os.lstat(under(path))
        names = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size")
        return {name: getattr(found, name) for name in names} | {
            f"st_{which}": getattr(found, f"st_{which}_ns") for which in ("atime", "mtime", "ctime")
        }

    def space(path: str) -> dict[str, int]:
        found = os.statvfs(under(path))
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_namemax")
        return {name: getattr(found, name) for name in names}

    acts: dict[str, Callable[..., Any]] = {
        "getattr": status,
        "statfs": space,
        "readdir": lambda path, handle: [
            (name, status(os.path.join(path, name)), 0) for name in os.listdir(under(path))
        ],
        "open": lambda path, flags: os.open(under(path), readable(flags) & ~os.O_DIRECT),
        "create": lambda path, mode, flags=0: os.open(under(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode),
        "read": lambda path, size, offset, handle: os.pread(handle, size, offset),
        "write": lambda path, data, offset, handle: unsynced.write(handle, data, offset),
        "truncate": lambda path, length, handle=None: os.truncate(under(path), length),
        "flush": lambda path, handle: None,
        "fsync": lambda path, data_only, handle: unsynced.sync(handle),
        "fsyncdir": lambda path, data_only, handle: None,
        "release": lambda path, handle: os.close(handle),
        "unlink": lambda path: os.unlink(under(path)),
        "mkdir": lambda path, mode: os.mkdir(under(path), mode),
        "rmdir": lambda path: os.rmdir(under(path)),
        "link": lambda target, source: os.link(under(source), under(target)),
        "rename": lambda old, new: os.rename(under(old), under(new)),
        "chmod": lambda path, mode: os.chmod(under(path), mode),
        "chown": lambda path, user, group: os.chown(under(path), user, group),
        "utimens": lambda path, times=None: os.utime(under(path), ns=times),
    }
    kind = type("Passthrough", (base,), {"use_ns": True, **{n: guarded(n, around(n, act)) for n, act in acts.items()}})
    return kind()


if __name__ == "__main__":
    serve(*sys.argv[1:5])
