"""A really booted systemd in a container (systemd-nspawn), for tests of units, packages and the journal.

The root is built once by mmdebstrap and kept outside the checkout; every boot runs on an overlay of it, in memory, so
that no test sees what another left. The container shares the host's loopback: a server on 127.0.0.1 is reachable.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

CACHE = Path(os.environ.get("QUAYMASTER_CACHE", "/var/cache/quaymaster-build"))
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BUILD_LIMIT = 600.0
_BOOT_LIMIT = 60.0
_HALT_LIMIT = 20.0
_OVERLAY_SIZE = "1500m"

# What the packages depend on, and what the tests look with. python3 is what the virtualenv of a checkout runs on.
_PACKAGES = "systemd,systemd-sysv,dbus,procps,python3,man-db,rpm,ca-certificates"

# What has no business in a test; above all what would configure the host's network, which the container shares.
_MASKED = (
    "getty.target", "timers.target", "systemd-firstboot.service", "systemd-networkd.service",
    "systemd-networkd.socket", "systemd-networkd-wait-online.service", "systemd-resolved.service",
)  # fmt: skip
_T = TypeVar("_T")


def reason_to_skip(release: str = "bookworm") -> str:
    """Why no systemd can be booted on this machine, or an empty string."""
    if os.geteuid() != 0:
        return "only root can boot a container"
    if not shutil.which("systemd-nspawn"):
        return "systemd-nspawn is not installed (Debian: systemd-container)"
    if not _hierarchies():
        return "no cgroup hierarchy that a container could use is mounted"
    if not _root(release).exists() and not shutil.which("mmdebstrap"):
        return "mmdebstrap is not installed, and no root is cached"
    return ""


def _root(release: str) -> Path:
    return CACHE / f"booted-{release}-1"


def root_of(release: str) -> Path:
    """The pristine root of a release; built when there is none. Raises OSError or CalledProcessError."""
    root = _root(release)
    if not root.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = CACHE / f"{root.name}.{os.getpid()}"
        settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
        wanted = ("Acquire::http::", "Acquire::https::", "Acquire::Retries", "Acquire::Check-")
        conf = CACHE / f"apt-{os.getpid()}.conf"
        conf.write_text("\n".join(line for line in settings.splitlines() if line.startswith(wanted)) + "\n")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_PACKAGES}", f"--aptopt={conf}"]
        try:
            subprocess.run([*command, release, new], check=True, timeout=_BUILD_LIMIT, stdin=subprocess.DEVNULL)
            with suppress(OSError):  # somebody else was quicker
                new.rename(root)
        finally:
            conf.unlink()
            shutil.rmtree(new, ignore_errors=True)
    return root


def _hierarchies() -> list[Path]:
    """Where the container gets a control group of its own: the unified hierarchy, and systemd's own if there is one."""
    base = Path("/sys/fs/cgroup")
    if (base / "cgroup.procs").exists():
        return [base]
    return [path for path in (base / "unified", base / "systemd") if (path / "cgroup.procs").exists()]


@dataclass
class Done:
    status: int
    out: str
    err: str


@dataclass
class Booted:
    """A running system. ``root`` is its / as the host sees it."""

    name: str
    root: Path
    upper: Path
    srv: Path
    """The host's own directory that the system sees as /srv: on a disk, unlike the rest, and watched by inotify."""
    leader: int = 0
    _nspawn: subprocess.Popen[bytes] | None = None
    _groups: list[Path] = field(default_factory=list)

    # -- its life --

    def boot(self) -> None:
        """Returns when systemd says that it has booted."""
        self._groups = [path / f"{self.name}" for path in _hierarchies()]
        for group in self._groups:
            group.mkdir(exist_ok=True)
        groups = [str(group / "cgroup.procs") for group in self._groups]

        def enter() -> None:
            for file in groups:
                descriptor = os.open(file, os.O_WRONLY)
                os.write(descriptor, b"0")
                os.close(descriptor)

        address = self.upper.parent / "notify"
        with suppress(FileNotFoundError):
            address.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, self.console.open("ab") as console:
            told.bind(str(address))
            told.settimeout(0.2)
            self._nspawn = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=console, stderr=console, preexec_fn=enter,
                start_new_session=True,
                env={"PATH": SYSTEM_PATH, "NOTIFY_SOCKET": str(address), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )  # fmt: skip
            self._await_boot(told)

    def _await_boot(self, told: socket.socket) -> None:
        assert self._nspawn is not None
        deadline = time.monotonic() + _BOOT_LIMIT
        while True:
            try:
                for line in told.recv(4096).decode().splitlines():
                    key, _, value = line.partition("=")
                    if key == "X_NSPAWN_LEADER_PID":
                        self.leader = int(value)
                    if line == "READY=1":
                        return
            except TimeoutError:
                pass
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                said = self.console.read_text(errors="replace")[-3000:]
                self.power_off()
                raise RuntimeError("the system did not boot:\n" + said)

    def _command(self) -> list[str]:
        return [
            "systemd-nspawn", "-q", "-D", str(self.root), f"--machine={self.name}", "--boot", "--register=no",
            "--keep-unit", "--notify-ready=yes", "--console=pipe", "--resolv-conf=off", "--link-journal=no",
            "--timezone=off", "--system-call-filter=bpf", "--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON",
            f"--bind={self.srv}:/srv", *(f"systemd.mask={unit}" for unit in _MASKED),
        ]  # fmt: skip

    @property
    def console(self) -> Path:
        return self.upper.parent / "console"

    def halt(self) -> None:
        """An orderly shutdown."""
        if self._nspawn is not None:
            self._nspawn.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._nspawn.wait(_HALT_LIMIT)
        self.power_off()

    def power_off(self) -> None:
        """Everything in it ends at once, as when the mains fail; what was written to its files stays."""
        if self.leader:
            with suppress(ProcessLookupError):
                os.kill(self.leader, signal.SIGKILL)  # init of a pid namespace: the kernel kills the rest
            self.leader = 0
        if self._nspawn is not None:
            with suppress(subprocess.TimeoutExpired):
                self._nspawn.wait(10)
            self._nspawn.kill()
            self._nspawn.wait()
            self._nspawn = None
        for group in self._groups:
            until(lambda group=group: _removed(group), 10, f"{group} is empty")  # type: ignore[misc]

    # -- what happens in it --

    def run(self, *command: str | Path, check: bool = True, timeout: float = 60, input: str | None = None) -> Done:
        """Run a command in it as root; AssertionError when it fails, unless ``check`` is False."""
        namespaces = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--"]
        clean = ["env", "-i", f"PATH={SYSTEM_PATH}", "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb"]
        found = subprocess.run(
            [*namespaces, *clean, *map(str, command)], capture_output=True, encoding="utf-8", errors="replace",
            timeout=timeout, input=input if input is not None else "",
        )  # fmt: skip
        done = Done(found.returncode, found.stdout, found.stderr)
        if check:
            assert done.status == 0, f"{command} ended with {done.status}:\n{done.out}{done.err}"
        return done

    def shell(self, script: str, check: bool = True, timeout: float = 60) -> Done:
        return self.run("/bin/sh", "-ec", script, check=check, timeout=timeout)

    def path(self, inside: str) -> Path:
        """Where the host finds a path of the system that is not on a mount of its own."""
        return self.srv / inside.removeprefix("/srv/") if inside.startswith("/srv/") else self.root / inside.lstrip("/")

    def put(self, inside: str, text: str | bytes, mode: int = 0o644) -> None:
        """Write a file, with the directories above it, owned by root."""
        where = self.path(inside)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(text.encode() if isinstance(text, str) else text)
        where.chmod(mode)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """``systemctl show``."""
        listed = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties)).out
        return dict(line.partition("=")[::2] for line in listed.splitlines() if "=" in line)

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Entries that match, oldest first; a field that is not UTF-8 is a list of its bytes (journalctl(1), json)."""
        listed = self.run("journalctl", "--no-pager", "--all", "-o", "json", *matches, check=False).out
        return [json.loads(line) for line in listed.splitlines() if line.startswith("{")]


@contextmanager
def booted(name: str, scratch: Path, release: str = "bookworm") -> Iterator[Booted]:
    """Boot ``release``. ``name`` names the machine; ``scratch`` is an empty directory for mount points and /srv."""
    below, disk, root, srv = root_of(release), scratch / "disk", scratch / "root", scratch / "srv"
    for directory in (disk, root, srv):
        directory.mkdir(parents=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={_OVERLAY_SIZE},mode=755", "tmpfs", disk)
    try:
        for directory in (disk / "upper", disk / "work"):
            directory.mkdir()
        options = f"lowerdir={below},upperdir={disk / 'upper'},workdir={disk / 'work'}"
        _call("mount", "-t", "overlay", "-o", options, "overlay", root)
        try:
            system = Booted(name, root, disk / "upper", srv)
            (root / "etc/machine-id").write_text("uninitialized\n")
            (root / "var/log/journal").mkdir(parents=True, exist_ok=True)
            try:
                system.boot()
                yield system
            finally:
                system.power_off()
        finally:
            _call("umount", "-l", root)
    finally:
        _call("umount", "-l", disk)


def until(condition: Callable[[], _T], timeout: float = 30, what: str = "") -> _T:
    """The first true answer of ``condition``; AssertionError when there is none in ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what or condition}"
        time.sleep(0.1)
    return answer


def _removed(group: Path) -> bool:
    for path in sorted(group.glob("**/"), key=lambda path: -len(path.parts)):
        with suppress(OSError):
            path.rmdir()
    return not group.exists()


def _call(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, stdin=subprocess.DEVNULL)
