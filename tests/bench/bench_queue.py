"""The queue: a full cycle (insert, claim, complete), every commit flushed to the disk, in batches and one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from bench.harness import compare, workspace
from quaymaster.model import FileVersion, Identity
from quaymaster.store import jobs
from quaymaster.store.db import Database

CYCLES = 2000
BATCH = 100


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
        return good


if __name__ == "__main__":
    raise SystemExit(not main())
