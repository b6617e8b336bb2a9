"""How long a short command takes from the installed package, beside a Python that does nothing.

Measured in a minimal root with the deb for Debian 12 (packaging/root.sh; needs root and mmdebstrap, else the checkout's
own virtualenv is measured). What is held to a limit is the processor time of one warm start, in seconds: on a machine
with nothing else to do it is what the start takes, and it is nearly the same on a busy one.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

CHECKOUT = Path(__file__).resolve().parents[2]
ROUNDS = 15
LIMITS = {"--version": 0.15, "config": 0.25, "check": 0.25, "status": 0.25, "jobs": 0.25}
IMPORTS = 12
"""How many of the largest are shown."""

CONFIG = """
[service]
state_dir = "{0}/state"
[destination.archive]
type = "directory"
path = "{0}/archive"
[watch.incoming]
path = "{0}/incoming"
destinations = ["archive"]
"""

QUEUE = "import sys\nfrom quaymaster.store import Store\nStore(sys.argv[1], create=True).close()"


def main() -> bool:
    if os.geteuid() or not shutil.which("mmdebstrap"):
        print("not root, or no mmdebstrap: this is the checkout's virtualenv, not the package")
        return measure([str(CHECKOUT / ".venv/bin/quaymaster")], str(CHECKOUT / ".venv/bin/python"))
    packaging = CHECKOUT / "packaging"
    package = Path(_said(str(packaging / "build.sh"), "--cached", "bookworm"))
    root = _said(str(packaging / "root.sh"), "make", "bookworm", "run")
    script = f"dpkg -i /dist/{package.name} >/dev/null 2>&1 && exec python3.11 /tests/bench/here/bench_start.py"
    binds = ("--bind", f"{package.parent}:/dist", "--bind", f"{Path(__file__).parent}:/tests/bench/here")
    return subprocess.run([packaging / "root.sh", "run", root, *binds, "--", "/bin/sh", "-ec", script]).returncode == 0


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def measure(quaymaster: list[str], python: str) -> bool:
    """Print the medians and the largest imports; whether all limits are kept."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("state", "incoming", "archive"):
            os.mkdir(f"{folder}/{name}")
        config = Path(folder, "quaymaster.toml")
        config.write_text(CONFIG.format(folder))
        subprocess.run([python, "-c", QUEUE, f"{folder}/state"], check=True)
        bare = [python, "-I", "-c", "pass"]
        commands = {name: [*quaymaster, "--config", str(config), name] for name in LIMITS}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("", *LIMITS)}
        for _ in range(ROUNDS):
            for name, command in ({"": bare} | commands).items():
                seconds[name].append(_start(command))
        print(f"\nA warm start, median of {ROUNDS}: processor time, and by the clock")
        good = True
        for name, taken in seconds.items():
            processor, clock = (statistics.median(column) for column in zip(*taken, strict=True))
            title = f"quaymaster {name}" if name else "bare Python"
            row = f"  {title:<22} {1000 * processor:5.0f} ms {1000 * clock:5.0f} ms"
            if name:
                good = good and processor <= LIMITS[name]
                row += f"   limit {1000 * LIMITS[name]:.0f} ms  {'kept' if processor <= LIMITS[name] else 'MISSED'}"
            print(row)
        _print_imports([python, "-I", "-X", "importtime", "-m", "quaymaster", *commands["status"][-3:]])
    return good


def _start(command: list[str]) -> tuple[float, float]:
    """Runs it; seconds of processor time and of the clock."""
    start = perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    elapsed = perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_utime + used.ru_stime, elapsed


def _print_imports(command: list[str]) -> None:
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    rows = [line.removeprefix("import time:").split("|") for line in told.splitlines() if line.count("|") == 2]
    own = sorted(((int(row[0]), int(row[1]), row[2].strip()) for row in rows[1:]), reverse=True)
    print(f"\nThe largest of {len(own)} imports of status (ms alone, ms with what they import)")
    for alone, total, module in own[:IMPORTS]:
        print(f"  {alone / 1000:6.1f} {total / 1000:6.1f}  {module}")


if __name__ == "__main__":
    sys.exit(not measure(["/usr/bin/quaymaster"], "/usr/lib/quaymaster/bin/python3"))
