"""Runs an operator's command and gives it something on its standard input; exit status 0 says that it was taken.

No shell; an environment of its own, a session and process group of its own, the directory /, a time limit, after which
the whole group gets SIGTERM and then SIGKILL, and none of the service's file descriptors (launch.py takes the rest).
What it prints is read, so that it never blocks, and thrown away but for the end.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from quaymaster.model import plain

KEPT = 4096
"""Bytes of its output that are kept: the last ones."""
_MERCY = 5.0
"""Seconds between SIGTERM and SIGKILL."""
_LOOK = 0.25
"""Seconds between looks at whether it is to be cut off."""
_LAUNCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launch.py")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(
    command: Sequence[str],
    body: bytes,
    *,
    timeout: float,
    environment: Mapping[str, str],
    cut: Callable[[], bool] = lambda: False,
    monotonic: Callable[[], float] = time.monotonic,
) -> str:
    """What went wrong, in words; empty when nothing did. Never raises. ``cut`` is asked while it runs: then it is
    ended, as when the time is over. ``environment`` is added to PATH and LANG, and is all that it gets."""
    try:
        process = _begin(command, {"PATH": _PATH, "LANG": "C.UTF-8", **environment})
    except OSError as error:
        return f"the command could not be begun ({error.strerror})"
    with _Running(process, body) as running:
        deadline = monotonic() + timeout
        while not running.ended():
            left = deadline - monotonic()
            if left <= 0 or cut():
                _terminate(running, monotonic)
                return _with_output(f"the command did not end within {timeout:g} s", running.output)
            running.turn(min(left, _LOOK))
        status = running.close()
        if status == 0:
            return ""
        how = f"exit status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
        return _with_output(f"the command ended with {how}", running.output)


def _terminate(running: _Running, monotonic: Callable[[], float]) -> None:
    running.signal(signal.SIGTERM)
    deadline = monotonic() + _MERCY
    while not running.ended() and monotonic() < deadline:
        running.turn(_LOOK)
    running.close()


def _begin(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - an operator's own command, without a shell
        [sys.executable, "-I", "-S", _LAUNCH, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=environment,
        start_new_session=True,
        umask=0o077,
        bufsize=0,
    )


class _Running:
    """A process that is written to and read from, until it ends. What it leaves behind in its process group is killed:
    before the process is reaped, so that its number cannot be somebody else's."""

    def __init__(self, process: subprocess.Popen[bytes], body: bytes) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._left = process, memoryview(body)
        self._stdin, self._stdout = process.stdin, process.stdout
        self._selector = selectors.DefaultSelector()
        self._ended = _descriptor_of(process.pid)
        self.output = b""
        self._reaped: int | None = None
        for stream in (self._stdin, self._stdout):
            os.set_blocking(stream.fileno(), False)
        self._selector.register(self._stdin, selectors.EVENT_WRITE)
        self._selector.register(self._stdout, selectors.EVENT_READ)
        if self._ended is not None:
            self._selector.register(self._ended, selectors.EVENT_READ)

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._selector.close()
        if self._ended is not None:
            os.close(self._ended)
        for stream in (self._stdin, self._stdout):
            with suppress(OSError):
                stream.close()

    def ended(self) -> bool:
        if self._reaped is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is not None

    def turn(self, timeout: float) -> None:
        """Write, read, or wait for the end."""
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._stdin:
                self._write()
            elif key.fileobj is self._stdout:
                self._read()

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def close(self) -> int:
        """End it and all of its group; its exit status, or minus the signal."""
        if self._reaped is None:
            self.signal(signal.SIGKILL)
            self._read()
            self._reaped = self._process.wait()
        return self._reaped

    def _write(self) -> None:
        try:
            self._left = self._left[os.write(self._stdin.fileno(), self._left[:65536]) :]
        except BlockingIOError:
            return
        except OSError:  # it does not want to know: its exit status says whether that is right
            self._left = self._left[:0]
        if not self._left:
            self._selector.unregister(self._stdin)
            self._stdin.close()

    def _read(self) -> None:
        try:
            piece = os.read(self._stdout.fileno(), 1 << 20)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self.output = (self.output + piece)[-KEPT:]
        if not piece and self._stdout.fileno() in self._selector.get_map():
            self._selector.unregister(self._stdout)


def _descriptor_of(pid: int) -> int | None:
    """Readable when the process has ended; without it that is seen a little later."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _with_output(text: str, output: bytes) -> str:
    said = plain(output.decode("utf-8", "replace").strip().replace("\n", " | "))
    return f"{text}: {said}" if said else text
