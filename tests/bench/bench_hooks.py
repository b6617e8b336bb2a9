"""What a hook costs those who carry files: the rate of small files with a hook that fails, and with one that works."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from bench.harness import RESULTS, Result, workspace
from quaymaster.model import State
from quaymaster.store.outbox import DOWN
from system.service import Service, until

FILES, SIZE, ROUNDS = 1_500, 4096, 5
LEAST = 0.98

CONFIG = """
[service]
state_dir = "{folder}/state"
staging_dir = "{folder}/staging"
[limits]
staging_free = "1MiB"
[destination.archive]
type = "directory"
path = "{folder}/archive"
[watch.landing]
path = "{folder}/landing"
destinations = ["archive"]
settle = "200ms"
settle_closed = "100ms"
{hook}
"""
HOOKS = {
    "no hook": "",
    "a command that fails": '[hook.h]\non = ["delivered"]\ncommand = ["/bin/false"]\n',
    "a URL that nobody serves": '[hook.h]\non = ["delivered"]\nurl = "http://127.0.0.1:9/"\n',
}


def measure(hook: str) -> tuple[float, float]:
    """Files a second, from the first delivery to the last, and files a second of processor time; of a receiver that is
    known to be down by then."""
    with workspace() as folder:
        for name in ("landing", "archive"):
            (folder / name).mkdir()
        with Service(CONFIG.format(folder=folder, hook=HOOKS[hook]), folder) as service:
            land(folder, "first", DOWN)
            until(lambda: service.states()[State.DONE] == DOWN, 300)
            until(lambda: not hook_failed(service) or hook_failed(service)[0] >= DOWN, 300)
            before = processor_time(service.pid)
            land(folder, "run", FILES)
            until(lambda: service.states()[State.DONE] == DOWN + FILES, 300)
            used = processor_time(service.pid) - before
            with service.store() as store:
                told = [e.fields["at"] for e in store.custody() if str(e.fields.get("path")).startswith("run/")]
    return (FILES - 1) / (max(told) - min(told)), FILES / used


def hook_failed(service: Service) -> list[int]:
    with service.store() as store:
        return [standing.failures for standing in store.outbox.standing()]


def processor_time(pid: int) -> float:
    """Seconds, with those of the commands that have ended: proc(5), fields 14 to 17."""
    with open(f"/proc/{pid}/stat") as stat:
        return sum(map(int, stat.read().rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")


def land(folder: Path, name: str, files: int) -> None:
    (folder / "ready").mkdir()
    for number in range(files):
        (folder / f"ready/{number:05}").write_bytes(os.urandom(SIZE))
    os.rename(folder / "ready", folder / "landing" / name)  # all at once


def main() -> bool:
    print(f"\n{FILES} files of {SIZE} bytes into a directory, {ROUNDS} interleaved rounds")
    found: dict[str, list[tuple[float, float]]] = {hook: [] for hook in HOOKS}
    for _ in range(ROUNDS):
        for hook, figures in found.items():
            figures.append(measure(hook))
    good = True
    for hook, figures in found.items():
        for index, what in enumerate(("files/s", "files per second of processor time")):
            pairs = zip(figures, found["no hook"], strict=True)
            ratio = statistics.median(with_hook[index] / without[index] for with_hook, without in pairs)
            print(f"  {hook:<28} {statistics.median(f[index] for f in figures):8.0f} {what}  {ratio:.3f} of without")
            if hook != "no hook" and index:
                RESULTS.append(Result(f"{what} with {hook}, against none", ratio, LEAST))
                good = good and ratio >= LEAST
    return good


if __name__ == "__main__":
    raise SystemExit(not main())
