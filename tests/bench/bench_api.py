"""Asking while there is much to do: how long answers take with 100,000 files queued, and what listeners cost."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

from bench import data
from bench.harness import RESULTS, Result, workspace
from quaymaster.model import FileVersion, Identity, State
from system.service import COMMAND, Service, until
from system.test_api import OverUnix, connected

QUEUED = 100_000
IN_FLIGHT = 20
SIZE = 48 << 20
ASKED = 200
LISTENERS = 50
WINDOW = 5.0
ROUNDS = 4
MEDIAN, P99, COMMAND_SECONDS, TRANSFER_LEFT = 0.050, 0.200, 0.3, 0.98

CONFIG = """
[service]
state_dir = "{folder}/state"
staging_dir = "{folder}/staging"
[limits]
files = {files}
[destination.archive]
type = "directory"
path = "{folder}/archive"
[watch.landing]
path = "{folder}/landing"
destinations = ["archive"]
settle_closed = "0s"
compress = {{ format = "zstd", level = 15 }}
[watch.backlog]
path = "{folder}/backlog"
destinations = ["archive"]
"""


def fill(service: Service) -> None:
    """A paused watch with a long queue."""
    with service.store() as store:
        store.pause(["backlog"], "bench")
        numbers = iter(range(QUEUED))
        while some := list(islice(numbers, 10_000)):
            store.enqueue(
                [FileVersion("backlog", b"run-%03d/f-%06d" % (n // 500, n), Identity(n, 1 << 20, n)) for n in some]
            )


@contextmanager
def busy(folder: Path) -> Iterator[Service]:
    """A service with more large files than it takes at once."""
    for name in ("landing", "backlog", "archive"):
        (folder / name).mkdir()
    service = Service(CONFIG.format(folder=folder, files=IN_FLIGHT), folder)
    service.start()
    service.stop()
    fill(service)
    source = data.make(folder / "source", data.fastq, SIZE)
    for number in range(IN_FLIGHT + 4):
        shutil.copyfile(source, folder / f"landing/{number}.fastq")
    service.start()
    try:
        until(lambda: service.states()[State.RUNNING] == IN_FLIGHT, timeout=120)
        yield service
    finally:
        service.kill()


def asked(service: Service) -> list[float]:
    connection, found = OverUnix(str(service.folder / "run/api.sock")), []
    for _ in range(ASKED):
        began = time.perf_counter()
        connection.request("GET", "/api/v1/system/upload-status")
        connection.getresponse().read()
        found.append(time.perf_counter() - began)
        time.sleep(0.05)  # so that not one snapshot serves all
    return sorted(found)


def command(service: Service) -> float:
    """The whole process, with the fastest of some starts: the machine has other things to do."""
    found = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run(
            [*COMMAND, "status", "--config", str(service.config_file)],
            env=service.environment, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        found.append(time.perf_counter() - began)
    return min(found)


def work(service: Service) -> tuple[int, float]:
    """Source bytes that were compressed, and processor seconds that the service took, in a window of time."""

    def now() -> tuple[int, float]:
        with open(f"/proc/{service.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return sum(job["source_bytes"] for job in service.progress().values()), (
            int(fields[11]) + int(fields[12])
        ) / 100

    before = now()
    time.sleep(WINDOW)
    after = now()
    return after[0] - before[0], after[1] - before[1]


def per_second(service: Service, listeners: int) -> tuple[int, float]:
    with ExitStack() as stack:
        for _ in range(listeners):
            client = stack.enter_context(connected(str(service.folder / "run/api.sock")))
            client.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            stack.enter_context(draining(client.fileno()))
        return work(service)


@contextmanager
def draining(descriptor: int) -> Iterator[None]:
    """Read by another process, so that the readers cost this one and the service nothing."""
    process = subprocess.Popen(["cat"], stdin=descriptor, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def judge(name: str, found: float, most: float) -> bool:
    print(f"  {name:<50} {found * 1000:7.1f} ms (at most {most * 1000:g})")
    RESULTS.append(Result(f"{name}, room left", most / found, 1.0))
    return found <= most


def main() -> bool:
    print(f"\nasking a service with {IN_FLIGHT} files in flight and {QUEUED:,} queued")
    with workspace() as folder, busy(folder) as service:
        times = asked(service)
        good = judge("upload-status, median", statistics.median(times), MEDIAN)
        good &= judge("upload-status, p99", times[int(len(times) * 0.99)], P99)
        good &= judge("quaymaster status, the whole process", command(service), COMMAND_SECONDS)
        rounds: list[tuple[tuple[int, float], tuple[int, float]]] = []
        order: list[Callable[[], tuple[int, float]]]
        for turn in range(ROUNDS):
            order = [lambda: per_second(service, 0), lambda: per_second(service, LISTENERS)]
            pair = [measure() for measure in (order if turn % 2 == 0 else reversed(order))]
            rounds.append((pair[0], pair[1]) if turn % 2 == 0 else (pair[1], pair[0]))
    moved = [(alone[0], heard[0]) for alone, heard in rounds]
    rate = sum(heard for _, heard in moved) / sum(alone for alone, _ in moved)
    cost = [sum(side[1] for side in sides) / sum(side[0] for side in sides) for sides in zip(*rounds, strict=True)]
    print(f"  bytes a second with {LISTENERS} listeners: {rate:.3f} of those without (goal {TRANSFER_LEFT})")
    print(f"  processor seconds a byte with them: {cost[1] / cost[0]:.3f} of those without")
    RESULTS.append(Result(f"transfer with {LISTENERS} listeners / without", rate, TRANSFER_LEFT))
    return good and rate >= TRANSFER_LEFT
