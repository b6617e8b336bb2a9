"""What a hook that fails costs those who carry files: its part of the processor time of small files.

Two runs of a service differ by more than that, so the parts are measured: what a file takes, what it takes to find its
event in the custody log and put it into the outbox, and what a look at a full outbox takes, once a second.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.harness import RESULTS, Result, workspace
from quaymaster.model import State
from quaymaster.store import Store
from quaymaster.store.outbox import WINDOW, Wants
from system.service import Service, until

FILES, SIZE, LOOKS = 1_000, 4096, 100
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
"""


def of_a_file(folder: Path) -> tuple[float, float]:
    """Seconds of processor time that the service takes for a file, and seconds from one file to the next."""
    for name in ("landing", "archive"):
        (folder / name).mkdir()
    with Service(CONFIG.format(folder=folder), folder) as service:
        with service.store() as store:
            store.outbox.register({"down": Wants(frozenset({"delivered"}))})  # which the service does not know
        before = processor_time(service.pid)
        land(folder)
        until(lambda: service.states()[State.DONE] == FILES, 300)
        used = processor_time(service.pid) - before
        with service.store() as store:
            told = [e.fields["at"] for e in store.custody() if e.fields["kind"] == "delivered"]
    return used / FILES, (max(told) - min(told)) / (FILES - 1)


def of_its_event(folder: Path) -> tuple[float, float]:
    """Seconds of processor time for an event, and for a look at the outbox when it is full."""
    store = Store(str(folder / "state"))
    began, position, more = time.process_time(), 0, True
    while more:
        position, more = store.outbox.feed("down", position)
    fed = (time.process_time() - began) / min(FILES, WINDOW)
    began = time.process_time()
    for _ in range(LOOKS):
        store.outbox.feed("down", position)
        store.outbox.due("down", 1, time.time())
    looked = (time.process_time() - began) / LOOKS
    assert store.outbox.standing()[0].waiting == min(FILES, WINDOW)
    store.close()
    return fed, looked


def processor_time(pid: int) -> float:
    """Seconds: proc(5), fields 14 and 15."""
    with open(f"/proc/{pid}/stat") as stat:
        return sum(map(int, stat.read().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def land(folder: Path) -> None:
    (folder / "ready").mkdir()
    for number in range(FILES):
        (folder / f"ready/{number:05}").write_bytes(os.urandom(SIZE))
    os.rename(folder / "ready", folder / "landing/run")  # all at once


def main() -> bool:
    with workspace() as folder:
        file, between = of_a_file(folder)
        event, look = of_its_event(folder)
    ratio = file / (file + event + look * between)
    print(f"\n{FILES} files of {SIZE} bytes into a directory, and a hook that takes nothing")
    print(f"  a file {file * 1e6:.0f} us of processor time; its event {event * 1e6:.1f} us; a look {look * 1e6:.0f} us")
    RESULTS.append(Result("files with a hook that fails, against none", ratio, LEAST))
    return ratio >= LEAST


if __name__ == "__main__":
    raise SystemExit(not main())
