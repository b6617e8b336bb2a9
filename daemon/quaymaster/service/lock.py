"""One service a state directory: an advisory lock that the kernel drops with the process."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import time

from quaymaster.errors import StoreBusy, StoreError, StoreFull, StoreUnwritable

_NAME = "quaymaster.lock"
_TRIES, _PAUSE = 20, 0.05


class Lock:
    """Held from construction until :meth:`release`. Raises StoreBusy while another process holds it."""

    def __init__(self, state_dir: str) -> None:
        path = os.path.join(state_dir, _NAME)
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(error, path) from None
        if not _taken(self._descriptor):
            other = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise StoreBusy(
                f"Another quaymaster (process {other or 'unknown'}) uses {state_dir}",
                "Stop it first, or give this one its own service.state_dir",
            ) from None
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            os.close(self._descriptor)
            raise _unusable(error, path) from None

    def release(self) -> None:
        os.close(self._descriptor)


def _unusable(error: OSError, path: str) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{path} cannot be written ({error.strerror})", "Make room there, then start again")
    advice = "Give the state directory to the service's user"
    if error.errno == errno.EROFS:
        advice = "Mount it writable, or set service.state_dir to a directory that is"
    return StoreUnwritable(f"{path} cannot be opened ({error.strerror})", advice)


def _taken(descriptor: int) -> bool:
    """Take the lock. A command that looks who holds it (:func:`holder`) has it for an instant: so, more than once."""
    for attempt in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_PAUSE if attempt + 1 < _TRIES else 0)
    return False


def holder(state_dir: str) -> int | None:
    """The process that runs the service on this state directory, or None."""
    try:
        descriptor = os.open(os.path.join(state_dir, _NAME), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else -1
    finally:
        os.close(descriptor)
    return None


def take(state_dir: str) -> Lock | None:
    """The lock of the state directory; None while another process has it. Raises StoreUnwritable when its files belong
    to somebody else: what this process made there would be out of the owner's reach."""
    if holder(state_dir) is not None:
        return None
    status = os.stat(state_dir)
    if status.st_uid != os.geteuid():
        raise StoreUnwritable(
            f"{state_dir} belongs to user {_user(status.st_uid)}, and its service does not run",
            f"Start the service, or run this as that user: sudo -u {_user(status.st_uid)} quaymaster sync ...",
        )
    try:
        return Lock(state_dir)
    except StoreBusy:
        return None


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"#{number}"
