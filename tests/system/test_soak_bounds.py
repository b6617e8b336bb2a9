"""P12, Q4: many large and many small files at once, in three watches, under a memory ceiling: measured from outside."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from quaymaster.model import State
from system.bucket import Bucket
from system.conftest import Home, quoted
from system.service import Service, until

MIB = 1 << 20
SPARSE = 256 * MIB


@dataclass(frozen=True)
class Load:
    large: int
    large_size: int
    small: int
    ceiling: int
    """Of limits.memory."""
    timeout: float


SHORT = Load(large=8, large_size=64 * MIB, small=1000, ceiling=64 * MIB, timeout=240)
WHOLE = Load(large=20, large_size=1024 * MIB, small=50_000, ceiling=256 * MIB, timeout=3 * 3600)
TWO_HOURS = "QUAYMASTER_SOAK_SECONDS"
"""How long the longest form runs; 7200 unless told."""


def configuration(home: Home, bucket: Bucket, ceiling: int) -> str:
    lines = [
        "[service]",
        f"state_dir = {quoted(home.folder / 'state')}",
        f"staging_dir = {quoted(home.staging)}",
        f"[limits]\nmemory = {ceiling}\nstaging_free = 0",
        bucket.destination(more='part_size = "8MiB"'),
    ]
    for name in ("large", "small", "few"):
        (home.landing / name).mkdir(parents=True, exist_ok=True)
        lines += [f"[watch.{name}]", f"path = {quoted(home.landing / name)}", 'destinations = ["archive"]']
        lines += ['settle = "0.4s"', 'settle_closed = "0.1s"']
    return "\n".join(lines)


class Tree:
    """A process with its children, as the kernel sees them."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def resident(self) -> int:
        """Bytes in memory now."""
        return sum(self._of("VmRSS:"))

    def peak(self) -> int:
        """The most that each ever had."""
        return sum(self._of("VmHWM:"))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def _of(self, field: str) -> list[int]:
        found = []
        for task in os.listdir(f"/proc/{self.pid}/task"):
            children = Path(f"/proc/{self.pid}/task/{task}/children").read_text().split()
            found += [size for child in children for size in Tree(int(child))._of(field)]
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(field))
        return [*found, int(line.split()[1]) * 1024]


def land(folder: Path, name: str, size: int, chance: random.Random) -> None:
    """A file whose content nothing else has; it appears in one step. One of SPARSE bytes or more has holes, so that the
    disk need not hold it twice: the service reads and sends them as it does other bytes."""
    part = folder / f".{name}.part"
    block = chance.randbytes(min(size, MIB if size < SPARSE else 64 << 10))
    with part.open("wb") as file:
        for number in range(0, size, MIB):
            file.seek(number)
            file.write(number.to_bytes(8, "big") + block[8:] if size >= MIB else block)
        file.truncate(size)
    part.rename(folder / name)


def warmed(service: Service, home: Home) -> tuple[int, int]:
    """Bytes in memory of the idle service before it has done anything, and when its libraries have been loaded."""
    tree = Tree(service.pid)
    cold = tree.resident()
    land(home.landing / "few", "first", 1000, random.Random(0))
    service.until_done(1)
    return cold, tree.resident()


def run(load: Load, home: Home, serve: Callable[..., Service], bucket: Bucket) -> None:
    chance = random.Random(1)
    service = serve(configuration(home, bucket, load.ceiling))
    cold, idle = warmed(service, home)
    began = time.monotonic()
    for number in range(load.large):
        land(home.landing / "large", f"{number}", load.large_size, chance)
    for number in range(load.small):
        land(home.landing / "small", f"{number:06}", 16 << 10, chance)
    asked = time.time()
    land(home.landing / "few", "single", MIB, chance)
    done = load.large + load.small + 2
    waits: dict[str, int] = {}

    def finished() -> bool:
        with service.store() as store:
            ceilings = store.reports().get("ceilings", (0.0, {}))[1]
            for name in ("memory", "compressing"):
                waits[name] = max(waits.get(name, 0), ceilings.get(name, {}).get("waiting", 0))
        states = service.states()
        assert not states[State.PARKED], [job.error for job in service.jobs(states=(State.PARKED,))]
        return states[State.DONE] == done

    until(finished, load.timeout, f"{done} files delivered")
    seconds = time.monotonic() - began
    peak = Tree(service.pid).peak()
    (single,) = service.deliveries("single", "few")
    before = sum(
        1
        for job in service.jobs(states=(State.DONE,))
        if job.version.watch != "few" and job.started_at and job.ended_at
        and job.queued_at <= single.proof.delivered_at and asked <= job.started_at <= single.proof.delivered_at
    )  # fmt: skip
    print(
        f"\n{load.large} files of {load.large_size // MIB} MiB and {load.small:,} small ones in {seconds:.0f} s;"
        f" peak {peak / MIB:.0f} MiB under a ceiling of {load.ceiling // MIB} MiB, idle {cold / MIB:.0f} MiB,"
        f" with its libraries {idle / MIB:.0f} MiB; waiting for memory at most {waits['memory']};"
        f" the single file took {single.proof.delivered_at - asked:.1f} s, {before} begun before it"
    )
    held = bucket.objects()
    assert len(held) == done
    assert sum(held.values()) == load.large * load.large_size + load.small * (16 << 10) + MIB + 1000
    assert peak <= load.ceiling + idle


@pytest.mark.timeout(300)
def test_the_ceiling_holds(home: Home, serve: Callable[..., Service], bucket: Bucket) -> None:
    run(SHORT, home, serve, bucket)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_the_ceiling_holds_with_large_files_and_many(home: Home, serve: Callable[..., Service], bucket: Bucket) -> None:
    run(WHOLE, home, serve, bucket)


@pytest.mark.soak
@pytest.mark.timeout(12 * 3600)
def test_hours_of_work_leave_nothing_behind(home: Home, serve: Callable[..., Service], bucket: Bucket) -> None:
    """Memory, descriptors and threads of the idle service after each round of work: none grows. The first third is for
    warming up: caches of the database fill with the ledger, and each thread has its first large file."""
    chance = random.Random(2)
    service = serve(configuration(home, bucket, 64 * MIB))
    warmed(service, home)
    tree, rounds = Tree(service.pid), list[tuple[int, int, int]]()
    end = time.monotonic() + float(os.environ.get(TWO_HOURS, "7200"))
    done = 1
    while time.monotonic() < end or len(rounds) < 9:
        names = [f"{len(rounds):05}-{number:03}" for number in range(150)]
        for number, name in enumerate(names):
            folder = home.landing / ("large" if number < 4 else "small")
            land(folder, name, 24 * MIB if number < 4 else chance.randrange(64 << 10), chance)
        done += len(names)
        service.until_done(done, 600)
        until(lambda: not service.progress(), what="idle")
        rounds.append((tree.resident(), tree.descriptors(), tree.threads()))
        for folder in (home.landing / "large", home.landing / "small"):
            for file in folder.iterdir():
                file.unlink()
        bucket.clear()
    third = len(rounds) // 3
    warming, middle, late = (
        [statistics.median(column) for column in zip(*part, strict=True)]
        for part in (rounds[:third], rounds[third : 2 * third], rounds[-third:])
    )
    print(
        f"\n{len(rounds)} rounds, {done:,} files; (bytes, descriptors, threads) while warming up {warming},"
        f" in the middle {middle}, late {late}"
    )
    assert late[0] <= middle[0] + 2 * MIB
    assert late[1] <= middle[1] + 4
    assert late[2] <= middle[2] + 2
