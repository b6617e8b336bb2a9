"""Machines with a Linux kernel of their own: user-mode Linux, so that a test can have a true NFS server, a true NFS
client, filesystems that lose power, and nothing of that on the machine that runs the tests.

The kernel and a minimal Debian come from the Debian archive once, and stay in ``$QUAYMASTER_CACHE`` (default
/var/cache/quaymaster-build). The guests see that root read-only, this checkout and its interpreter through hostfs, and
scratch directories in memory. They are joined by socket pairs: no port and no bridge of the host is needed.

What a guest writes through hostfs is seen here when it closes the file. What it has seen here it keeps: use no name
twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("QUAYMASTER_CACHE", "/var/cache/quaymaster-build"))
_PACKAGES = (
    "user-mode-linux,nfs-kernel-server,nfs-common,kmod,python3,e2fsprogs,iproute2,procps,dmsetup,libsystemd0,zstd"
)
# The virtualenv may be that of another checkout, and its interpreter one of this host's own: the guests see these too.
_SAME_PATHS = tuple(dict.fromkeys(path for path in (str(CHECKOUT), sys.prefix, sys.base_prefix) if path != "/usr"))
SHARE = "/share"
PYTHON = sys.executable
"""Of the virtualenv: the same path in the guests."""
ENVIRONMENT = {"PYTHONPATH": f"{CHECKOUT}/daemon:{CHECKOUT}/tests", "PYTHONDONTWRITEBYTECODE": "1"}
"""For Python in a guest: this checkout's code, whatever the virtualenv has."""
_BUILD_SECONDS = 300.0
_BOOT_SECONDS = 60.0


class CannotHave(Exception):
    """Why there can be no such machine here."""


def root() -> Path:
    """The root of the guests, built if it is not there yet; CannotHave with the reason where that is not possible."""
    if sys.version_info[:2] != (3, 11):
        raise CannotHave("the guests run Debian 12, whose Python is 3.11: this is another")
    if os.geteuid() != 0:
        raise CannotHave("only root can build the guests' root and run on it")
    place = CACHE / "uml-bookworm"
    if not place.exists():
        if not shutil.which("mmdebstrap"):
            raise CannotHave("mmdebstrap is not installed")
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(CACHE / "uml-bookworm.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not place.exists():
                _build(place)
    return place


def _build(place: Path) -> None:
    new = place.with_suffix(f".{os.getpid()}")
    settings = place.with_suffix(".apt")
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    settings.write_text("".join(f"{line}\n" for line in dump.splitlines() if line.startswith("Acquire::http")))
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_PACKAGES}", f"--aptopt={settings}"]
    try:
        done = subprocess.run(
            [*command, "bookworm", str(new)], capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False
        )
        if done.returncode:
            raise CannotHave(f"mmdebstrap could not build the guests' root: {done.stderr.strip()[-500:]}")
        new.rename(place)
    except subprocess.TimeoutExpired:
        raise CannotHave(f"mmdebstrap did not build the guests' root in {_BUILD_SECONDS:g} s") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
        settings.unlink(missing_ok=True)


@dataclass(frozen=True)
class Ran:
    """What became of a program in a guest."""

    status: int
    out: str
    err: str


class Machine:
    """One guest. ``disks`` are image files: /dev/ubda, /dev/ubdb … ``wires`` are ends of socket pairs, see
    :func:`wire`: vec0, vec1 …, with the address that each gets (``10.0.0.1/24``)."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        memory: str = "384M",
        disks: Sequence[Path] = (),
        wires: Sequence[tuple[socket.socket, str]] = (),
    ) -> None:
        self.name = name
        self.share = folder / name
        """The guest sees it as :data:`SHARE`."""
        self.share.mkdir(parents=True, exist_ok=True)
        self.console = folder / f"{name}.console"
        self._memory, self._disks, self._wires = memory, tuple(disks), tuple(wires)
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: dict[int, dict[str, Any]] = {}
        self._answered = threading.Condition()
        self._requests = 0
        self._to_guest = -1

    # -- its life --

    def start(self) -> Machine:
        """Returns when the guest is up."""
        assert self._process is None, "it runs already"
        for path in (*_SAME_PATHS, SHARE):
            (root() / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        in_guest, self._to_guest = os.pipe()
        from_guest, out_of_guest = os.pipe()
        self._answers.clear()
        with open(self.console, "ab") as console:
            self._process = subprocess.Popen(
                self._command(in_guest, out_of_guest),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=[in_guest, out_of_guest, *(end.fileno() for end, _ in self._wires)],
                start_new_session=True,
            )
        os.close(in_guest)
        os.close(out_of_guest)
        threading.Thread(target=self._listen, args=(from_guest,), daemon=True).start()
        self._wait_for(0, _BOOT_SECONDS)
        for number, (_, address) in enumerate(self._wires):
            self.check(f"ip addr add {address} dev vec{number} && ip link set vec{number} up")
        return self

    def cut_power(self) -> None:
        """At once: what the guest had not written to its disks is lost."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            os.close(self._to_guest)

    def __enter__(self) -> Machine:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.cut_power()
        if kind is not None and self.console.exists():
            print(
                f"the console of {self.name}:",
                *self.console.read_text("utf-8", "replace").splitlines()[-30:],
                sep="\n  ",
            )

    # -- programs in it --

    def run(
        self, command: str | Sequence[str], *, timeout: float = 60, environment: Mapping[str, str] | None = None
    ) -> Ran:
        """Run a program, or a line of shell, to its end."""
        number = self.begin(command, timeout=timeout, environment=environment)
        return self.end(number, timeout)

    def begin(
        self, command: str | Sequence[str], *, timeout: float = 600, environment: Mapping[str, str] | None = None
    ) -> int:
        """Start a program; :meth:`end` waits for it."""
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        with self._answered:
            self._requests += 1
            number = self._requests
            request = {"id": number, "argv": argv, "timeout": timeout, "env": dict(environment or {})}
            os.write(self._to_guest, json.dumps(request).encode() + b"\n")
        return number

    def end(self, number: int, timeout: float) -> Ran:
        answer = self._wait_for(number, timeout + 15)
        return Ran(answer["status"], answer["out"], answer["err"])

    def check(self, command: str | Sequence[str], *, timeout: float = 60) -> str:
        """What it printed; AssertionError when its exit status is not 0."""
        done = self.run(command, timeout=timeout)
        shown = command if isinstance(command, str) else shlex.join(command)
        assert done.status == 0, f"{self.name}: {shown}: status {done.status}\n{done.out}\n{done.err}"
        return done.out

    def _command(self, in_guest: int, out_of_guest: int) -> list[str]:
        seen = {SHARE: (str(self.share), "rw")} | {path: (path, "ro") for path in _SAME_PATHS}
        settings = {"name": self.name, "hostfs": seen}
        wires = [
            f"vec{n}:transport=fd,fd={end.fileno()},mac={_mac(self.name, n)}" for n, (end, _) in enumerate(self._wires)
        ]
        disks = [f"ubd{chr(97 + n)}={path}" for n, path in enumerate(self._disks)]
        return [
            str(root() / "usr/bin/linux.uml"), f"mem={self._memory}", "root=/dev/root", "rootfstype=hostfs",
            f"rootflags={root()}", "ro", f"init={_install_init()}", "quiet", "con=null", "con0=null,fd:1", "ssl=null",
            f"ssl0=fd:{in_guest},fd:{out_of_guest}", f"uml_dir={self.share}", f"umid={self.name}", *disks, *wires,
            f"machine={json.dumps(settings, separators=(',', ':'))}",
        ]  # fmt: skip

    def _listen(self, from_guest: int) -> None:
        with open(from_guest, "rb") as lines:
            for line in lines:
                with suppress(ValueError), self._answered:
                    answer = json.loads(line)
                    self._answers[answer["id"]] = answer
                    self._answered.notify_all()

    def _wait_for(self, number: int, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        with self._answered:
            while number not in self._answers:
                left = deadline - time.monotonic()
                alive = self._process is not None and self._process.poll() is None
                if left <= 0 or not alive:
                    said = self.console.read_text("utf-8", "replace")[-2000:] if self.console.exists() else ""
                    raise AssertionError(f"{self.name} {'did not answer' if alive else 'is not running'}\n{said}")
                self._answered.wait(min(left, 0.5))
            return self._answers.pop(number)


def _install_init() -> str:
    target = root() / "usr/sbin/quaymaster-guest"
    wanted = (Path(__file__).parent / "uml_guest.py").read_bytes()
    if not target.exists() or target.read_bytes() != wanted:
        scratch = target.with_suffix(f".{os.getpid()}")
        scratch.write_bytes(wanted)
        scratch.chmod(0o755)
        scratch.rename(target)
    return "/usr/sbin/quaymaster-guest"


def _mac(name: str, number: int) -> str:
    return "02:" + ":".join(f"{byte:02x}" for byte in [*name.encode()[-4:].rjust(4, b"-"), number])


def wire() -> tuple[socket.socket, socket.socket]:
    """Two ends of a network cable."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return ends
