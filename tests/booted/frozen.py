"""Stopping single threads of a process, as a call into a dead disk would: ptrace(2)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000  # <sys/wait.h>: threads too
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def threads(pid: int) -> set[int]:
    """The threads of a process, by number as this process sees them."""
    return {int(name) for name in os.listdir(f"/proc/{pid}/task")}


class Frozen:
    """Call :meth:`bury` now and then: the dead have to be waited for by who traces them."""

    def __init__(self, tids: Iterable[int]) -> None:
        self.tids = set(tids)

    def bury(self) -> bool:
        """Always True, for use in a condition."""
        for tid in set(self.tids):
            try:
                found, status = os.waitpid(tid, os.WNOHANG | _WALL)
            except ChildProcessError:
                self.tids.discard(tid)
                continue
            if found and (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
                self.tids.discard(tid)
        return True


@contextmanager
def frozen(tids: Iterable[int]) -> Iterator[Frozen]:
    """These threads stand still until the end of the body, or until they are killed. Raises OSError."""
    stopped = Frozen(())
    try:
        for tid in tids:
            _ptrace(_SEIZE, tid)
            stopped.tids.add(tid)
            _ptrace(_INTERRUPT, tid)
            os.waitpid(tid, _WALL)
        yield stopped
    finally:
        stopped.bury()
        for tid in stopped.tids:
            with suppress(OSError):
                _ptrace(_DETACH, tid)


def _ptrace(request: int, tid: int) -> None:
    if _libc.ptrace(request, tid, None, None) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
