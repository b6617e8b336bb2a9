"""A filesystem that fails in every way filesystems do, under the source, the staging, the state and the destination in
turn, while files land (PRODUCT P4, P8, Q3, Q6, W6, promises 1 to 3).

No reader ever sees anything but a whole version, and when the filesystem is well again each file is there once, whole,
with nothing left over. And a bit that flips anywhere is noticed before the file counts as delivered.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from quaymaster.errors import StoreError
from quaymaster.model import State
from quaymaster.store import Filter, Store
from system.bucket import Bucket
from system.conftest import Home, content_of, files_below, quoted
from system.evidence import expanded_sha256, sha256
from system.faulty_filesystem import FaultyFilesystem, reason_to_skip
from system.mishaps import is_calm, waiting
from system.service import COMMAND, Service, until
from system.traffic import Reader, Seen, Traffic

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
Serve = Callable[..., Service]

HANG = {"every": "hang"}
FAULTS: dict[str, list[dict[str, str]]] = {
    # No flips here: a medium that gives other bytes each time is found out where it is read twice (below), and one that
    # always gives the same other bytes holds another file.
    "source": [
        HANG, {"read": "EIO"}, {"read": "ESTALE"}, {"getattr": "ESTALE"}, {"open": "EIO"}, {"readdir": "EIO"},
        {"read": "short"}, {"every": "EIO"}, {"open": "EACCES"}, {"release": "EIO", "flush": "EIO"}, {"unlink": "EIO"},
        {"rename": "EIO"}, {"unlink": "EIO", "link": "EIO"}, {"fsyncdir": "EIO"},
    ],
    "staging": [
        HANG, {"write": "EIO"}, {"write": "ENOSPC:100000"}, {"write": "EDQUOT"}, {"write": "short"}, {"write": "flip"},
        {"flush": "EDQUOT"}, {"fsync": "EIO"}, {"fsync": "lost"}, {"read": "EIO"}, {"read": "flip"}, {"read": "short"},
        {"unlink": "EIO"}, {"create": "ENOSPC"}, {"open": "EIO"}, {"statfs": "EIO"}, {"every": "ESTALE"},
    ],
    # No damaged bytes here: what SQLite reads it believes, and a damaged database is for an operator to rebuild.
    "state": [
        HANG, {"write": "EIO"}, {"write": "ENOSPC"}, {"write": "ENOSPC:20000"}, {"write": "EDQUOT"}, {"write": "short"},
        {"fsync": "EIO"}, {"fsync": "lost"}, {"flush": "EDQUOT"}, {"create": "ENOSPC"}, {"rename": "EIO"},
        {"open": "EIO"}, {"unlink": "EIO"}, {"truncate": "EIO"}, {"fsyncdir": "EIO"},
    ],
    "destination": [
        HANG, {"write": "EIO"}, {"write": "ENOSPC:200000"}, {"write": "EDQUOT"}, {"write": "short"}, {"write": "flip"},
        {"flush": "EDQUOT"}, {"fsync": "EIO"}, {"fsync": "lost"}, {"link": "EPERM"}, {"link": "EIO"},
        {"rename": "EIO", "link": "EPERM"}, {"read": "EIO"}, {"read": "flip"}, {"read": "short"}, {"unlink": "EIO"},
        {"mkdir": "EIO"}, {"chmod": "EPERM"}, {"utimens": "EIO"}, {"getattr": "ESTALE"}, {"create": "EACCES"},
        {"every": "EIO"}, {"fsyncdir": "EIO"}, {"unlink": "EIO", "fsync": "EIO"},
    ],
}  # fmt: skip
CONTENT = random.Random(31).randbytes(300_000)
BLAMED = {
    "source": {"source-unavailable", "permission-denied", "integrity"},
    "staging": {"out-of-space", "source-unavailable", "integrity"},
    "state": set[str](),
    "destination": {"unreachable", "out-of-space", "permission-denied", "integrity"},
}
"""The errors by which an operator is told of these faults. Of all but these two the jobs are tried again for ever."""
PARKING = {"permission-denied", "integrity"}


class Campaign:
    """Two watches, of which one removes its sources, and one directory; the faulty filesystem is somewhere on the
    way."""

    def __init__(self, home: Home, place: str, seed: int) -> None:
        print("seed", seed)
        self.home, self.place, self.chance = home, place, random.Random(seed)
        seen = home.folder / "state" if place == "state" else None
        self.filesystem = FaultyFilesystem(home.folder / "fuse", seen)
        compress = 'compress = { format = "zstd", level = 1, min_size = "1MiB" }\nkey = "{watch}/{path}"\n'
        watch = compress + 'poll_interval = "0.3s"\nhang_after = "2s"'
        self.archive = home.archive
        sources = self.filesystem.held if place == "source" else home.folder
        self.folders = {name: sources / name for name in ("landing", "removed")}
        for folder in self.folders.values():
            folder.mkdir(exist_ok=True)
        match place:
            case "source":
                home.landing = self.filesystem.seen / "landing"
            case "staging":
                home.staging = self.filesystem.seen
                watch += "\nstage = true"
            case "destination":
                home.archive, self.archive = self.filesystem.seen, self.filesystem.held
        config = home.config(watch, limits="files = 6")
        _, _, settings = config.partition("[watch.landing]")
        removed = settings.replace(quoted(home.landing), quoted(home.landing.with_name("removed")))
        self.service = Service(f'{config}\n[watch.removed]{removed}after = "delete"\n', home.folder)
        self.traffic = Traffic(self.folders, random.Random(seed + 1))
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

    def run(self, decks: int) -> None:
        """Each fault so many times, in an order of its own each time, with files that land before every one."""
        for _ in range(decks):
            deck = self.chance.sample(FAULTS[self.place], len(FAULTS[self.place]))
            for number, fault in enumerate(deck):
                self._land()
                time.sleep(self.chance.uniform(0, 0.6))  # how far they have come is left to chance
                self.faults[" ".join(f"{name} {kind}" for name, kind in fault.items())] += 1
                self.filesystem.fail(**fault)
                if self.place == "state" and number % 3 == 2 and number < len(deck) / 2:
                    self._stop_and_start()  # in the other half nothing that was forgotten is found by a new start
                time.sleep(self.chance.uniform(0.1, 0.8))  # a fault lasts as long as it lasts
                self.filesystem.fail()
                if number % 4 == 3:
                    self._see_to_it()
                    self._no_source_is_gone_without_proof()

    def _land(self) -> None:
        self.traffic.land(large=2 << 20)
        for watch in self.folders:
            for number in range(8):
                self.traffic.write(watch, f"burst-{self.traffic.rounds}/{number}", self.chance.randbytes(200))

    def _stop_and_start(self) -> None:
        """While its disk fails. That may be refused; nothing worse."""
        stopped = self.service.process
        if stopped is not None:
            stopped.terminate()
            time.sleep(self.chance.uniform(0.1, 1))
            stopped.kill()
            with suppress(subprocess.TimeoutExpired):
                stopped.wait(5)
            if stopped.poll() is None:  # it waits for a disk that hangs: not even SIGKILL ends that
                self.filesystem.fail()
            self.service.kill()
        with self.service.log_file.open("ab") as log:
            started = subprocess.Popen(
                [*COMMAND, "run", "--config", str(self.service.config_file)],
                env=self.service.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        time.sleep(self.chance.uniform(0.5, 2))
        self.filesystem.fail()
        started.terminate()
        assert started.wait(300) in (0, 1, -signal.SIGTERM), self.service.log

    def _see_to_it(self) -> None:
        """What an operator does: start a service that has stopped, and retry what is parked."""
        if not self.service.running:
            if (ended := self.service.process) is not None:
                assert ended.returncode >= 0, f"it crashed (status {ended.returncode}):\n{self.service.log}"
            self.service.kill()
            self.service.start()
            self.starts += 1
        code, told = self.service.cli("jobs", "retry", "--all")
        assert code == 0, told

    def _no_source_is_gone_without_proof(self) -> None:
        """Each file is where it landed (set aside, perhaps), or its copy is recorded, and there."""
        # Those that are looked at in the moment in which they get another name are looked at again.
        until(lambda: self._lost() == [], 60, f"a copy and a proof of what is gone: {self._lost()}")

    def _lost(self) -> list[str]:
        there = set()
        for path in [path for folder in self.folders.values() for path in files_below(os.fsencode(folder))]:
            with suppress(FileNotFoundError):
                there.add(sha256(content_of(path)))
        with self.service.store() as store:
            return [
                name
                for name, digest in self.traffic.last.items()
                if digest not in there and not (self._is_proven(store, name, digest) and self._has_copy(name, digest))
            ]

    def _is_proven(self, store: Store, name: str, digest: str) -> bool:
        watch, _, path = name.partition("/")
        return digest in {d.proof.source.sha256 for d in store.deliveries(watch, path.encode())}

    def _has_copy(self, name: str, digest: str) -> bool:
        copies = (self.archive / name, self.archive / f"{name}.zst")
        return digest in {expanded_sha256(copy) for copy in copies if copy.exists()}

    def finish(self) -> None:
        again = 0.0

        def all_there() -> bool:
            nonlocal again
            if time.monotonic() > again:
                self._see_to_it()
                again = time.monotonic() + 3
            return self._missing() == []

        until(all_there, 300, "each file at its destination")
        self.service.stop()
        with self.service:  # what could not be removed is removed at each start, and every minute
            until(lambda: self.leftovers() == [], 200, "nothing is left over")

    def leftovers(self) -> list[bytes]:
        below = [path for folder in self.folders.values() for path in files_below(os.fsencode(folder))]
        return self.home.leftovers() + [path for path in below if os.path.basename(path).startswith(b".qm-")]

    def _missing(self) -> list[str]:
        try:
            with self.service.store() as store:
                found = [str(job) for job in store.jobs(Filter()) if not job.state.final]
                wanted = self.traffic.last.items()
                return found + [name for name, digest in wanted if not self._is_proven(store, name, digest)]
        except StoreError as error:
            return [str(error)]

    def check(self) -> Counter[str]:
        """The end of the campaign; how often jobs failed, by error."""
        root = os.fsencode(self.archive)
        paths = [os.path.relpath(os.fsdecode(path), self.archive) for path in files_below(root)]
        found = {path: expanded_sha256(self.archive / path) for path in paths if not path.startswith(".quaymaster-")}
        # A version that was set aside while its name was taken again has got a name of its own: it is not lost.
        older = {name for name in found if ".older-" in name}
        assert {found.pop(name) for name in older} <= self.traffic.ever
        assert {name.removesuffix(".zst"): digest for name, digest in found.items()} == self.traffic.last
        assert len(found) == len(self.traffic.last), "a file is there compressed and uncompressed"
        assert [name for _, _, names in os.walk(self.folders["removed"]) for name in names] == []
        is_calm(self.service.log)
        failures: Counter[str] = Counter()
        with self.service.store() as store:
            assert store.custody_broken_at() is None
            assert store.noted_fault() == ""
            assert store.damage() == ""
            for entry in store.custody():
                fields: dict[str, Any] = entry.fields
                if fields["kind"] in (State.WAITING, State.PARKED):
                    failures[fields["code"]] += 1
                    assert fields["code"] in BLAMED[self.place], fields
                    assert fields["kind"] == State.WAITING or fields["code"] in PARKING, fields
        return failures


def campaign(home: Home, place: str, *, seed: int, decks: int) -> None:
    campaign = Campaign(home, place, seed)
    with campaign.filesystem:
        try:
            campaign.service.start()
            with Reader(campaign.look, campaign.traffic) as reader:
                campaign.run(decks)
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
    campaign(home, place, seed=30, decks=1)


@pytest.mark.soak
@pytest.mark.timeout(2 * 3600)
@pytest.mark.parametrize("place", FAULTS)
def test_a_place_that_keeps_failing_for_long(home: Home, place: str) -> None:
    campaign(home, place, seed=random.SystemRandom().randrange(1 << 32), decks=12)


# -- errors that say nothing --


def test_an_error_when_a_file_that_was_read_is_closed_fails_no_job(home: Home, serve: Serve) -> None:
    """Some filesystems report at close(2) what befell earlier writes; what is synced, or only read, is whole."""
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        home.staging = filesystem.seen
        service = serve(home.config("stage = true"))
        filesystem.fail(flush="EDQUOT")
        home.land("a", CONTENT)
        service.until_done(1)
        assert [(job.attempts, job.error) for job in service.jobs()] == [(0, "")]
        assert home.arrived() == {b"a": CONTENT}


def test_an_error_when_a_copy_that_was_read_is_closed_is_no_damage(home: Home, serve: Serve) -> None:
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        home.archive = filesystem.seen
        service = serve(home.config())
        home.land("a", CONTENT)
        service.until_done(1)
        filesystem.fail(flush="EIO")
        done = service.command("verify", "--level", "readback")
        assert done.returncode == 0, done.stdout + done.stderr
        is_calm(done.stdout + done.stderr)


@pytest.mark.parametrize("damage", ["short", "flip"])
def test_a_copy_that_cannot_be_read_well_is_not_taken_for_somebody_elses(home: Home, serve: Serve, damage: str) -> None:
    """Before it is replaced it is compared with what was put there; an operator has nothing to rename."""
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        home.archive = filesystem.seen
        service = serve(home.config())
        home.land("a", b"first" * 100)
        service.until_done(1)
        filesystem.fail(read=damage)
        home.land("a", b"the second" * 100)
        (job,) = until(lambda: [job for job in service.jobs(path=b"a") if job.error_code], what="a failure")
        assert job.error_code == "integrity", job.error
        filesystem.fail()
        service.cli("jobs", "retry", "--all")
        until(lambda: home.arrived() == {b"a": b"the second" * 100}, what="replaced")
        assert "conflict" not in service.log.lower()


# -- two versions --


def test_a_version_that_could_not_be_removed_before_a_newer_was_delivered_is_kept_as_a_file(
    home: Home, serve: Serve
) -> None:
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        home.landing = filesystem.seen
        service = serve(home.config('after = "delete"\npoll_interval = "0.3s"'))
        filesystem.fail(unlink="EIO", link="EIO")
        (filesystem.held / "a").write_bytes(b"first")
        waiting(service, "source-unavailable", "Input/output error")
        (first,) = service.jobs()
        (filesystem.held / "a").write_bytes(b"the second")
        until(lambda: len(service.deliveries("a")) == 2, what="both versions are delivered")
        filesystem.fail()
        service.cli("jobs", "retry", "--all")
        older = f"a.older-{first.id}"
        expected = {b"a": b"the second", older.encode(): b"first"}
        until(lambda: os.listdir(filesystem.held) == [] and home.arrived() == expected, what="each is delivered")
        until(lambda: all(job.state.final for job in service.jobs()), what="nothing is left to do")


# -- one bit --


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


@pytest.mark.parametrize(
    ("checksum", "told"),
    [("sha256", "The second reading of"), ("crc64nvme", "are not those that were read before")],
)
def test_a_bit_that_flips_between_two_readings_of_the_source_is_noticed(
    home: Home, serve: Serve, bucket: Bucket, checksum: str, told: str
) -> None:
    content = random.Random(32).randbytes(11 << 20)
    with FaultyFilesystem(home.folder / "fuse", direct=True) as filesystem:
        home.landing = filesystem.seen
        filesystem.fail(read="flip")
        (filesystem.held / "a").write_bytes(content)
        watch = 'poll_interval = "0.3s"\nstage = false'
        service = serve(home.config(watch, bucket.destination(more=f'checksum = "{checksum}"')))
        waiting(service, "integrity", told)
        assert bucket.objects() == {}
        assert service.deliveries("a") == []
        filesystem.fail()
        service.cli("jobs", "retry", "--all")
        service.until_done(1)
    assert bucket.content("a") == content
