"""SIGTERM and SIGKILL at any instant lose nothing, deliver nothing twice, and leave nothing behind
(PRODUCT Q1, S3, promises 1 and 2)."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bench.data import MIB, fastq
from quaymaster.model import State
from servers.faultproxy import FaultProxy
from system.bucket import Bucket
from system.conftest import Home, files_below, quoted
from system.evidence import expanded_sha256, sha256
from system.service import Service, until

Serve = Callable[..., Service]
LARGE = os.urandom(MIB) * 40


@contextmanager
def parts_held(proxy: FaultProxy, seconds: float) -> Iterator[threading.Event]:
    """Each part of a \\*.bin takes ``seconds`` while this is open. Yields an event that is set when the first began."""
    began, go = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        began.set()
        go.wait(seconds)

    proxy.inject("UploadPart", request=hold, times=1_000_000, only=lambda request: request.path.endswith(".bin"))
    try:
        yield began
    finally:
        proxy.clear()
        go.set()


def test_sigterm_lets_a_running_upload_finish(home: Home, serve: Serve, bucket: Bucket) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        service = serve(home.config("", bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")))
        with parts_held(proxy, 2) as began:
            home.land("model.bin", LARGE)
            assert began.wait(30)
            service.stop()
        assert sha256(bucket.content("model.bin")) == sha256(LARGE)
        assert +service.states() == {State.DONE: 1}
        assert bucket.uploads() == []


def test_sigterm_puts_an_upload_that_takes_too_long_back(home: Home, serve: Serve, bucket: Bucket) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        destination = bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")
        service = serve(home.config("", destination, limits="parts = 1", service='stop_timeout = "1s"'))
        with parts_held(proxy, 3) as began:
            home.land("model.bin", LARGE)
            assert began.wait(30)
            assert service.stop() < 15
        assert bucket.objects() == {}
        (job,) = service.jobs()
        assert (job.state, job.attempts) == (State.QUEUED, 0)
        service.start()
        service.until_done(1)
        assert sha256(bucket.content("model.bin")) == sha256(LARGE)
        assert bucket.uploads() == []
        assert len(service.deliveries("model.bin")) == 1
        service.stop()


def test_sigterm_does_not_wait_for_an_upload_that_hangs(home: Home, serve: Serve, bucket: Bucket) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        destination = bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")
        service = serve(home.config("", destination, limits="parts = 1", service='stop_timeout = "1s"'))
        with parts_held(proxy, 60) as began:
            home.land("model.bin", LARGE)
            assert began.wait(30)
            assert service.stop() < 15
        service.start()
        service.until_done(1)
        assert sha256(bucket.content("model.bin")) == sha256(LARGE)
        assert bucket.uploads() == []
        service.stop()


def test_sigterm_while_thousands_wait_keeps_them_all(home: Home, serve: Serve) -> None:
    service = serve(home.config(limits="files = 4"))
    for number in range(600):
        home.land(f"{number % 10}/{number}", b"%d" % number)
    until(lambda: service.states()[State.DONE] > 20, 60)
    service.stop()
    service.start()
    service.until_done(600, 200)
    assert home.arrived() == {f"{n % 10}/{n}".encode(): b"%d" % n for n in range(600)}
    assert all(len(service.deliveries(f"{n % 10}/{n}")) == 1 for n in range(0, 600, 17))
    service.stop()


_MOST_AHEAD = 300
"""Files that land before the service has sent as many: it always has something to do, and can come to an end."""
_PATIENCE = 300.0
"""Seconds for a start or a first delivery: what is tested is not how fast a busy machine is."""


class Producer(threading.Thread):
    """Lands files without pause, the way programs do: written in place, or renamed into place, small and large."""

    def __init__(self, home: Home, chance: random.Random) -> None:
        super().__init__(name="producer")
        self.home, self.chance = home, chance
        self.landed: dict[str, str] = {}
        self.sent = 0
        """As the test has last counted them."""
        self.stop = threading.Event()
        self._text = [piece for _, piece in zip(range(10), fastq(), strict=False)]

    def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            if number % 12 == 0:
                content = b"".join(self.chance.sample(self._text, 9))  # some 3 MiB compressed
            elif number % 12 == 6:
                content = self.chance.randbytes(6 * MIB)  # two parts, as it is
            else:
                content = self.chance.randbytes(self.chance.randrange(20_000))
            name = f"run{number % 5}/{number:05d}.bin"
            if number % 2:
                temporary = self.home.land(f"run{number % 5}/.{number:05d}.part", content)
                os.rename(temporary, self.home.landing / name)
            else:
                self.home.land(name, content)
            self.landed[name] = sha256(content)
            self.stop.wait(0.03)
            while len(self.landed) > self.sent + _MOST_AHEAD and not self.stop.wait(0.1):
                pass


class Reader(threading.Thread):
    """Takes whatever it sees at the destinations for whole at once, as a user would."""

    def __init__(self, home: Home, bucket: Bucket, landed: dict[str, str]) -> None:
        super().__init__(name="reader")
        self.home, self.bucket, self.landed = home, bucket, landed
        self.seen: dict[tuple[str, str], str] = {}
        self.wrong: list[str] = []
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            self.look()

    def look(self) -> None:
        for path in files_below(os.fsencode(self.home.archive)):
            name = os.path.relpath(os.fsdecode(path), self.home.archive)
            if not os.path.basename(name).startswith(".qm-") and not name.startswith(".quaymaster-custody/"):
                self._take("archive", name, lambda path=path: expanded_sha256(os.fsdecode(path)))
        for key in self.bucket.objects():
            self._take("far", key, lambda key=key: self._download(key))

    def _download(self, key: str) -> str:
        target = self.home.folder / ("seen" + (".zst" if key.endswith(".zst") else ""))
        self.bucket.download(key, target)
        return expanded_sha256(target)

    def _take(self, place: str, name: str, content: Callable[[], str]) -> None:
        if (place, name) in self.seen:
            return
        digest = self.seen[place, name] = content()
        until(lambda: name.removesuffix(".zst") in self.landed, 5, "the producer has noted what it landed")
        if digest != self.landed[name.removesuffix(".zst")]:
            self.wrong.append(f"{name} at {place}")


def test_sigkill_at_ten_random_instants(home: Home, serve: Serve, bucket: Bucket) -> None:
    kill_at_random(home, serve, bucket, 10)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_sigkill_at_500_random_instants(home: Home, serve: Serve, bucket: Bucket) -> None:
    kill_at_random(home, serve, bucket, 500)


def kill_at_random(home: Home, serve: Serve, bucket: Bucket, times: int) -> None:
    """Files land all the while, and a reader looks all the while. In the end each file is at both destinations once,
    whole; no reader ever saw anything else; and nothing unfinished is left anywhere."""
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    directory = f'[destination.archive]\ntype = "directory"\npath = {quoted(home.archive)}\n'
    watch = 'destinations = ["archive", "far"]\ncompress = { format = "zstd", level = 1, min_size = "1MiB" }'
    service = serve(home.config(watch, directory + bucket.destination("far"), limits="files = 6"))
    producer = Producer(home, random.Random(seed + 1))
    reader = Reader(home, bucket, producer.landed)
    producer.start()
    reader.start()
    try:
        for number in range(times):
            if number % 2:  # else each kill could come before the first delivery of a run, on a slow machine
                until(lambda: service.states()[State.DONE] > producer.sent, _PATIENCE, "a delivery")
            time.sleep(chance.uniform(0.1, 2.5))  # the instant of the kill is what is tested
            assert service.running, f"it ended by itself:\n{service.log}"
            service.kill()
            service.start(_PATIENCE)
            producer.sent = service.states()[State.DONE]
        producer.stop.set()
        producer.join()
        expected = producer.landed
        service.until_done(len(expected), _PATIENCE + times)
    finally:
        producer.stop.set()
        reader.stop.set()
        producer.join()
        reader.join()
    reader.look()
    assert reader.wrong == []
    delivered = {(place, name.removesuffix(".zst")) for place, name in reader.seen}
    assert delivered == {(place, name) for place in ("archive", "far") for name in expected}
    assert len(reader.seen) == len(delivered), "a file is there compressed and uncompressed"
    with service.store() as store:
        for name in expected:
            found = store.deliveries("landing", name.encode())
            assert sorted(d.proof.destination for d in found) == ["archive", "far"], name
        assert store.custody_broken_at() is None
    with service.store() as store:
        until(lambda: not store.uploads(), 200, "nothing is left to abort")
    service.stop()
    assert home.leftovers() == []
    assert bucket.uploads() == []
    own = set(bucket.objects(own=True)) - set(bucket.objects())
    assert not [key for key in own if not key.startswith(".quaymaster-custody/")], "probes or claims were left behind"
    with service.store() as store:
        assert store.uploads() == []
    print(f"killed {times} times, {len(expected)} files")
