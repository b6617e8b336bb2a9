"""Power fails at any moment: nothing is lost, nothing partial is visible, and the service goes on (PRODUCT Q1, P8, P10,
I8).

One run is recorded write by write; then the record is cut at random places, and what a disk with a volatile cache
would hold there is mounted, looked at, and given to a service that finishes the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from servers.uml import CHECKOUT, ENVIRONMENT, PYTHON, SHARE, CannotHave, Machine, root
from system.power import FILESYSTEM_SIZE, FILESYSTEMS, HOST, LOG_SIZE, Disk, content, entries

GUEST = [PYTHON, str(CHECKOUT / "tests/system/power_guest.py")]
LANDED = 30  # files


@dataclass(frozen=True)
class Recording:
    log: Path
    first: int
    """The number of the entry that says that the service is about to run …"""
    last: int
    """… and of the one that says that all is done."""
    open: int
    """From this entry on there is a database."""
    landed: list[tuple[int, str, int]]
    """From which entry on which version of which file is certainly on its disk."""

    def safe(self, cut: int) -> dict[str, int]:
        """Name -> the newest version that outlives a cut before this entry."""
        return {name: version for at, name, version in self.landed if at < cut}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    try:
        root()
    except CannotHave as reason:
        pytest.skip(str(reason))
    folder = tmp_path_factory.mktemp("recording")
    disk, log = folder / "disk.img", folder / "log.img"
    for path, size in ((disk, FILESYSTEM_SIZE * len(FILESYSTEMS)), (log, LOG_SIZE)):
        with open(path, "wb") as file:
            file.truncate(size)
    with Machine(HOST, folder, disks=[disk, log]) as machine:
        done = machine.run([*GUEST, "record", str(LANDED)], timeout=600, environment=ENVIRONMENT)
        assert done.status == 0, done.err
        print("the service said:", *(machine.share / "service.log").read_text().splitlines()[-60:], sep="\n  ")
    marks = [(number, entry.mark) for number, entry in enumerate(entries(log)) if entry.mark]
    named = [(number, *mark.rsplit(":", 1)) for number, mark in marks if ":" in mark]
    by_name = {mark: number for number, mark in marks}
    landed = [(number, name, int(version)) for number, name, version in named]
    yield Recording(log, by_name["begin"], by_name["end"], by_name["open"], landed)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def examiners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """A guest has one processor: two of them."""
    folder = tmp_path_factory.mktemp("examiners")
    with Machine("examiner1", folder) as one, Machine("examiner2", folder) as other:
        for machine in (one, other):
            machine.check("modprobe -d /run/modules loop")
        yield [one, other]
    shutil.rmtree(folder, ignore_errors=True)


def cut_at(recording: Recording, machines: list[Machine], count: int, seed: int) -> None:
    """Cut at so many places, spread over the whole run, and hold what is left against the promises."""
    dice = random.Random(seed)
    step = (recording.last - recording.first) / count
    cuts = {recording.first + int(step * (number + dice.random())) for number in range(count)}
    idle: Queue[Machine] = Queue()
    for machine in machines:
        idle.put(machine)
    disk, found = Disk(), {}
    with ThreadPoolExecutor(len(machines)) as pool:
        for number, entry in enumerate(entries(recording.log)):
            if number in cuts:
                machine = idle.get()
                disk.save(machine.share / f"cut-{number}")
                found[number] = pool.submit(complaints, recording, machine, number)
                found[number].add_done_callback(lambda _, machine=machine: idle.put(machine))  # type: ignore[misc]
            disk.write(entry)
    broken = [f"cut before entry {number}: {text}" for number, texts in found.items() for text in texts.result()]
    assert not broken, "\n".join([f"seed {seed}", *broken])


def complaints(recording: Recording, machine: Machine, cut: int) -> list[str]:
    """What is wrong after a cut before this entry of the log."""
    safe = recording.safe(cut)
    images = f"cut-{cut}"
    done = machine.run([*GUEST, "examine", f"{SHARE}/{images}", *safe], timeout=600, environment=ENVIRONMENT)
    shutil.rmtree(machine.share / images)
    if done.status:
        return [f"it cannot be examined: {done.err[-2000:]}"]
    at_once, later = json.loads(done.out.splitlines()[-1])
    if cut <= recording.open and at_once["intact"] in ("missing", "empty"):
        at_once["intact"] = "ok"
    return [
        *(f"at once: {text}" for text in judge(at_once, safe)),
        *(f"after a restart: {text}" for text in judge(later, safe)),
        *(f"after a restart: {text}" for text in judge_end(later, safe)),
    ]


def judge(facts: dict[str, Any], safe: dict[str, int]) -> Iterator[str]:
    """What must hold at every moment."""
    if facts["intact"] != "ok":
        yield f"the database: {facts['intact']}"
    if facts["audit"][0] != 0:
        yield f"audit verify: {facts['audit']}"
    archive, source = facts["archive"], facts["source"]
    for path, sha256 in archive.items():
        if not os.path.basename(path).startswith(".qm-") and sha256 not in digests_of(path):
            yield f"{path} is visible at the destination and is not whole"
    for name, sha256 in facts["delivered"].items():
        known = digests_of(name)
        if sha256 not in known:
            yield f"the ledger says that {name} with {sha256} was delivered, which never landed"
        elif archive.get(name) not in known[known.index(sha256) :]:
            yield f"the ledger says that {name} was delivered, and the destination has {archive.get(name, 'nothing')}"
    kept = set(source.values())
    for name, version in safe.items():
        known = digests_of(name)[version - 1 :]
        proven = facts["delivered"].get(name) in known and archive.get(name) in known
        if not proven and kept.isdisjoint(known):
            yield f"the source {name} is gone, and there is no proof or no copy"
        if name.startswith("moved/") and kept.isdisjoint(known):
            yield f"the moved file {name} is nowhere"


def judge_end(facts: dict[str, Any], safe: dict[str, int]) -> Iterator[str]:
    """What must hold when the service has finished the rest."""
    for watch, path, state, error in facts["jobs"]:
        if state not in ("done", "superseded"):
            yield f"the job of {watch}/{path} is {state}: {error}"
    for name, version in safe.items():
        if facts["archive"].get(name) not in digests_of(name)[version - 1 :]:
            yield f"{name} was not delivered"
        if name in facts["source"] and not name.startswith("kept/"):
            yield f"the source {name} was delivered and is still there"
    for path in [*facts["archive"], *facts["source"]]:
        if os.path.basename(path).startswith(".qm-"):
            yield f"{path} was left behind"


def digests_of(name: str) -> list[str]:
    """Of every version of this file, the oldest first."""
    if not _digests[name]:
        _digests[name] = [hashlib.sha256(content(name, version)).hexdigest() for version in (1, 2)]
    return _digests[name]


_digests: dict[str, list[str]] = defaultdict(list)


def test_nothing_is_lost_wherever_the_power_fails(recording: Recording, examiners: list[Machine]) -> None:
    assert len(recording.landed) > LANDED
    cut_at(recording, examiners, 4, seed=random.randrange(10**6))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_nothing_is_lost_wherever_the_power_fails_for_long(recording: Recording, examiners: list[Machine]) -> None:
    cut_at(recording, examiners, 250, seed=random.randrange(10**6))
