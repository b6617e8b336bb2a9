"""The idle service: how much memory it takes, and how soon after its start it is ready with a large ledger."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from bench.harness import RESULTS, Result, workspace
from quaymaster.model import Compression, Digests, FileVersion, Identity, Proof, Stored
from quaymaster.store import Store
from system.service import Service, until

FILES = 10_000
ROUNDS = 5
MOST_MEMORY = 45.0  # MB
MOST_SECONDS = 0.5

CONFIG = """
[service]
state_dir = "{folder}/state"
staging_dir = "{folder}/staging"
[destination.archive]
type = "s3"
bucket = "archive"
endpoint_url = "http://127.0.0.1:9"
[watch.landing]
path = "{folder}/landing"
destinations = ["archive"]
compress = "zstd"
"""


def delivered(folder: Path) -> None:
    """A landing of ``FILES`` small files, all of which the ledger has."""
    versions = []
    for number in range(FILES):
        path = folder / f"landing/run{number // 500:03d}/reads-{number:06d}.fastq"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"@read\nACGT\n+\nFFFF\n")
        status = path.stat()
        identity = Identity(status.st_ino, status.st_size, status.st_mtime_ns)
        versions.append(FileVersion("landing", os.fsencode(path.relative_to(folder / "landing")), identity))
    store = Store(str(folder / "state"), create=True)
    store.enqueue(versions)
    while jobs := store.claim(1000):
        for job in jobs:
            key, digests = job.version.path.decode(), Digests(job.version.size, "0" * 64)
            stored = Stored(key, job.version.size, evidence="sha256")
            store.deliver(
                Proof(job.id, job.version, "archive", digests, digests, Compression.NONE, "", stored, time.time())
            )
            store.finish(job, "kept")
    store.close()


def memory_of(service: Service) -> float:
    """What the process holds in memory (MB), once its first scan is over."""
    until(lambda: reported(service).get("scans"))
    with open(f"/proc/{service.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) * 1024 / 1e6


def reported(service: Service) -> dict[str, object]:
    with service.store() as store:
        return store.reports().get("watch:landing", (0.0, {}))[1]


def rounds(folder: Path, measure: Callable[[Service], float]) -> float:
    """The median over ``ROUNDS`` starts of the service."""
    found = []
    for _ in range(ROUNDS):
        with Service(CONFIG.format(folder=folder), folder) as service:
            found.append(measure(service))
    return statistics.median(found)


def judge(name: str, found: float, most: float, unit: str) -> bool:
    print(f"  {name:<50} {found:7.2f} {unit} (at most {most:g})")
    RESULTS.append(Result(f"{name}, room left", most / found, 1.0))
    return found <= most


def main() -> bool:
    print(f"\nthe idle service with an S3 destination, medians of {ROUNDS}")
    with workspace() as folder:
        (folder / "landing").mkdir()
        idle = rounds(folder, memory_of)
    with workspace() as folder:
        delivered(folder)
        ready = rounds(folder, lambda service: service.seconds_to_ready)
        large = rounds(folder, memory_of)
    good = judge("memory", idle, MOST_MEMORY, "MB")
    print(f"  with {FILES:,} files in the ledger {large:.2f} MB")
    return judge(f"start to READY with {FILES:,} files in the ledger", ready, MOST_SECONDS, "s") and good
