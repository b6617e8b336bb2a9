"""S1, Q1: what systemd and the queue make of a service that hangs, is killed, or loses its power."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from booted.conftest import Machine
from booted.frozen import frozen, threads
from servers.booted import until
from servers.faultproxy import FaultProxy, Request
from servers.seaweed import Seaweed

BUCKET = "booted"


@dataclass
class Hanging:
    begun: threading.Event
    """Set when the third part has been sent."""
    over: threading.Event
    """To be set: it is answered then."""


@contextmanager
def third_part_hangs(machine: Machine, seaweed: Seaweed) -> Iterator[Hanging]:
    """The service delivers to S3, one part at a time, and the third part gets no answer until ``over``."""
    seaweed.make_bucket(BUCKET)
    with FaultProxy(seaweed.http_endpoint) as proxy:
        begun, over = threading.Event(), threading.Event()

        def hangs(request: Request) -> None:
            begun.set()
            over.wait(120)

        third = lambda request: request.query["partNumber"] == ["3"]  # noqa: E731
        proxy.inject("UploadPart", request=hangs, times=100, only=third)
        machine.configure(
            'destinations = ["s3"]',
            f'[destination.s3]\ntype = "s3"\nbucket = "{BUCKET}"\nendpoint_url = "{proxy.endpoint}"\n'
            f'prefix = "{machine.system.name}/"\ncredentials = "lab"\n',
        )
        text = machine.system.path("/etc/quaymaster/quaymaster.toml").read_text()
        machine.system.put("/etc/quaymaster/quaymaster.toml", text.replace("[limits]", "[limits]\nparts = 1"))
        secret = f'access_key = "{seaweed.access_key}"\nsecret_key = "{seaweed.secret_key}"\n'
        machine.system.put("/etc/quaymaster/credentials/lab", secret, 0o600)
        machine.drop_in("RestartSec=100ms")
        try:
            yield Hanging(begun, over)
        finally:
            over.set()


def arrived(machine: Machine, seaweed: Seaweed, name: str, content: bytes) -> bool:
    client = seaweed.client()
    key = f"{machine.system.name}/{name}"
    if not client.list_objects_v2(Bucket=BUCKET, Prefix=key).get("KeyCount"):
        return False
    assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == content, "nothing partial is ever visible"
    return True


def test_a_stage_that_hangs_gets_the_service_restarted_and_the_job_is_finished_afterwards(machine: Machine) -> None:
    text = machine.system.path("/etc/quaymaster/quaymaster.toml").read_text()
    machine.system.put("/etc/quaymaster/quaymaster.toml", text.replace("[limits]", "[limits]\nfiles = 1"))
    machine.drop_in("ReadWritePaths=/srv/archive", "WatchdogSec=6s", "RestartSec=100ms")
    machine.start()
    leader = machine.host_pid()
    before = threads(leader)
    machine.land("first.txt", b"1")
    machine.until_arrived("first.txt", b"1")
    workers = threads(leader) - before
    assert workers
    try:
        freeze = frozen(workers)
        stopped = freeze.__enter__()
    except OSError as error:
        pytest.skip(f"no thread can be stopped on this machine: {error}")
    try:
        machine.land("second.txt", b"2")
        until(lambda: stopped.bury() and machine.events("hang"), 20, "the hang is told")
        until(lambda: stopped.bury() and machine.restarts() == 1, 30, "the service is restarted")
    finally:
        freeze.__exit__(None, None, None)
    machine.until_arrived("second.txt", b"2")
    hangs = machine.events("hang")
    (told,) = [entry for entry in hangs if "QUAYMASTER_JOB" in entry]
    assert [e["MESSAGE"] for e in hangs if e is not told] == []
    assert "landing/second.txt) in stage transfer has stood still" in told["MESSAGE"]
    assert any("Watchdog timeout" in str(entry["MESSAGE"]) for entry in machine.system.journal("-u", "quaymaster"))
    until(lambda: machine.events("delivered", f"QUAYMASTER_JOB={told['QUAYMASTER_JOB']}"), 10)
    history = machine.quaymaster("jobs", "show", told["QUAYMASTER_JOB"]).out
    assert "stood still" in history, "it counts against the job, which is parked if it goes on like that"


def test_while_the_work_goes_on_no_watchdog_bites(machine: Machine) -> None:
    machine.drop_in("ReadWritePaths=/srv/archive", "WatchdogSec=2s")
    machine.start()
    began = machine.system.show("quaymaster.service", "WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"]
    for number in range(4):
        machine.land(f"{number}.txt", b"x")
        machine.until_arrived(f"{number}.txt", b"x")
        until(lambda: _pinged(machine) > int(began), 5)
        began = str(_pinged(machine))
    assert machine.restarts() == 0


def _pinged(machine: Machine) -> int:
    return int(machine.system.show("quaymaster.service", "WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"])


def test_killed_in_the_middle_of_an_upload_it_goes_on_by_itself(machine: Machine, seaweed: Seaweed) -> None:
    content = random.Random(2).randbytes(40 << 20)
    with third_part_hangs(machine, seaweed) as third:
        machine.start()
        machine.land("big.bin", content)
        assert third.begun.wait(30), machine.log()
        machine.system.run("kill", "-KILL", str(machine.pid()))
        until(lambda: machine.restarts() == 1, 20)
        assert not arrived(machine, seaweed, "big.bin", content)
        third.over.set()
        until(lambda: arrived(machine, seaweed, "big.bin", content), 60)
    assert machine.quaymaster("audit", "verify").status == 0


def test_after_a_power_cut_in_the_middle_of_an_upload_the_next_boot_finishes_it(
    machine: Machine, seaweed: Seaweed
) -> None:
    content = random.Random(3).randbytes(40 << 20)
    with third_part_hangs(machine, seaweed) as third:
        machine.system.run("systemctl", "enable", "quaymaster")
        machine.start()
        machine.land("big.bin", content)
        assert third.begun.wait(30), machine.log()
        machine.system.power_off()
        assert not arrived(machine, seaweed, "big.bin", content)
        third.over.set()
        machine.system.boot()
        until(lambda: arrived(machine, seaweed, "big.bin", content), 60)
        until(lambda: not seaweed.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads"), 20)
    assert machine.quaymaster("audit", "verify").status == 0


def test_a_stop_that_takes_longer_than_systemds_limit_is_granted(machine: Machine, seaweed: Seaweed) -> None:
    with third_part_hangs(machine, seaweed) as third:
        text = machine.system.path("/etc/quaymaster/quaymaster.toml").read_text()
        machine.system.put("/etc/quaymaster/quaymaster.toml", f'[service]\nstop_timeout = "6s"\n{text}')
        machine.drop_in("TimeoutStopSec=2s", name="stop")
        machine.start()
        machine.land("big.bin", os.urandom(40 << 20))
        assert third.begun.wait(30), machine.log()
        machine.system.run("systemctl", "stop", "quaymaster")
        assert machine.system.show("quaymaster.service", "Result")["Result"] == "success", "it was not killed"
