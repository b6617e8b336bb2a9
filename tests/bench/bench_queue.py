"""The queue: a full cycle (insert, claim, complete), every commit flushed to the disk, in batches and one by one; and
what a long queue and a long history cost: a claim, the counts of ``status``, the start of the service."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from bench.harness import compare, workspace
from quaymaster.model import FileVersion, Identity
from quaymaster.store import Queue, Store, jobs
from quaymaster.store.db import Database
from system.service import Service

CYCLES = 2000
BATCH = 100
QUEUED = 100_000
DONE = 1_000_000
START = 2.0
"""Seconds that the service may take to be ready."""
LONGER = 2.0
"""How many times as long as with an empty queue a look at a long one may take; more would say that it grows with it."""
CLAIMED = 20


def cycles(database: Database, numbers: itertools.count[int], batch: int) -> Callable[[], None]:
    """A function that takes ``CYCLES`` new versions through the queue, ``batch`` to a commit."""

    def run() -> None:
        for _ in range(CYCLES // batch):
            versions = [
                FileVersion("sequencer", b"run-%03d/reads-%07d.fastq" % (n // 500, n), Identity(n, 4096, 10**18 + n))
                for n in itertools.islice(numbers, batch)
            ]
            database.write(lambda t, versions=versions: jobs.enqueue(t, versions, 1.0))  # type: ignore[misc]
            claimed = database.write(lambda t: jobs.claim(t, batch, 2.0))
            done = [job.id for job in claimed]
            assert len(done) == batch
            database.write(lambda t, done=done: jobs.finish(t, done, 3.0))  # type: ignore[misc]

    return run


def fill(directory: Path, queued: int, done: int) -> None:
    """A state directory with so many jobs waiting, and so many delivered, each with its row in the ledger."""
    Store(str(directory), create=True).close()
    database = Database(str(directory))

    def act(t: object) -> None:
        assert hasattr(t, "execute")
        numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        for name, state, count in (("a", "done", done), ("a", "queued", queued), ("b", "queued", CLAIMED)):
            watch = jobs.watch_id(t, name)  # type: ignore[arg-type]
            if not count:
                continue
            t.execute(
                f"INSERT INTO jobs (watch_id, path, inode, size, mtime_ns, state, queued_at, ended_at) {numbers}"
                f" SELECT ?, CAST('{state}/' || i AS BLOB), i, 4096, i, '{state}', i,"
                f" {'i' if state == 'done' else 'NULL'} FROM n",
                (count, watch),
            )
        t.execute(
            "INSERT INTO ledger SELECT id, id, watch_id, path, inode, size, mtime_ns, 'archive', CAST(path AS TEXT),"
            " hex(zeroblob(32)), '{}', size, hex(zeroblob(32)), '{}', 'none', '', 'e', '', '', 'sha256', queued_at,"
            " NULL, 'kept', NULL FROM jobs WHERE state = 'done'"
        )

    database.write(act)
    database.close()


def times(directory: Path) -> dict[str, float]:
    """Seconds of each look at the queue, the median of several."""
    store = Store(str(directory))
    queues = Queue("a"), Queue("b", order="smallest")

    def claim() -> None:
        store.release(store.claim(CLAIMED, queues))

    acts: dict[str, Callable[[], object]] = {
        f"claim of {CLAIMED}, and back": claim,
        "counts of status": lambda: (store.counts(), store.open_jobs(), store.oldest_open(), store.next_retry()),
    }
    found = {}
    for name, act in acts.items():
        seconds = []
        for _ in range(31):
            start = perf_counter()
            act()
            seconds.append(perf_counter() - start)
        found[name] = statistics.median(seconds)
    store.close()
    return found


CONFIG = """
[service]
state_dir = "{0}/state"
staging_dir = "{0}/staging"
[destination.archive]
type = "directory"
path = "{0}/archive"
[watch.a]
path = "{0}/landing"
destinations = ["archive"]
"""


def start(folder: Path, done: int) -> float:
    """Seconds until the service is ready, with so many files delivered before."""
    for name in ("landing", "archive", "state"):
        (folder / name).mkdir(parents=True)
    fill(folder / "state", 0, done)
    with Service(CONFIG.format(folder), folder) as service:
        return service.seconds_to_ready


def long_queue(directory: Path) -> bool:
    fill(directory / "short", 100, 100)
    fill(directory / "long", QUEUED, DONE)
    short, long = times(directory / "short"), times(directory / "long")
    good = True
    print(f"\n{QUEUED:,} queued and {DONE:,} delivered, beside 100 and 100")
    for name, seconds in long.items():
        ratio = seconds / short[name]
        good = good and ratio <= LONGER
        print(
            f"  {name:<34} {1000 * seconds:7.2f} ms   beside {1000 * short[name]:.2f} ms: {ratio:.2f} x"
            f"   goal {LONGER:.1f}  {'reached' if ratio <= LONGER else 'MISSED'}"
        )
    empty, full = start(directory / "new", 0), start(directory / "old", DONE)
    kept = full <= START
    good = good and kept
    print(
        f"  {'start of the service':<34} {full:7.2f} s    beside {empty:.2f} s with nothing delivered"
        f"   goal {START:.0f} s  {'reached' if kept else 'MISSED'}"
    )
    return good


def main() -> bool:
    with workspace() as directory:
        numbers = itertools.count()
        database = Database(str(directory), create=True)
        good = compare(
            f"queue, {CYCLES} cycles, synchronous=FULL, batches of {BATCH}",
            cycles(database, numbers, BATCH),
            {"one by one": cycles(database, numbers, 1)},
            20.0,
            amount=CYCLES,
            unit="cycles/s",
        )
        database.close()
        return long_queue(directory) and good


if __name__ == "__main__":
    raise SystemExit(not main())
