"""S1: signs of life are given while the work goes on, and withheld while something stands still that should move."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quaymaster.config import Config, load
from quaymaster.config.machine import Machine
from quaymaster.intake.intake import WatchStatus
from quaymaster.model import FileVersion, Identity, Job, Stage, State
from quaymaster.pipeline.worker import Running
from quaymaster.service import standing
from quaymaster.service.systemd import taking_time, watchdog_period
from quaymaster.service.watchdog import SLOWEST_DISK, Watchdog, on_network

MIB = 1 << 20
CONFIG = """
[destination.nas]
type = "directory"
path = "/nas/archive"
[destination.local]
type = "directory"
path = "/srv/archive"
[destination.s3]
type = "s3"
bucket = "lab"
[destination.beside]
type = "beside"
[watch.plain]
path = "/srv/plain"
destinations = ["local"]
[watch.squeezed]
path = "/srv/squeezed"
destinations = ["local"]
compress = { format = "zstd", timeout = "2h" }
[watch.away]
path = "/nas/landing"
destinations = ["local"]
[watch.to_nas]
path = "/srv/to_nas"
destinations = ["local", "nas"]
[watch.to_s3]
path = "/srv/to_s3"
destinations = ["s3"]
[watch.swap]
path = "/nas/swap"
destinations = ["beside"]
compress = "zstd"
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "quaymaster.toml").write_text(CONFIG)
    return load(str(tmp_path / "quaymaster.toml"), {}, Machine(8 << 30, 4))


@pytest.fixture
def watchdog() -> Watchdog:
    return Watchdog(600.0, lambda path: path.startswith("/nas/"))


def running(watch: str, stage: Stage = Stage.TRANSFER, *, size: int = 1000, number: int = 7) -> dict[int, Running]:
    version = FileVersion(watch, b"a\n\xff", Identity(1, size, 1))
    job = Job(number, version, State.RUNNING, stage, 0, 0, None, "", "", 0.0, 0.0, None)
    return {number: Running(job, since=0.0, stage=stage, moved_at=1000.0)}


def test_a_job_that_stands_still_is_found_and_named_on_one_line(config: Config, watchdog: Watchdog) -> None:
    assert watchdog.stalls(config, running("plain"), [], now=1299.0) == []
    (stall,) = watchdog.stalls(config, running("plain"), [], now=1302.0)
    assert (stall.what, stall.job) == (r"job 7 (plain/a\n\udcff) in stage transfer", 7)
    assert stall.still == pytest.approx(302.0)


def test_any_progress_starts_the_wait_anew(config: Config, watchdog: Watchdog) -> None:
    jobs = running("plain")
    jobs[7].moved_at = 5000.0
    assert watchdog.stalls(config, jobs, [], now=5299.0) == []


def test_a_stage_that_may_read_the_whole_file_again_has_the_time_for_it(config: Config, watchdog: Watchdog) -> None:
    large = running("plain", Stage.PUBLISH, size=SLOWEST_DISK * 3600)
    assert watchdog.stalls(config, large, [], now=1000.0 + 3600 + 299) == []
    assert watchdog.stalls(config, large, [], now=1000.0 + 3600 + 301) != []


def test_the_configured_time_limit_of_the_compressor_ends_first(config: Config, watchdog: Watchdog) -> None:
    assert watchdog.stalls(config, running("squeezed"), [], now=1000.0 + 7200 + 29) == []
    assert watchdog.stalls(config, running("squeezed"), [], now=1000.0 + 7200 + 32) != []


def test_the_limits_of_s3_requests_end_first_and_a_slow_line_is_believed_in(config: Config, watchdog: Watchdog) -> None:
    small, many = running("to_s3"), {}
    assert watchdog.stalls(config, small, [], now=1000.0 + 3 * 130 + 29) == []
    assert watchdog.stalls(config, small, [], now=1000.0 + 3 * 130 + 32) != []
    for number in range(20):
        many |= running("to_s3", size=1024 * MIB, number=number)
    hours = 20 * 128 * MIB / (256 << 10)
    assert watchdog.stalls(config, many, [], now=1000.0 + hours) == []
    assert len(watchdog.stalls(config, many, [], now=1000.0 + hours + 420 + 300)) == 20


@pytest.mark.parametrize(
    ("watch", "stage", "outside"),
    [
        ("away", Stage.FETCH, True),
        ("away", Stage.TRANSFER, False),  # from its staged copy to a local disk
        ("away", Stage.DISPOSE, True),
        ("to_nas", Stage.TRANSFER, True),
        ("to_nas", Stage.PUBLISH, True),
        ("swap", Stage.PUBLISH, True),
        ("plain", Stage.DISPOSE, False),
    ],
)
def test_a_hung_network_mount_never_counts(
    config: Config, watchdog: Watchdog, watch: str, stage: Stage, outside: bool
) -> None:
    assert (watchdog.stalls(config, running(watch, stage), [], now=1e6) == []) is outside


def test_what_is_with_the_threads_of_a_network_watch_never_counts(config: Config, watchdog: Watchdog) -> None:
    jobs = running("away", Stage.TRANSFER)
    jobs[7].apart = True
    assert watchdog.stalls(config, jobs, [], now=1e6) == []


def test_a_watch_counts_when_its_filesystem_is_local(config: Config, watchdog: Watchdog) -> None:
    hung = [WatchStatus(name, heartbeat=1000.0) for name in ("plain", "away")]
    assert watchdog.stalls(config, {}, hung, now=1299.0) == []
    (stall,) = watchdog.stalls(config, {}, hung, now=1301.0)
    assert stall.what == "the watching of /srv/plain"
    assert Watchdog(6.0).stalls(config, {}, hung[:1], now=1029.0) == [], "a quiet watch has a slow pulse"


def test_signs_are_due_four_times_a_period_and_never_without_one() -> None:
    watchdog = Watchdog(600.0)
    assert watchdog.due(0.0)
    watchdog.gave(0.0)
    assert not watchdog.due(149.0)
    assert watchdog.due(150.0)
    assert not Watchdog(0.0).due(1e9)


def test_the_period_is_systemds_and_only_for_the_process_it_is_meant_for() -> None:
    assert watchdog_period({"WATCHDOG_USEC": "600000000", "WATCHDOG_PID": "12"}, 12) == 600.0
    assert watchdog_period({"WATCHDOG_USEC": "600000000"}, 12) == 600.0
    assert watchdog_period({"WATCHDOG_USEC": "600000000", "WATCHDOG_PID": "13"}, 12) == 0.0
    assert watchdog_period({"WATCHDOG_USEC": "soon"}, 12) == 0.0
    assert watchdog_period({}, 12) == 0.0


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A socket in systemd's place; a function that returns the next message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield lambda: listener.recv(4096).decode()


def test_more_time_is_asked_for_again_and_again_while_it_takes_long(heard: Callable[[], str]) -> None:
    with taking_time(3600, asked=30.0, again=0.01):
        assert [heard() for _ in range(3)] == ["EXTEND_TIMEOUT_USEC=30000000"] * 3
    assert not [thread for thread in threading.enumerate() if thread.name == "taking-time"]


def test_a_start_that_never_ends_is_not_excused_for_ever(heard: Callable[[], str]) -> None:
    began = time.monotonic()
    with taking_time(0.05, asked=30.0, again=0.01):
        while any(thread.name == "taking-time" for thread in threading.enumerate()):
            assert time.monotonic() - began < 20
    assert heard().startswith("EXTEND_TIMEOUT_USEC=")


def test_the_line_of_systemctl_status_tells_how_the_work_stands() -> None:
    watches = [WatchStatus("a", state="watching"), WatchStatus("b", state="outage")]
    counts = {State.QUEUED: 1200, State.PARKED: 1, State.RUNNING: 3}
    assert standing.line(3, 12.5 * MIB, counts, watches) == (
        "3 running at 12.5 MiB/s, 1,200 queued, 1 parked; 1 of 2 watches is away"
    )
    assert standing.line(0, 0.0, {}, watches[:1]) == "idle"
    assert standing.line(0, 0.0, {}, [], "standing still: job 7").endswith("; standing still: job 7")


def test_the_rate_counts_each_byte_once_in_flight_and_at_delivery() -> None:
    from quaymaster.model import Event

    rate, jobs = standing.Rate(), running("plain")
    jobs[7].stored_bytes = 60
    assert rate.per_second(jobs, now=0.0) == 6.0
    jobs[7] = replace(jobs[7], stored_bytes=80)
    assert rate.per_second(jobs, now=1.0) == 8.0
    rate.delivered(Event("delivered", "", job=7, size=100))
    assert rate.per_second({}, now=2.0) == 10.0
    rate.delivered(Event("delivered", "", job=8, size=50))  # too quick to have been seen in flight
    assert rate.per_second({}, now=3.0) == 15.0
    assert rate.per_second({}, now=60.0) == 0.0


def test_a_local_directory_is_not_taken_for_a_network_mount() -> None:
    assert on_network("/proc/self") is False
