"""P11: several destinations from one read; a slow or dead one neither holds back nor loses the others."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable

from servers.faultproxy import FaultProxy, Request, Reset, Response
from system.bucket import Bucket
from system.conftest import Home, files_below, quoted
from system.service import Service, until

MIB = 1 << 20


def configuration(home: Home, bucket: Bucket, endpoint: str, slow: str) -> str:
    places = [
        f'[destination.{name}]\ntype = "directory"\npath = {quoted(home.archive / name)}\nbandwidth = "{rate}"'
        for name, rate in (("fast", "none"), ("slow", slow))
    ]
    more = f'endpoint_url = "{endpoint}"\nconnect_timeout = "2s"\nread_timeout = "2s"'
    for name in ("fast", "slow"):
        (home.archive / name).mkdir(exist_ok=True)
    return home.config(
        'destinations = ["slow", "dead", "fast"]\nafter = "delete"',
        "\n".join([*places, bucket.destination("dead", more=more)]),
    )


def at(home: Home, name: str) -> set[str]:
    """What has arrived at one of the directories."""
    paths = {
        os.path.relpath(os.fsdecode(p), home.archive / name) for p in files_below(os.fsencode(home.archive / name))
    }
    return {path for path in paths if not path.startswith(".")}


def test_a_slow_and_a_dead_destination_hold_up_no_other_and_get_everything_in_the_end(
    home: Home, serve: Callable[..., Service], bucket: Bucket
) -> None:
    revived = threading.Event()

    def silent(request: Request) -> Response | None:
        revived.wait(60)
        raise Reset

    with FaultProxy(bucket.endpoint) as proxy:
        proxy.inject("*", request=silent, times=1 << 30)
        service = serve(configuration(home, bucket, proxy.endpoint, "128KiB/s"))
        content = {"large": os.urandom(24 * MIB)} | {f"small-{n:02}": os.urandom(20_000 + n) for n in range(40)}
        landed = time.monotonic()
        home.land("large", content["large"])
        until(lambda: "large" in at(home, "fast"), 60, "the large file at the fast destination")
        print(f"the large file was at the fast destination after {time.monotonic() - landed:.1f} s")
        assert "large" not in at(home, "slow")  # which needs more than three minutes
        landed = time.monotonic()
        for name in content:
            if name != "large":
                home.land(name, content[name])
        until(lambda: at(home, "fast") == set(content), 60, "everything at the fast destination")
        print(f"40 small files were there after {time.monotonic() - landed:.1f} s")
        assert all((home.landing / name).exists() for name in content)  # nothing is disposed of before all have it
        assert not bucket.objects()

        proxy.clear()
        revived.set()
        service.config_file.write_text(configuration(home, bucket, proxy.endpoint, "none"))
        os.kill(service.pid, signal.SIGHUP)
        until(lambda: service.lines("read again"))
        service.cli("jobs", "retry", "--state", "waiting")
        service.until_done(len(content), 120)
        assert at(home, "slow") == at(home, "fast") == set(bucket.objects()) == set(content)
        for name, data in content.items():
            proofs = {d.proof.destination: d.proof for d in service.deliveries(name)}
            assert set(proofs) == {"fast", "slow", "dead"}
            assert {proof.source.sha256 for proof in proofs.values()} == {hashlib.sha256(data).hexdigest()}
            assert bucket.content(name) == data
            assert (home.archive / "slow" / name).read_bytes() == data
        assert not any((home.landing / name).exists() for name in content)
        assert not home.leftovers()


def test_a_bandwidth_for_all_makes_none_of_them_slow(home: Home, serve: Callable[..., Service]) -> None:
    """Each would wait for longer than one destination may hold up the others."""
    places = [f'[destination.{n}]\ntype = "directory"\npath = {quoted(home.archive / n)}' for n in ("one", "other")]
    for name in ("one", "other"):
        (home.archive / name).mkdir()
    service = serve(home.config('destinations = ["one", "other"]', "\n".join(places), limits='bandwidth = "1MiB/s"'))
    content = os.urandom(10 * MIB)
    home.land("large", content)
    service.until_done(1, timeout=120)
    assert home.arrived() == {b"one/large": content, b"other/large": content}
    assert [job.attempts for job in service.jobs()] == [0]
    assert service.lines("slowly") == []
