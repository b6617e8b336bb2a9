"""SIGKILL at every step of the journey: before and after each commit, sync, link, rename, removal and request that the
code makes, with files on their way through all of it (PRODUCT Q1, P6, P10, promises 1 and 2).

After each kill: no source is gone without proof of all its copies. In the end every version that landed is at each
destination once, whole, each source is disposed of once, and nothing unfinished is left anywhere.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from bench.data import MIB, fastq
from quaymaster.errors import StoreError
from quaymaster.store import Filter, Store
from system.bucket import Bucket
from system.conftest import Home, content_of, files_below, quoted
from system.evidence import expanded_sha256, sha256
from system.service import Service, until

TEXT = b"".join(piece for piece, _ in zip(fastq(), range(2), strict=False))[: 2 * MIB]
OF_COMMANDS = ("Store.retry", "Store.drop")
"""Commits that only an operator's commands make."""


class Campaign:
    """One state directory, two watches, two destinations, killed again and again."""

    def __init__(self, home: Home, bucket: Bucket, seed: int) -> None:
        self.home, self.bucket = home, bucket
        self.chance = random.Random(seed)
        self.staged, self.done = home.folder / "staged", home.folder / "done"
        for directory in (self.staged, self.done):
            directory.mkdir()
        self.steps = home.folder / "steps"
        self.service = Service(self._config(), home.folder)
        self.landed: dict[tuple[str, str], str] = {}
        """(watch, name) -> SHA-256 of what was written there last."""
        self.ever: set[str] = set()
        """Digests of everything that ever landed."""
        self.rounds = 0

    def _config(self) -> str:
        directory = f'[destination.archive]\ntype = "directory"\npath = {quoted(self.home.archive)}\n'
        compress = '{ format = "zstd", level = 1, min_size = "1MiB" }'
        first = (
            f'destinations = ["archive", "far"]\nafter = "delete"\nkey = "{{watch}}/{{path}}"\ncompress = {compress}'
        )
        config = self.home.config(first, directory + self.bucket.destination("far"), limits="files = 4")
        second = [
            "[watch.staged]", f"path = {quoted(self.staged)}", 'destinations = ["far", "archive"]', "stage = true",
            'settle = "0.4s"', 'settle_closed = "0.1s"', f'after = "move:{self.done}"', f"compress = {compress}",
        ]  # fmt: skip
        return config + "\n".join(second) + "\n"

    def land(self) -> None:
        """One of each kind: small, compressible, in parts, a new version of the one before, and a staged one."""
        self.rounds += 1
        n, noise = self.rounds, self.chance.randbytes
        stamp = b"%d\n" % n
        self.write("landing", f"run-{n}/small-{n}", noise(self.chance.randrange(5000)))
        self.write("landing", f"reads-{n}.fastq", stamp + TEXT)
        if n % 3 == 1:
            self.write("landing", f"model-{n}.bin", noise(11 * MIB))
        self.write("landing", "changing", stamp * 500)
        self.write("staged", f"run/staged-{n}.fastq", stamp + TEXT)

    def write(self, watch: str, name: str, content: bytes) -> None:
        path = self._folder(watch) / name
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(path.name + ".part")
        new.write_bytes(content)
        self.landed[watch, name] = sha256(content)
        self.ever.add(sha256(content))
        new.rename(path)

    def _folder(self, watch: str) -> Path:
        return self.home.landing if watch == "landing" else self.staged

    def kill_at(self, step: str, when: str, *, patience: float = 100) -> bool:
        """Run the service until it comes to the step; False when it does not."""
        command = [sys.executable, "-m", "system.killed_at", str(self.steps), step, when]
        here = str(Path(__file__).parent.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), here]))}
        with self.service.log_file.open("ab") as log:
            process = subprocess.Popen(
                [*command, "run", "--config", str(self.service.config_file)],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        began = time.monotonic()
        try:
            while process.poll() is None:
                if time.monotonic() - began > patience or (time.monotonic() - began > 4 and self.is_idle()):
                    return False
                time.sleep(0.05)
            assert process.returncode == -9, f"it ended with {process.returncode}:\n{self.service.log}"
            return True
        finally:
            process.kill()
            process.wait()

    def is_idle(self) -> bool:
        """Nothing is left to do."""
        names = [*files_below(os.fsencode(self.home.landing)), *files_below(os.fsencode(self.staged))]
        try:
            with self.service.store() as store:
                return not names and not sum(store.open_jobs().values())
        except StoreError:
            return False

    def no_source_is_gone_without_proof(self) -> None:
        """Each file is where it landed (set aside, perhaps), or its copies are all recorded."""
        there = set()
        for folder in (self.home.landing, self.staged):
            for path in files_below(os.fsencode(folder)):
                there.add(sha256(content_of(path)))
        with closing(Store(str(self.home.folder / "state"))) as store:
            for (watch, name), digest in self.landed.items():
                if digest in there:
                    continue
                proofs = [d.proof for d in store.deliveries(watch, name.encode())]
                proven = {proof.destination for proof in proofs if proof.source.sha256 == digest}
                assert proven == {"archive", "far"}, f"{watch}/{name} is gone; proven at {proven}"

    def finish(self) -> None:
        """Without faults everything comes to its end."""
        with self.service:
            until(self.is_idle, 200, f"idle:\n{self.service.log[-3000:]}")
            with self.service.store() as store:
                until(lambda: not store.uploads(), 200, "nothing is left to abort")

    def check(self) -> None:
        expected = {f"{watch}/{name}": digest for (watch, name), digest in self.landed.items()}
        at_archive = {
            os.fsdecode(name): expanded_sha256(self.home.archive / os.fsdecode(name)) for name in self.home.arrived()
        }
        # A version that was set aside by mistake in the moment of a kill, and whose name was taken when it was to be
        # put back, has got a name of its own: it is not lost.
        older = {name for name in at_archive if ".older-" in name}
        assert {at_archive.pop(name) for name in older} <= self.ever
        assert {name.removesuffix(".zst"): digest for name, digest in at_archive.items()} == expected
        assert len(at_archive) == len(expected), "a file is there compressed and uncompressed"
        objects = [key for key in self.bucket.objects() if ".older-" not in key]
        assert len(objects) == len(expected)
        for key in objects:
            path = self.home.folder / ("seen" + (".zst" if key.endswith(".zst") else ""))
            self.bucket.download(key, path)
            assert expanded_sha256(path) == expected[key.removesuffix(".zst")], key
        moved = {
            os.path.relpath(p, os.fsencode(self.done)): sha256(content_of(p))
            for p in files_below(os.fsencode(self.done))
        }
        assert moved == {name.encode(): digest for (watch, name), digest in self.landed.items() if watch == "staged"}
        assert self.home.leftovers() == []
        assert self.bucket.uploads() == []
        own = set(self.bucket.objects(own=True)) - set(self.bucket.objects())
        assert not [key for key in own if not key.startswith(".quaymaster-custody/")], own
        with self.service.store() as store:
            assert store.custody_broken_at() is None
            assert store.noted_fault() == ""
            for (watch, name), digest in self.landed.items():
                last = [d for d in store.deliveries(watch, name.encode()) if d.proof.source.sha256 == digest]
                assert sorted(d.proof.destination for d in last) == ["archive", "far"], name
                assert all(d.disposal.partition(":")[0] in ("deleted", "moved") for d in last), name
            assert not [job for job in store.jobs(Filter()) if not job.state.final]


@pytest.fixture
def campaign(home: Home, bucket: Bucket, request: pytest.FixtureRequest) -> Campaign:
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    return Campaign(home, bucket, seed)


def all_steps(campaign: Campaign) -> list[str]:
    """Two rounds without a kill, so that a file is also replaced."""
    for _ in range(2):
        campaign.land()
        assert not campaign.kill_at("", "")
    found = dict.fromkeys(campaign.steps.read_text().splitlines())
    return [step for step in found if not any(name in step for name in OF_COMMANDS)]


def run(campaign: Campaign, kills: list[tuple[str, str]]) -> None:
    missed = []
    for step, when in kills:
        campaign.land()
        if campaign.kill_at(step, when):
            campaign.no_source_is_gone_without_proof()
        else:
            missed.append(f"{when} {step}")
    campaign.finish()
    campaign.check()
    print(f"killed {len(kills) - len(missed)} times, {len(campaign.landed)} files; not come to: {missed}")
    assert len(missed) <= len(kills) // 10, missed


@pytest.mark.timeout(600)
def test_sigkill_at_a_third_of_all_steps(campaign: Campaign) -> None:
    steps = all_steps(campaign)
    assert len(steps) > 35, steps
    kills = [(step, when) for step in steps for when in ("before", "after")]
    campaign.chance.shuffle(kills)
    run(campaign, kills[: len(kills) // 3])


@pytest.mark.parametrize(
    ("step", "then"),
    [("unlink in publish_name", "replaced"), ("put_object", "replaced"), ("commit of Store.deliver.act", "removed")],
)
def test_a_copy_whose_record_was_cut_off_is_known_to_be_ours(campaign: Campaign, step: str, then: str) -> None:
    """Also when no run of its job follows: a newer version has taken its place, or the source is gone."""
    campaign.write("landing", "changing", b"first")
    assert campaign.kill_at(step, "after" if step != "commit of Store.deliver.act" else "before")
    if then == "replaced":
        campaign.write("landing", "changing", b"second")
        campaign.finish()
        campaign.check()
        return
    (campaign.home.landing / "changing").unlink()
    with campaign.service as service:
        until(lambda: service.deliveries("changing"), 60, service.log)
        (found, *_) = service.deliveries("changing")
        assert found.proof.source.sha256 == sha256(b"first")


def test_a_source_that_was_set_aside_before_a_kill_is_disposed_of_once(campaign: Campaign) -> None:
    campaign.write("landing", "a", b"content")
    assert campaign.kill_at("rename in _set_aside", "after")
    campaign.no_source_is_gone_without_proof()
    campaign.finish()
    campaign.check()


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_sigkill_before_and_after_every_step(campaign: Campaign) -> None:
    steps = all_steps(campaign)
    print(*steps, sep="\n")
    run(campaign, [(step, when) for step in steps for when in ("before", "after")])
