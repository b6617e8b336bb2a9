"""Three sequencing runs at once, with the instruments' own names and order of writing, through the real service to a
real S3 server, with SIGKILLs on the way. A consumer that only watches for manifests sees each generation of each unit
once, and everything in it is there (PRODUCT W5).
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quaymaster.store import UnitState
from system.bucket import Bucket
from system.conftest import Home, files_below, quoted
from system.evidence import file_sha256
from system.service import Service, until

MIB = 1 << 20
ILLUMINA = "240722_A00291_0576_AHVHL5DMXY"
ONT = "Sample_Group/Sample/20250603_1201_3E_PAA12345_e05460c6"
PACBIO = "r84001_20220722_134701/1_A01"
MANIFEST = "quaymaster-manifest.json"


def illumina(cycles: int) -> Iterator[str]:
    """Cycle by cycle; RTAComplete.txt, more base calls, and long after it CopyComplete.txt."""
    yield from ("RunInfo.xml", "RunParameters.xml", "SampleSheet.csv", "RTA3.cfg", "Thumbnail_Images/L001/s_1_1101.jpg")
    for cycle in range(1, cycles + 1):
        for lane in (1, 2):
            yield f"Data/Intensities/BaseCalls/L00{lane}/C{cycle}.1/L00{lane}_1.cbcl"
        yield f"InterOp/C{cycle}.1/ExtractionMetricsOut.bin"
    yield "RTAComplete.txt"
    yield f"Data/Intensities/BaseCalls/L002/C{cycles}.1/L002_2.cbcl"
    yield from ("RunCompletionStatus.xml", "CopyComplete.txt")


def nanopore(batches: int) -> Iterator[str]:
    """Batch by batch, the summaries at the end, the final one last of all."""
    tag = "PAA12345_e05460c6_0f1d7e9e"
    yield f"sample_sheet_{tag}.csv"
    for batch in range(batches):
        yield f"pod5/PAA12345_fd97ea7b_0f1d7e9e_{batch}.pod5"
        yield f"fastq_pass/PAA12345_pass_dca6f6d1_d11637af_{batch}.fastq.gz"
        yield f"bam_pass/PAA12345_pass_dca6f6d1_d11637af_{batch}.bam"
    yield from (f"sequencing_summary_{tag}.txt", f"report_{tag}.html", f"final_summary_{tag}.txt")


def pacbio(barcodes: int) -> Iterator[str]:
    """A cell is transferred when it is through: reads first, metadata and its marker last."""
    movie = "m84001_220722_134701_s1"
    for barcode in range(2001, 2001 + barcodes):
        for kind in ("hifi_reads", "fail_reads"):
            yield f"{kind}/{movie}.{kind}.bc{barcode}.bam"
            yield f"{kind}/{movie}.{kind}.bc{barcode}.bam.pbi"
    yield f"pb_formats/{movie}.consensusreadset.xml"
    yield f"statistics/{movie}.zmw_metrics.json.gz"
    yield from (f"metadata/{movie}.metadata.xml", f"metadata/{movie}.sts.xml", f"metadata/{movie}.transferdone")


RUNS: dict[str, tuple[str, Callable[[int], Iterator[str]]]] = {
    "illumina": (ILLUMINA, illumina),
    "ont": (ONT, nanopore),
    "pacbio": (PACBIO, pacbio),
}
_MARKERS = ("RTAComplete.txt", "CopyComplete.txt", ".transferdone")
_DATA = (".cbcl", ".pod5", ".bam", ".fastq.gz")


class Instrument(threading.Thread):
    """Writes one run below a watched directory: in place, slowly, name by name."""

    def __init__(self, root: Path, names: Iterator[str], size: int, pause: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.root, self.names, self.size, self.pause = root, names, size, pause
        self.chance = random.Random(seed)
        self.wrote: dict[str, str] = {}

    def run(self) -> None:
        for name in self.names:
            self.write(name)
            time.sleep(self.pause * self.chance.random() * 2)

    def write(self, name: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        left = 0 if name.endswith(_MARKERS) else self.size if name.endswith(_DATA) else 2000
        with path.open("wb") as file:
            while left > 0:
                file.write(self.chance.randbytes(min(left, MIB)))
                left -= MIB
                file.flush()
        if "Thumbnail_Images/" not in name:
            self.wrote[name] = file_sha256(path)


class Consumer(threading.Thread):
    """Looks for manifests and nothing else, and takes what each of them says."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        super().__init__(daemon=True)
        self.bucket, self.folder = bucket, folder
        self.seen: dict[tuple[str, int], dict[str, str]] = {}
        self.manifests: dict[tuple[str, int], bytes] = {}
        self.wrong: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.3):
            self.look()

    def look(self) -> None:
        for key in self.bucket.objects():
            if key.endswith("/" + MANIFEST):
                self.take(self.bucket.content(key))

    def take(self, content: bytes) -> None:
        manifest = json.loads(content)
        which = f"{manifest['watch']}/{manifest['unit']}", manifest["generation"]
        if which in self.seen:
            if self.manifests[which] != content:
                self.wrong.append(f"two manifests of {which}")
            return
        found: dict[str, str] = {}
        copy = self.folder / "consumed"
        for entry in manifest["files"]:
            self.bucket.download(entry["key"], copy)
            if file_sha256(copy) != entry["sha256"]:
                self.wrong.append(f"{entry['key']} is not what the manifest of {which} says")
            found[entry["path"]] = entry["sha256"]
        self.seen[which], self.manifests[which] = found, content


def configuration(home: Home, bucket: Bucket) -> str:
    tables = [
        "[service]", f"state_dir = {quoted(home.folder / 'state')}", f"staging_dir = {quoted(home.staging)}",
        "[limits]", 'staging_free = "1MiB"', bucket.destination(),
    ]  # fmt: skip
    for name in RUNS:
        (home.landing / name).mkdir()
        tables += [
            f"[watch.{name}]", f"path = {quoted(home.landing / name)}", f'profile = "{name}"',
            'destinations = ["archive"]', 'settle = "1s"', 'settle_closed = "0.2s"', 'after = "delete"',
        ]  # fmt: skip
    return "\n".join(tables) + "\n"


@pytest.fixture
def service(home: Home, bucket: Bucket) -> Iterator[Service]:
    begun = Service(configuration(home, bucket), home.folder)
    yield begun
    begun.kill()
    print("the service said:", *begun.log.splitlines()[-60:], sep="\n  ")


def campaign(
    service: Service, home: Home, bucket: Bucket, *, files: int, size: int, pause: float, kills: int, between: float
) -> None:
    consumer = Consumer(bucket, home.folder)
    instruments = {
        name: Instrument(home.landing / name / unit, names(files), size, pause, seed)
        for seed, (name, (unit, names)) in enumerate(RUNS.items())
    }
    chance = random.Random(7)
    service.start()
    consumer.start()
    for instrument in instruments.values():
        instrument.start()
    for _ in range(kills):
        time.sleep(between * (0.5 + chance.random()))
        service.kill()
        service.start()
    for instrument in instruments.values():
        instrument.join()
    wanted = {(f"{name}/{unit}", 1) for name, (unit, _) in RUNS.items()}
    until(lambda: wanted <= consumer.seen.keys(), 300, f"{consumer.seen.keys()}")
    late = instruments["illumina"]
    late.write("Analysis/1/Data/Reports/Demultiplex_Stats.csv")
    service.kill()  # while it is noticed
    service.start()
    wanted.add((f"illumina/{ILLUMINA}", 2))
    until(lambda: wanted <= consumer.seen.keys(), 300, f"{consumer.seen.keys()}")
    until(lambda: not list(files_below(os.fsencode(home.landing / "ont"))), 300, "the sources of a published unit")
    consumer.ended.set()
    consumer.join()
    assert consumer.wrong == []
    assert consumer.seen.keys() == wanted
    for name, (unit, _) in RUNS.items():
        generation = max(number for which, number in wanted if which == f"{name}/{unit}")
        assert consumer.seen[f"{name}/{unit}", generation] == instruments[name].wrote
    with service.store() as store:
        until(lambda: {unit.state for unit in store.units.find()} == {UnitState.PUBLISHED}, 60)
        entries = [entry.fields for entry in store.custody()]
        assert store.custody_broken_at() is None
    told = [(f"{e['watch']}/{e['path']}", e["generation"]) for e in entries if e["kind"] == "unit-published"]
    assert sorted(told) == sorted(wanted)
    service.stop()


@pytest.mark.timeout(600)
def test_three_runs_with_kills_arrive_as_units(service: Service, home: Home, bucket: Bucket) -> None:
    campaign(service, home, bucket, files=6, size=200_000, pause=0.15, kills=2, between=1.5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_three_large_runs_over_minutes(service: Service, home: Home, bucket: Bucket) -> None:
    """About 4 GiB over about five minutes, with a kill every fifteen seconds."""
    campaign(service, home, bucket, files=60, size=12 * MIB, pause=1.5, kills=20, between=15)
