"""A filesystem that fails in every way filesystems do, under the source, the staging, the state and the destination in
turn, while files land (PRODUCT P4, P8, Q3, Q6, W6, promises 1 to 3).

No reader ever sees anything but a whole version, and when the filesystem is well again each file is there once, whole,
with nothing left over. And a bit that flips anywhere is noticed before the file counts as delivered.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quaymaster.errors import StoreError
from quaymaster.model import State
from quaymaster.store import Filter
from system.bucket import Bucket
from system.conftest import Home, content_of, files_below
from system.evidence import expanded_sha256
from system.faulty_filesystem import FaultyFilesystem, reason_to_skip
from system.mishaps import is_calm, waiting
from system.service import Service, until
from system.traffic import Reader, Seen, Traffic

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
Serve = Callable[..., Service]

HANG = {"every": "hang"}
FAULTS: dict[str, list[dict[str, str]]] = {
    # No flips here: a medium that gives other bytes each time is found out where it is read twice (below), and one that
    # always gives the same other bytes holds another file.
    "source": [
        HANG, {"read": "EIO"}, {"read": "ESTALE"}, {"getattr": "ESTALE"}, {"open": "EIO"}, {"readdir": "EIO"},
        {"read": "short"}, {"every": "EIO"}, {"open": "EACCES"}, {"release": "EIO", "flush": "EIO"},
    ],
    "staging": [
        HANG, {"write": "EIO"}, {"write": "ENOSPC:100000"}, {"write": "EDQUOT"}, {"flush": "EDQUOT"}, {"fsync": "EIO"},
        {"read": "EIO"}, {"read": "flip"}, {"read": "short"}, {"unlink": "EIO"}, {"create": "ENOSPC"}, {"open": "EIO"},
        {"statfs": "EIO"}, {"every": "ESTALE"},
    ],
    "state": [
        HANG, {"write": "EIO"}, {"write": "ENOSPC"}, {"write": "EDQUOT"}, {"fsync": "EIO"}, {"flush": "EDQUOT"},
        {"create": "ENOSPC"}, {"rename": "EIO"},
    ],
    "destination": [
        HANG, {"write": "EIO"}, {"write": "ENOSPC:200000"}, {"write": "EDQUOT"}, {"flush": "EDQUOT"}, {"fsync": "EIO"},
        {"link": "EPERM"}, {"link": "EIO"}, {"rename": "EIO", "link": "EPERM"}, {"read": "EIO"}, {"read": "flip"},
        {"read": "short"}, {"unlink": "EIO"}, {"mkdir": "EIO"}, {"chmod": "EPERM"}, {"utimens": "EIO"},
        {"getattr": "ESTALE"}, {"create": "EACCES"}, {"every": "EIO"}, {"fsyncdir": "EIO"},
        {"unlink": "EIO", "fsync": "EIO"},
    ],
}  # fmt: skip


class Campaign:
    """One watch and one directory, with the faulty filesystem in one place of its way."""

    def __init__(self, home: Home, place: str, seed: int) -> None:
        print("seed", seed)
        self.home, self.place, self.chance = home, place, random.Random(seed)
        seen = home.folder / "state" if place == "state" else None
        self.filesystem = FaultyFilesystem(home.folder / "fuse", seen)
        compress = 'compress = { format = "zstd", level = 1, min_size = "1MiB" }\nkey = "{watch}/{path}"\n'
        watch = compress + 'poll_interval = "0.3s"\nhang_after = "2s"'
        self.archive = home.archive
        match place:
            case "source":
                home.landing = self.filesystem.seen
            case "staging":
                home.staging = self.filesystem.seen
                watch += "\nstage = true"
            case "destination":
                home.archive, self.archive = self.filesystem.seen, self.filesystem.held
        self.service = Service(home.config(watch, limits="files = 6"), home.folder)
        landing = self.filesystem.held if place == "source" else home.landing
        self.traffic = Traffic({"landing": landing}, random.Random(seed + 1))
        self.faults: Counter[str] = Counter()
        self.starts = 0

    def look(self) -> Iterator[Seen]:
        root = os.fsencode(self.archive)
        for path in files_below(root):
            name = os.path.relpath(os.fsdecode(path), self.archive)
            if not name.startswith(".quaymaster-") and not os.path.basename(name).startswith(".qm-"):
                try:
                    status = os.stat(path)
                except FileNotFoundError:
                    continue
                tag = f"{name}:{status.st_ino}:{status.st_mtime_ns}"
                yield name.removesuffix(".zst"), tag, lambda path=path: self._digest(path)

    def _digest(self, path: bytes) -> str:
        try:
            content_of(path)
        except FileNotFoundError:
            return ""  # replaced since
        return expanded_sha256(os.fsdecode(path))

    def run(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        deck: list[dict[str, str]] = []
        while time.monotonic() < ends:
            self.traffic.land(large=2 << 20)
            for _ in range(3):
                if not deck:
                    deck = self.chance.sample(FAULTS[self.place], len(FAULTS[self.place]))
                fault = deck.pop()
                self.faults[" ".join(f"{name} {kind}" for name, kind in fault.items())] += 1
                self.filesystem.fail(**fault)
                time.sleep(self.chance.uniform(0.1, 0.5))  # a fault lasts as long as it lasts
                self.filesystem.fail()
                time.sleep(self.chance.uniform(0.05, 0.3))
            self._see_to_it()

    def _see_to_it(self) -> None:
        """What an operator does: start a service that has stopped, and retry what is parked."""
        if not self.service.running:
            print("it had stopped:", *self.service.log.splitlines()[-3:], sep="\n  ")
            self.service.kill()
            self.service.start()
            self.starts += 1
        code, told = self.service.cli("jobs", "retry", "--all")
        assert code == 0, told

    def finish(self) -> None:
        again = 0.0

        def all_there() -> bool:
            nonlocal again
            if time.monotonic() > again:
                self._see_to_it()
                again = time.monotonic() + 3
            return self._missing() == []

        until(all_there, 120, "each file at its destination")
        self.service.stop()
        with self.service:  # what could not be removed is removed at each start, and every minute
            until(lambda: self.home.leftovers() == [], 90, "nothing is left over")

    def _missing(self) -> list[str]:
        try:
            with self.service.store() as store:
                found = [str(job) for job in store.jobs(Filter()) if not job.state.final]
                for name, digest in self.traffic.last.items():
                    proofs = [d.proof for d in store.deliveries("landing", name.partition("/")[2].encode())]
                    found += [name] * (digest not in {proof.source.sha256 for proof in proofs})
                return found
        except StoreError as error:
            return [str(error)]

    def check(self) -> Counter[str]:
        """The end of the campaign; how often jobs failed, by error."""
        root = os.fsencode(self.archive)
        paths = [os.path.relpath(os.fsdecode(path), self.archive) for path in files_below(root)]
        found = {path: expanded_sha256(self.archive / path) for path in paths if not path.startswith(".quaymaster-")}
        assert {name.removesuffix(".zst"): digest for name, digest in found.items()} == self.traffic.last
        assert len(found) == len(self.traffic.last), "a file is there compressed and uncompressed"
        is_calm(self.service.log)
        failures: Counter[str] = Counter()
        with self.service.store() as store:
            assert store.custody_broken_at() is None
            assert store.noted_fault() == ""
            for entry in store.custody():
                fields: dict[str, Any] = entry.fields
                if fields["kind"] in (State.WAITING, State.PARKED):
                    failures[fields["code"]] += 1
                    assert fields["code"] not in ("conflict", "internal"), fields
        return failures


def campaign(home: Home, place: str, *, seed: int, seconds: float) -> None:
    campaign = Campaign(home, place, seed)
    with campaign.filesystem:
        try:
            campaign.service.start()
            with Reader(campaign.look, campaign.traffic) as reader:
                campaign.run(seconds)
                campaign.finish()
            reader.look()
            assert reader.wrong == []
            failures = campaign.check()
        finally:
            campaign.filesystem.fail()
            campaign.service.kill()
            print("the service said:", *campaign.service.log.splitlines()[-40:], sep="\n  ")
    print(
        f"{place}: {len(campaign.traffic.last)} files, {len(reader.seen)} copies read as they appeared; "
        f"{sum(campaign.faults.values())} faults of {len(campaign.faults)} kinds, failures of jobs: {dict(failures)}, "
        f"service started again {campaign.starts} times; all whole, once"
    )


@pytest.mark.parametrize("place", FAULTS)
def test_a_place_that_keeps_failing(home: Home, place: str) -> None:
    campaign(home, place, seed=30, seconds=9)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("place", FAULTS)
def test_a_place_that_keeps_failing_for_five_minutes(home: Home, place: str) -> None:
    campaign(home, place, seed=random.SystemRandom().randrange(1 << 32), seconds=300)


# -- one bit --

CONTENT = random.Random(31).randbytes(300_000)


def test_a_bit_that_flips_in_staging_is_noticed(home: Home, serve: Serve) -> None:
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        home.staging = filesystem.seen
        filesystem.fail(read="flip")
        service = serve(home.config("stage = true"))
        home.land("a", CONTENT)
        waiting(service, "integrity", "staged copy", "SHA-256", "instead of")
        assert home.arrived() == {}
        assert service.deliveries("a") == []
        filesystem.fail()
        service.cli("jobs", "retry", "--all")
        service.until_done(1)
        assert home.arrived() == {b"a": CONTENT}


def test_a_bit_that_flips_at_the_destination_is_noticed(home: Home, serve: Serve) -> None:
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        home.archive = filesystem.seen
        filesystem.fail(read="flip")
        service = serve(home.config())
        home.land("a", CONTENT)
        waiting(service, "integrity", "reads back as", "SHA-256", "instead of")
        assert os.listdir(filesystem.held) == []
        assert service.deliveries("a") == []
        filesystem.fail()
        service.cli("jobs", "retry", "--all")
        service.until_done(1)
        assert home.arrived() == {b"a": CONTENT}


def test_a_bit_that_flips_between_two_readings_of_the_source_is_noticed(
    home: Home, serve: Serve, bucket: Bucket
) -> None:
    content = random.Random(32).randbytes(11 << 20)
    with FaultyFilesystem(home.folder / "fuse", direct=True) as filesystem:
        home.landing = filesystem.seen
        filesystem.fail(read="flip")
        (filesystem.held / "a").write_bytes(content)
        watch = 'poll_interval = "0.3s"\nstage = false'
        service = serve(home.config(watch, bucket.destination()))
        waiting(service, "integrity", "The second reading", "differs from what was read first")
        assert bucket.objects() == {}
        assert service.deliveries("a") == []
        filesystem.fail()
        service.cli("jobs", "retry", "--all")
        service.until_done(1)
    assert bucket.content("a") == content
