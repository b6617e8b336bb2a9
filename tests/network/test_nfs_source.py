"""A watch on a true NFS mount: what lands on the server, unseen by this kernel, arrives whole and once (PRODUCT W2,
W4, W6)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from network.share import Client, FileServer, GuestService, fetched
from servers.uml import SHARE
from system.service import until

Serve = Callable[[Client, str], GuestService]
MIB = 1 << 20


def watch(name: str, path: str, archive: str, **settings: str) -> str:
    """A watch, and a destination of its own. ``settings`` are TOML."""
    own = {"destinations": f'["{name}"]', "key": '"{path}"', "poll_interval": '"1s"', "settle": '"2s"'} | settings
    lines = [f"{key} = {value}" for key, value in own.items()]
    return "\n".join([
        f"[destination.{name}]", 'type = "directory"', f'path = "{archive}"', f"[watch.{name}]", f'path = "{path}"',
        *lines, "",
    ])  # fmt: skip


def archive_of(client: Client, folder: str) -> str:
    """An empty directory for deliveries, on the client's own disk: in memory."""
    client.machine.check(f"mkdir -p /tmp/{folder}-archive")
    return f"/tmp/{folder}-archive"


def is_done(service: GuestService, count: int) -> bool:
    jobs = service.jobs()
    assert not [job for job in jobs if job["state"] == "parked"], jobs
    return len(jobs) >= count and all(job["state"] == "done" for job in jobs)


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_what_lands_on_the_server_is_noticed_by_polling_and_arrives_once(
    server: FileServer, client: Client, serve: Serve, version: str
) -> None:
    folder = server.folder()
    archive, mounted = archive_of(client, folder), client.mount(folder, f"/mnt/{folder}", version)
    service = serve(client, watch("share", mounted, archive, settle='"1s"'))
    expected = {"reads.fastq": os.urandom(3 * MIB), "empty": b"", "run/deep/small": b"small"}
    server.machine.check(f"mkdir -p /srv/{folder}/run/deep")
    for name, content in expected.items():
        server.land(f"{folder}/{name}", content)
    until(lambda: is_done(service, 3), 30, "all delivered")
    assert fetched(client.machine, archive) == expected
    assert len(service.jobs()) == 3
    seen = service.watch("share")
    assert (seen["mode"], seen["state"]) == ("poll", "watching")
    assert "nfs" in seen["seen"]["filesystem"]


# Writes 100 kB/s for the seconds it is told, without fsync; the sum of what it wrote comes last.
_PRODUCER = """
import hashlib, os, sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
digest, end = hashlib.sha256(), time.monotonic() + seconds
with open(path, "wb", buffering=0) as file:
    while time.monotonic() < end:
        piece = os.urandom(10_000)
        file.write(piece)
        digest.update(piece)
        time.sleep(0.1)
print(digest.hexdigest())
"""
_STALL = 4  # seconds that the producer's kernel keeps written bytes to itself


def test_a_slow_producer_that_seems_to_stand_still_is_not_taken_for_done(
    server: FileServer, client: Client, other_client: Client, serve: Serve
) -> None:
    """Another host writes without fsync: its kernel sends nothing for many seconds (30 by default, shortened here), and
    the file stands still for everybody else. A watch whose quiet time is shorter ships a piece, which also shows that
    the file did stand still; one whose quiet time is longer ships the whole, once."""
    other_client.machine.check(
        f"cd /proc/sys/vm; echo {_STALL * 100 - 100} >dirty_expire_centisecs; echo 100 >dirty_writeback_centisecs"
    )
    folder = server.folder()
    written = other_client.mount(folder, f"/mnt/{folder}", "4.2")
    config = ""
    for name, version, settle in (("hasty", "3", 1), ("patient", "4.2", 3 * _STALL)):
        archive = archive_of(client, f"{folder}-{name}")
        mounted = client.mount(folder, f"/mnt/{folder}-{name}", version)
        config += watch(name, mounted, archive, settle=f'"{settle}s"')
    service = serve(client, config)
    producer = other_client.machine.begin(["python3", "-c", _PRODUCER, f"{written}/reads.fastq", "14"])
    sha256 = other_client.machine.end(producer, 60).out.strip()
    until(lambda: deliveries(service, "patient", "reads.fastq"), 60, "the patient watch has delivered")
    assert [found["sha256"] for found in deliveries(service, "patient", "reads.fastq")] == [sha256]
    hasty = deliveries(service, "hasty", "reads.fastq")
    assert hasty
    assert hasty[0]["sha256"] != sha256, "the file never stood still: this test proves nothing"


def deliveries(service: GuestService, watch: str, path: str) -> list[dict[str, Any]]:
    """Of one file, the oldest first."""
    done = [job for job in service.jobs() if (job["watch"], job["path"], job["state"]) == (watch, path, "done")]
    return [found for job in done for found in service.cli("jobs", str(job["id"]))["deliveries"]]


# Replaces one file by rename, again and again: each version is 1 MiB of one letter, the last of Z.
_REPLACER = """
import os, sys, time
path, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
def put(letter):
    with open(path + ".part", "wb") as file:
        file.write(letter * (1 << 20))
    os.rename(path + ".part", path)
number = 0
while time.monotonic() < end:
    put(b"ABCDEFGHIJ"[number % 10 : number % 10 + 1])
    number += 1
    time.sleep(0.07)
put(b"Z")
"""

# Reads the delivered file, again and again, until there is a file that says that it is enough.
_READER = """
import json, os, sys, time
path, looks, seen, torn = sys.argv[1], 0, set(), 0
while not os.path.exists(sys.argv[2]):
    try:
        with open(path) as file:
            text = file.read()
    except FileNotFoundError:
        continue
    looks += 1
    seen.add(text[:1])
    torn += text != text[:1] * (1 << 20)
    time.sleep(0.02)
print(json.dumps([looks, sorted(seen), torn]))
"""


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_a_file_renamed_over_while_it_is_read_is_never_torn(
    server: FileServer, client: Client, serve: Serve, version: str
) -> None:
    folder = server.folder()
    archive, mounted = archive_of(client, folder), client.mount(folder, f"/mnt/{folder}", version)
    config = watch("share", mounted, archive, settle='"10ms"', settle_closed='"10ms"', poll_interval='"100ms"')
    service = serve(client, config)
    replacer = server.machine.begin(["python3", "-c", _REPLACER, f"/srv/{folder}/model", "8"])
    reader = client.machine.begin(["python3", "-c", _READER, f"{archive}/model", f"/tmp/{folder}-enough"])
    assert server.machine.end(replacer, 60).status == 0
    until(lambda: is_settled(service), 40, "nothing is left to do")
    until(lambda: fetched(client.machine, archive) == {"model": b"Z" * MIB}, 40, "the last version has arrived")
    client.machine.check(f"touch /tmp/{folder}-enough")
    done = client.machine.end(reader, 30)
    assert done.status == 0, done.err
    looks, seen, torn = json.loads(done.out)
    assert looks > 20
    assert len(seen) > 1, "only one version was ever delivered: nothing was renamed over while it was read"
    assert torn == 0
    assert {job["state"] for job in service.jobs()} <= {"done", "superseded"}


def is_settled(service: GuestService) -> bool:
    jobs = service.jobs()
    assert not [job for job in jobs if job["state"] == "parked"], jobs
    return bool(jobs) and all(job["state"] in ("done", "superseded") for job in jobs)


def test_a_server_that_goes_down_and_comes_back_costs_nothing(server: FileServer, client: Client, serve: Serve) -> None:
    """A soft and a hard mount of it and a local directory, watched by one service. While the server is down the first
    two say so, the third goes on; what landed meanwhile is found afterwards, and what was delivered stays as it is."""
    folder = server.folder()
    places = {
        "soft": client.mount(folder, f"/mnt/{folder}-soft", "4.2", "soft,timeo=10,retrans=1"),
        "hard": client.mount(folder, f"/mnt/{folder}-hard", "3", "hard,timeo=10,retrans=1"),
        "local": f"/tmp/{folder}-local",
    }
    client.machine.check(f"mkdir -p {places['local']}")
    archives = {name: archive_of(client, f"{folder}-{name}") for name in places}
    service = serve(client, "".join(watch(name, path, archives[name]) for name, path in places.items()))
    before, meanwhile = os.urandom(MIB), os.urandom(MIB)
    server.land(f"{folder}/before", before)
    until(lambda: is_done(service, 2), 30, "delivered from both mounts")
    server.machine.check("sync")
    server.machine.cut_power()

    client.machine.check(f"echo on with it >{places['local']}/during")
    until(
        lambda: fetched(client.machine, archives["local"]) == {"during": b"on with it\n"}, 20, "the local watch goes on"
    )
    for name in ("soft", "hard"):
        found = until(lambda name=name: in_trouble(service, name), 120, f"{name} tells of the outage")
        print(name, found["state"], found["reason"])
    assert (service.watch("local")["state"], service.watch("local")["reason"]) == ("watching", "")

    held = server.machine.share / "meanwhile"
    held.write_bytes(meanwhile)
    server.start(before=f"cp {SHARE}/meanwhile /srv/{folder}/")
    for name in ("soft", "hard"):
        until(
            lambda name=name: len(fetched(client.machine, archives[name])) == 2,
            90,
            f"{name} found what landed meanwhile",
        )
        assert fetched(client.machine, archives[name]) == {"before": before, "meanwhile": meanwhile}
        until(lambda name=name: service.watch(name)["state"] == "watching", 30, f"{name} says that it is well again")
    jobs = sorted((job["watch"], job["path"], job["state"], job["error_code"]) for job in service.jobs())
    assert jobs == [
        ("hard", "before", "done", ""),
        ("hard", "meanwhile", "done", ""),
        ("local", "during", "done", ""),
        ("soft", "before", "done", ""),
        ("soft", "meanwhile", "done", ""),
    ]


def in_trouble(service: GuestService, name: str) -> dict[str, Any]:
    """What ``status`` says of a watch, once that it is not well and why; else nothing."""
    found = service.watch(name)
    return found if found["state"] != "watching" and found["reason"] else {}


@pytest.mark.parametrize("version", ["4.2", pytest.param("3", marks=pytest.mark.soak)])
def test_a_run_that_another_host_writes_is_a_unit_when_its_marker_is_there(
    server: FileServer, client: Client, other_client: Client, serve: Serve, version: str
) -> None:
    """Nothing tells this kernel of the marker, and it was asked for before it was there: it is found by listing."""
    folder = server.folder()
    archive, mounted = archive_of(client, folder), client.mount(folder, f"/mnt/{folder}", version)
    written = other_client.mount(folder, f"/mnt/{folder}", version)
    unit = {"unit": '"directory"', "unit_complete": '["Complete.txt"]', "after": '"delete"', "settle": '"1s"'}
    service = serve(client, watch("share", mounted, archive, **unit))
    other_client.machine.check(
        f"mkdir -p {written}/run/Data && echo one >{written}/run/Data/a && echo >{written}/run/b"
    )
    until(lambda: [found["why"] for found in service.cli("units")["units"]] == ["Complete.txt is missing"], 60)
    until(lambda: len(fetched(client.machine, archive)) == 2, 60, "the files travel before the run is whole")
    assert set(server.files(folder)) == {"run/Data/a", "run/b"}, "a source is gone before its unit is published"
    other_client.machine.check(f"touch {written}/run/Complete.txt")
    until(lambda: service.cli("units")["units"][0]["state"] == "published", 60, f"{service.cli('units')}")
    arrived = fetched(client.machine, archive)
    manifest = json.loads(arrived["run/quaymaster-manifest.json"])
    assert [entry["path"] for entry in manifest["files"]] == ["Complete.txt", "Data/a", "b"]
    until(lambda: server.files(folder) == {}, 60, "the sources are removed")
    assert [(found["generation"], found["files"]) for found in service.cli("units")["units"]] == [(1, 3)]
    assert service.cli("verify", "--unit", f"{mounted}/run")["ok"]
