"""A wire to the bucket that does everything wires do: files land all the while, and each request may be refused, cut,
lost, slowed down, answered with another error, or carry other bytes (PRODUCT P4-P6, Q3, promises 1 to 3).

No reader ever sees anything but a whole version, the ledger never says what is not so, and in the end, after an
operator has retried what was parked, each file is there once, whole, with nothing unfinished and no conflict with
oneself.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quaymaster.model import State
from quaymaster.store import Filter, Store
from servers.faultproxy import FaultProxy, Request, Reset, Response, flip, unavailable
from system.bucket import Bucket
from system.conftest import Home, quoted
from system.evidence import expanded_sha256, sha256
from system.mishaps import is_calm
from system.service import Service, until
from system.traffic import Reader, Seen, Traffic

BODIES = ("PutObject", "UploadPart")
EFFECTS = (*BODIES, "CreateMultipartUpload", "CompleteMultipartUpload", "AbortMultipartUpload", "DeleteObject")


def is_listing(request: Request) -> bool:
    return request.method == "GET" and bool({"list-type", "uploads", "uploadId"} & request.query.keys())


def carries(request: Request) -> bool:
    return request.operation in BODIES and request.headers.get("content-length", "0") != "0"


def says(status: int, code: str) -> Callable[[Request], Response]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>An injected fault.</Message></Error>".encode()
    return lambda request: Response(status, {"content-type": "application/xml"}, body)


ANSWERS: dict[str, Callable[[Request], Response]] = {
    "busy": unavailable(1),
    "broken": says(500, "InternalError"),
    "skewed": says(403, "RequestTimeTooSkewed"),
    "expired": says(403, "ExpiredToken"),
    "no bucket": says(404, "NoSuchBucket"),
}
SPELLS = ("expired", "no bucket", "skewed", "busy", "refused")
"""What may befall every request for a while."""


class Weather:
    """What happens to each request that passes the proxy, by chance."""

    share = 0.12
    """Of the requests, that something happens to outside of spells."""

    def __init__(self, proxy: FaultProxy, chance: random.Random) -> None:
        self._chance, self._lock = chance, threading.Lock()
        self._drawn: dict[int, str] = {}
        self.spell = ""
        self.calm = False
        self.happened: Counter[str] = Counter()
        self.course: list[str] = []
        """Each request as it came, with what befell it."""
        proxy.inject("*", head=self._head, request=self._request, response=self._response, times=1 << 60)

    def _draw(self, request: Request) -> str:
        kinds = {
            "busy": 2, "broken": 2, "skewed": 1, "expired": 0.3, "refused": 1, "cut reply": 2, "loris": 1,
            "silence": 0.3,
            "cut request": 4 * carries(request), "flip sent": 4 * carries(request),
            "lost reply": 5 * (request.operation in EFFECTS),
            "flip etag": 2 * (request.operation == "UploadPart"),
            "flip got": 8 * (request.operation == "GetObject" and not is_listing(request)),
            "cut listing": 8 * is_listing(request),
        }  # fmt: skip
        with self._lock:
            if self.calm:
                return ""
            fault = self.spell
            if not fault and self._chance.random() < self.share:
                (fault,) = self._chance.choices(list(kinds), list(kinds.values()))
            if fault:
                self.happened[fault] += 1
            return fault

    def _head(self, request: Request) -> int | None:
        fault = self._draw(request)
        conditions = {name: value for name, value in request.headers.items() if name.startswith("if-")}
        self.course.append(f"{time.time():.3f} {request.operation} {request.path} {conditions or ''} {fault}")
        if fault == "refused":
            return 0
        if fault == "cut request":
            return int(request.headers["content-length"]) // 2
        self._drawn[id(request)] = fault
        return None

    def _request(self, request: Request) -> Response | None:
        fault = self._drawn[id(request)]
        if fault == "flip sent":
            request.body = flip(request.body)
        if fault in ANSWERS:
            self._drawn.pop(id(request))
            return ANSWERS[fault](request)
        return None

    def _response(self, request: Request, response: Response) -> None:
        self.course.append(f"{time.time():.3f} {request.operation} {request.path} was answered {response.status}")
        match self._drawn.pop(id(request)):
            case "lost reply":
                raise Reset
            case "cut reply":
                response.cut = 0.5
            case "loris":
                response.pace = 0.03
            case "silence":
                response.pace = 3.5  # longer than read_timeout
                response.cut = 0.02
            case "flip got" if response.body:
                response.body = flip(response.body)
            case "flip etag" if "etag" in response.headers:
                etag = response.headers["etag"]
                response.headers["etag"] = etag.replace(etag[5], "0" if etag[5] != "0" else "1", 1)
            case "cut listing":
                response.body = response.body[: len(response.body) // 2]


class Campaign:
    """Two watches with everything in them, one of which reads each object back."""

    def __init__(self, home: Home, bucket: Bucket, proxy: FaultProxy, seed: int) -> None:
        print("seed", seed)
        self.home, self.bucket, self.chance = home, bucket, random.Random(seed)
        second = home.folder / "readback"
        second.mkdir()
        self.traffic = Traffic({"landing": home.landing, "readback": second}, random.Random(seed + 1))
        self.weather = Weather(proxy, random.Random(seed + 2))
        settings = f'endpoint_url = "{proxy.endpoint}"\nread_timeout = "3s"\nconnect_timeout = "3s"'
        compress = 'compress = { format = "zstd", level = 1, min_size = "1MiB" }\nkey = "{watch}/{path}"\n'
        self.service = Service(
            home.config(compress, bucket.destination(more=settings), limits="files = 6")
            + f'[watch.readback]\npath = {quoted(second)}\ndestinations = ["archive"]\nverify = "readback"\n'
            + f'settle = "0.4s"\nsettle_closed = "0.1s"\n{compress}',
            home.folder,
        )
        self.checked: set[str] = set()
        self.retried = 0

    def look(self) -> Iterator[Seen]:
        pages = self.bucket.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket.name, Prefix=self.bucket.prefix
        )
        for page in pages:
            for item in page.get("Contents", []):
                key = item["Key"].removeprefix(self.bucket.prefix)
                if not key.startswith(".quaymaster-"):
                    yield key.removesuffix(".zst"), key + item["ETag"], lambda key=key: self._digest(key)

    def _digest(self, key: str) -> str:
        path = self.home.folder / ("seen" + (".zst" if key.endswith(".zst") else ""))
        try:
            self.bucket.download(key, path)
        except self.bucket.client.exceptions.NoSuchKey:
            return ""  # withdrawn since
        return expanded_sha256(path)

    def the_ledger_is_true(self) -> None:
        """Whatever it says is delivered is there with the bytes that landed. (Of the file that changes, the reader
        watches every version.)"""
        with self.service.store() as store:
            for name, digest in self.traffic.last.items():
                if name in self.checked or name.endswith("changing"):
                    continue
                watch, _, path = name.partition("/")
                for delivery in store.deliveries(watch, path.encode()):
                    proof = delivery.proof
                    assert proof.source.sha256 == digest, name
                    assert sha256(self.bucket.content(proof.stored.key)) == proof.stored_digests.sha256, name
                    self.checked.add(name)

    def run(self, seconds: float) -> None:
        ends, spells = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            self.traffic.land()
            time.sleep(self.chance.uniform(0.5, 2.0))
            if self.traffic.rounds % 3 == 2:
                self.weather.spell = SPELLS[spells % len(SPELLS)]
                spells += 1
                self.traffic.land()
                time.sleep(self.chance.uniform(0.5, 2.0))  # a spell lasts as long as it lasts
                self.weather.spell = ""
                self._retry()
            self.the_ledger_is_true()
            self.failures()

    def _retry(self) -> None:
        """An operator has renewed the token, or made the bucket again."""
        code, told = self.service.cli("jobs", "retry", "--all")
        assert code == 0, told
        self.retried += len(told["retried"])

    def finish(self) -> None:
        self.weather.calm = True
        again = 0.0

        def all_there() -> bool:
            nonlocal again
            if time.monotonic() > again:
                self._retry()
                again = time.monotonic() + 5
            return self._missing() == []

        # A request that a slow loris has taken ends with the service's own time limit, a minute later.
        until(all_there, 400, "each file at its destination")
        self.service.stop()
        self.service.start()  # what was left at the server is removed at each start, and every minute …
        self.traffic.write("landing", "last", b"a file")  # … and what an examination left at the next examination

        def nothing_left() -> bool:
            with self.service.store() as store:
                return not store.uploads() and self.bucket.uploads() == [] and self._missing() == []

        try:
            until(nothing_left, 200, "no unfinished uploads")
        finally:
            print("unfinished at the server:", self.bucket.uploads(), *self.service.lines("could not be removed"))
        self.service.stop()

    def _missing(self) -> list[str]:
        with self.service.store() as store:
            found = []
            for name, digest in self.traffic.last.items():
                watch, _, path = name.partition("/")
                if digest not in {d.proof.source.sha256 for d in store.deliveries(watch, path.encode())}:
                    found.append(name)
            return found + [str(job) for job in store.jobs(Filter()) if not job.state.final]

    def check(self) -> Counter[str]:
        """The end of the campaign; how often jobs failed, by error."""
        expected = self.traffic.last
        found = {key: self._digest(key) for key in self.bucket.objects()}
        assert {key.removesuffix(".zst"): digest for key, digest in found.items()} == expected
        assert len(found) == len(expected), "a file is there compressed and uncompressed"
        for key in found:
            assert self.bucket.metadata(key)["quaymaster-sha256"] == expected[key.removesuffix(".zst")], key
        own = set(self.bucket.objects(own=True)) - set(found)
        assert not [key for key in own if not key.startswith(".quaymaster-custody/")], "probes or claims were left"
        assert self.home.leftovers() == []
        is_calm(self.service.log)
        with self.service.store() as store:
            assert store.custody_broken_at() is None
        return self.failures()

    def _course_of(self, store: Store, failed: dict[str, Any]) -> str:
        """Everything that befell a file."""
        path = failed["path"]
        lines = [f"{e.fields['at']:.3f} {e.fields}" for e in store.custody() if e.fields.get("path") == path]
        lines += [line for line in list(self.weather.course) if str(path) in line]
        return "\n".join([str(failed), *sorted(lines)])

    def failures(self) -> Counter[str]:
        """How often jobs have failed, by error; never by a conflict, since nobody else writes there."""
        failures: Counter[str] = Counter()
        with self.service.store() as store:
            for entry in list(store.custody()):
                fields: dict[str, Any] = entry.fields
                if fields["kind"] in (State.WAITING, State.PARKED):
                    failures[fields["code"]] += 1
                    assert fields["code"] not in ("conflict", "internal"), self._course_of(store, fields)
        return failures


def campaign(home: Home, bucket: Bucket, *, seed: int, seconds: float) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        campaign = Campaign(home, bucket, proxy, seed)
        try:
            campaign.service.start()
            with Reader(campaign.look, campaign.traffic) as reader:
                campaign.run(seconds)
                campaign.finish()
            reader.look()
            assert reader.wrong == []
            failures = campaign.check()
        finally:
            campaign.service.kill()
            print("the service said:", *campaign.service.log.splitlines()[-40:], sep="\n  ")
    print(
        f"{len(campaign.traffic.last)} files, {len(reader.seen)} copies read as they appeared; of {len(proxy.seen)} "
        f"requests {sum(campaign.weather.happened.values())} went wrong: {dict(campaign.weather.happened)}; "
        f"failures of jobs: {dict(failures)}, {campaign.retried} retried by hand; all whole, once"
    )


@pytest.mark.timeout(600)
def test_a_minute_of_bad_weather(home: Home, bucket: Bucket) -> None:
    campaign(home, bucket, seed=20, seconds=30)


@pytest.mark.soak
@pytest.mark.timeout(2 * 3600)
@pytest.mark.parametrize("run", range(3))
def test_ten_minutes_of_bad_weather(home: Home, bucket: Bucket, run: int) -> None:
    campaign(home, bucket, seed=random.SystemRandom().randrange(1 << 32), seconds=600)
