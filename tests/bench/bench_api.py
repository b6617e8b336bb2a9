"""Asking while there is much to do: how long answers take with 100,000 files queued, and what listeners cost."""

from __future__ import annotations

import os
import select
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

from bench import data
from bench.harness import RESULTS, Result, workspace
from quaymaster.model import FileVersion, Identity, State
from quaymaster.store import Filter
from system.service import COMMAND, Service, until
from system.test_api import OverUnix, connected

QUEUED = 100_000
IN_FLIGHT = 20
SIZE = 48 << 20
ASKED = 200
LISTENERS = 50
WINDOW = 5.0
ROUNDS = 4
COMMANDS = 11
MEDIAN, P99, COMMAND_SECONDS = 0.050, 0.200, 0.3
REPORTING = 0.01
"""Share of the processor time that may go into telling how far each file is, once a second."""
COST = 0.02
"""Share of the processor time, which is what a transfer can lose by it."""

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
hard_links = true
compress = {{ format = "zstd", level = 9 }}
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
def busy(folder: Path) -> Iterator[tuple[Service, frozenset[int]]]:
    """A service with more large files than it takes at once, and which of its threads are the API's."""
    for name in ("landing", "backlog", "archive"):
        (folder / name).mkdir()
    service = Service(CONFIG.format(folder=folder, files=IN_FLIGHT), folder)
    service.start()
    service.stop()
    fill(service)
    source = data.make(folder / "source", data.fastq, SIZE)
    service.start()
    try:
        threads = of_the_api(service)
        for number in range(10 * IN_FLIGHT):
            os.link(source, folder / f"landing/{number}.fastq")
        until(lambda: service.states()[State.RUNNING] == IN_FLIGHT, timeout=120)
        yield service, threads
    finally:
        service.kill()


def of_the_api(service: Service) -> frozenset[int]:
    """The threads that are new, or had much to do, when it was asked for the first time: it imports much then."""
    before = used(service)
    connection = OverUnix(str(service.folder / "run/api.sock"))
    connection.request("GET", "/api/v1/system/upload-status")
    connection.getresponse().read()
    return frozenset(thread for thread, seconds in used(service).items() if seconds - before.get(thread, -1) > 0.1)


def used(service: Service) -> dict[int, float]:
    """Thread -> processor seconds, of those that there are now."""
    found = {}
    for thread in os.listdir(f"/proc/{service.pid}/task"):
        with suppress(OSError):
            found[int(thread)] = seconds_in(f"/proc/{service.pid}/task/{thread}/stat")
    return found


def seconds_in(path: str) -> float:
    """proc_pid_stat(5): utime and stime."""
    with open(path) as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def asked(service: Service) -> list[float]:
    """Of three times, the quickest: the machine has other things to do."""
    return min((_asked(service) for _ in range(3)), key=lambda times: times[-3])


def _asked(service: Service) -> list[float]:
    connection, found = OverUnix(str(service.folder / "run/api.sock")), []
    for _ in range(ASKED):
        began = time.perf_counter()
        connection.request("GET", "/api/v1/system/upload-status")
        connection.getresponse().read()
        found.append(time.perf_counter() - began)
        time.sleep(0.02)  # so that not one snapshot serves all
    return sorted(found)


def command(service: Service) -> list[float]:
    """Wall seconds of the whole process, sorted: with 20 files in flight, so one processor is not idle."""
    used, taken = [], []
    for _ in range(COMMANDS):
        began, before = time.perf_counter(), os.times()
        subprocess.run(
            [*COMMAND, "status", "--config", str(service.config_file)],
            env=service.environment, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        after = os.times()
        taken.append(time.perf_counter() - began)
        used.append(after.children_user + after.children_system - before.children_user - before.children_system)
    figures = (
        f"{min(taken) * 1000:.0f} to {max(taken) * 1000:.0f} ms, processor {statistics.median(used) * 1000:.0f} ms"
    )
    print(f"  quaymaster status, {COMMANDS} times: {figures}")
    return sorted(taken)


def work(service: Service, threads: frozenset[int]) -> tuple[int, float, float]:
    """In a window of time: source bytes that were compressed, processor seconds of the service, and of its API."""

    def now() -> tuple[int, float, float]:
        progress = service.progress()
        with service.store() as store:
            moved = store.counts()["landing"].get(State.DONE, (0, 0))[1]
            for job in store.jobs(Filter(states=(State.RUNNING,))):
                moved += progress.get(str(job.id), {}).get("source_bytes", 0)
        of_api = sum(seconds for thread, seconds in used(service).items() if thread in threads)
        return moved, seconds_in(f"/proc/{service.pid}/stat"), of_api

    before = now()
    time.sleep(WINDOW)
    after = now()
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def reporting(service: Service) -> bool:
    """The main thread does that, and little else: what all of it takes."""

    def now() -> tuple[float, float]:
        with open(f"/proc/{service.pid}/task/{service.pid}/schedstat") as file:
            return int(file.read().split()[0]) / 1e9, seconds_in(f"/proc/{service.pid}/stat")

    before = now()
    time.sleep(2 * WINDOW)
    after = now()
    share = (after[0] - before[0]) / (after[1] - before[1])
    print(f"  reporting the progress takes {100 * share:.2f} % of the processor time (at most {100 * REPORTING:g} %)")
    RESULTS.append(Result("cost of reporting the progress, room left", REPORTING / max(share, 1e-5), 1.0))
    return share <= REPORTING


def listened(service: Service, threads: frozenset[int], listeners: int) -> tuple[int, float, float]:
    with ExitStack() as stack:
        clients = []
        for _ in range(listeners):
            clients.append(stack.enter_context(connected(str(service.folder / "run/api.sock"))))
            clients[-1].sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        told = stack.enter_context(read(clients))
        time.sleep(1.0)  # until all are there
        found = work(service, threads)
    assert all(told), "one was dropped"
    assert sum(told) >= listeners * WINDOW * 1000, "they were not told the status every second"
    return found


@contextmanager
def read(clients: Sequence[socket.socket]) -> Iterator[list[int]]:
    """All that they are sent, in a thread of this process; yields the sizes of the pieces."""
    ending, sizes = threading.Event(), []

    def run() -> None:
        while not ending.is_set():
            for client in select.select(clients, [], [], 0.2)[0]:
                sizes.append(len(client.recv(1 << 20)))
                if not sizes[-1]:  # it was dropped
                    return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sizes
    finally:
        ending.set()
        thread.join()


def judge(name: str, found: float, most: float) -> bool:
    print(f"  {name:<50} {found * 1000:7.1f} ms (at most {most * 1000:g})")
    RESULTS.append(Result(f"{name}, room left", most / found, 1.0))
    return found <= most


def main() -> bool:
    print(f"\nasking a service with {IN_FLIGHT} files in flight and {QUEUED:,} queued")
    with workspace() as folder, busy(folder) as (service, threads):
        good = reporting(service)
        times = asked(service)
        good &= judge("upload-status, median", statistics.median(times), MEDIAN)
        good &= judge("upload-status, p99", times[-3], P99)
        good &= judge(
            "quaymaster status, median of the wall time", statistics.median(command(service)), COMMAND_SECONDS
        )
        alone, heard = (0, 0.0, 0.0), (0, 0.0, 0.0)
        for _ in range(ROUNDS):
            alone = added(alone, listened(service, threads, 0))
            heard = added(heard, listened(service, threads, LISTENERS))
    print(
        f"  bytes with {LISTENERS} listeners: {heard[0] / alone[0]:.3f} of those without, as busy as this machine was"
    )
    cost = heard[2] / heard[1] - alone[2] / alone[1]
    share = f"{100 * cost:.2f} % of the service's processor time"
    print(f"  {LISTENERS} listeners take {share} (at most {100 * COST:g} %)")
    RESULTS.append(Result(f"cost of {LISTENERS} listeners, room left", COST / max(cost, 1e-4), 1.0))
    return good and cost <= COST


def added(one: tuple[int, float, float], other: tuple[int, float, float]) -> tuple[int, float, float]:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]
