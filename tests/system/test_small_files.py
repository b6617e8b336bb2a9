"""Many small files to one bucket travel together (PRODUCT P1, Q1): fewer requests and commits, the same promises."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from quaymaster.model import State
from servers.faultproxy import FaultProxy
from system.bucket import Bucket
from system.conftest import Home
from system.evidence import sha256
from system.service import Service, until

Serve = Callable[..., Service]
FILES = 300
STEPS = [
    "commit of Store.claim_small.<lambda>",
    "commit of Store.note_all.<lambda>",
    "put_object among others",
    "answer to put_object among others",
    "commit of Store.deliver_all.<lambda>",
]


def landed(home: Home, count: int = FILES) -> dict[str, bytes]:
    """So many files at once: a whole directory that is moved in."""
    content = {f"run-{n % 7}/sample {n}.dat": b"%d\n" % n + os.urandom(n % 40 * 100) for n in range(count)}
    outside = home.folder / "outside"
    for name, data in content.items():
        path = outside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    outside.rename(home.landing / "batch")
    return {f"batch/{name}": data for name, data in content.items()}


def config(home: Home, bucket: Bucket, endpoint: str = "", watch: str = "") -> str:
    return home.config(watch, bucket.destination(more=f'endpoint_url = "{endpoint}"' if endpoint else ""))


def arrived_once(bucket: Bucket, service: Service, content: dict[str, bytes]) -> None:
    assert bucket.objects() == {name: len(data) for name, data in content.items()}
    for name in list(content)[::25]:
        assert bucket.content(name) == content[name]
        assert bucket.metadata(name)["quaymaster-sha256"] == sha256(content[name])
    with service.store() as store:
        assert store.custody_broken_at() is None
        for name, data in content.items():
            (found,) = store.deliveries("landing", name.encode())
            assert (found.proof.source.sha256, found.proof.stored.evidence) == (sha256(data), "sha256"), name
            assert found.proof.stored.checksum


def test_each_is_one_request_and_many_share_a_commit(home: Home, serve: Serve, bucket: Bucket) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        service = serve(config(home, bucket, proxy.endpoint))
        content = landed(home)
        service.until_done(FILES, 120)
        of_ours = [(operation, path) for operation, path in proxy.seen if "/batch/" in path]
    arrived_once(bucket, service, content)
    # Of those that were the first to be seen a few may have gone alone, with a look at what they had left.
    assert Counter(operation for operation, _ in of_ours)["PutObject"] == FILES
    assert len(of_ours) <= FILES * 1.2
    with service.store() as store:
        ends = {job.ended_at for job in store.jobs(_done())}
    assert len(ends) <= FILES / 10, "their ends were recorded together"


def _done() -> object:
    from quaymaster.store import Filter

    return Filter(states=(State.DONE,))


def test_sources_are_removed_only_after_their_proof(home: Home, serve: Serve, bucket: Bucket) -> None:
    service = serve(config(home, bucket, watch='after = "delete"'))
    content = landed(home)
    service.until_done(FILES, 120)
    arrived_once(bucket, service, content)
    assert not [name for _, _, names in os.walk(home.landing) for name in names]
    assert home.leftovers() == []


def test_a_destination_that_is_away_holds_them_and_loses_none(home: Home, serve: Serve, bucket: Bucket) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        service = serve(config(home, bucket, proxy.endpoint))
        content = landed(home, 40)
        service.until_done(40, 120)

        def gone(request: object) -> None:
            from servers.faultproxy import Reset

            raise Reset

        proxy.inject("*", request=gone, times=10_000)
        (home.landing / "late").write_bytes(b"late")
        (home.landing / "later").write_bytes(b"later")
        until(lambda: service.states()[State.WAITING] == 2, 60, service.log)
        until(lambda: service.cli("status")[1]["destinations"][0]["state"] == "failing", 60)
        proxy.clear()
        service.until_done(42, 120)
    arrived_once(bucket, service, {**content, "late": b"late", "later": b"later"})


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_sigkill_in_the_middle_of_many(home: Home, bucket: Bucket, step: str, when: str) -> None:
    """After the next start every file is there once, with one proof."""
    service = Service(config(home, bucket), home.folder)
    content = landed(home, 80)
    assert service.is_killed_at(step, when), service.log
    with service:
        service.until_done(80, 120)
        arrived_once(bucket, service, content)
