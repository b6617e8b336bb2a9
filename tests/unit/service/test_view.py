"""The read model: every figure is what happened, and none of them costs more with a longer queue."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from quaymaster.config import Config, load
from quaymaster.model import Event, FileVersion, Identity, Job, Stage, State
from quaymaster.pipeline.worker import Running
from quaymaster.service.view.live import Live
from quaymaster.service.view.snapshot import progress, snapshot, throughput
from quaymaster.store import Filter, Store

MIB = 1 << 20


class Clock:
    def __init__(self, now: float = 1_700_000_040.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def live(clock: Clock) -> Live:
    return Live(clock, clock)


def running(number: int, size: int, *, source: int = 0, stored: int = 0, stage: Stage = Stage.TRANSFER) -> Running:
    version = FileVersion("landing", b"f%d" % number, Identity(number, size, 1))
    job = Job(number, version, State.RUNNING, stage, 0, 0, None, "", "", 1.0, 1.0, None)
    return Running(job, 1.0, stage, source, stored)


def delivered(number: int, stored: int, destination: str = "archive") -> Event:
    return Event("delivered", "", watch="landing", job=number, destination=destination, size=stored)


def report(live: Live) -> dict[str, object]:
    live._reported_at = float("-inf")
    said = live.rates()
    assert said is not None
    return said


def test_a_file_in_parts_counts_as_it_moves_and_once_in_all(live: Live, clock: Clock) -> None:
    job = running(1, 100 * MIB)
    for step in range(1, 5):
        clock.now += 1
        job.source_bytes, job.stored_bytes = step * 20 * MIB, step * 5 * MIB
        live.tick({1: job})
    clock.now += 1
    live.heard(delivered(1, 25 * MIB), {1: job})
    live.tick({})
    rates = throughput((clock.now, report(live)), clock.now)
    assert rates["source_bytes_per_second"]["1m"] == pytest.approx(100 * MIB / 5)
    assert rates["stored_bytes_per_second"]["15m"] == pytest.approx(25 * MIB / 5)
    assert rates["files_per_second"]["1m"] == pytest.approx(1 / 5)
    assert rates["ratio"] == pytest.approx(4)
    assert sum(minute["source_bytes"] for minute in rates["minutes"]) == 100 * MIB


def test_a_file_too_small_to_be_seen_running_counts_too(live: Live, clock: Clock) -> None:
    for number in range(1000):
        live.heard(delivered(number, 50), {number: running(number, 100)})
    live.tick({})
    clock.now += 10
    rates = throughput((clock.now, report(live)), clock.now)
    assert rates["files_per_second"]["1m"] == pytest.approx(100)
    assert rates["source_bytes_per_second"]["1m"] == pytest.approx(10_000)


def test_a_file_for_two_destinations_was_read_once_and_sent_twice(live: Live, clock: Clock) -> None:
    job = running(1, 100)
    live.heard(delivered(1, 40, "archive"), {1: job})
    live.heard(delivered(1, 60, "nas"), {1: job})
    clock.now += 10
    said = report(live)
    rates = throughput((clock.now, said), clock.now)
    assert rates["source_bytes_per_second"]["1m"] == pytest.approx(10)
    assert rates["files_per_second"]["1m"] == pytest.approx(0.1)
    assert {(d["destination"], d["files"], d["stored_bytes"]) for d in said["delivered"]} == {
        ("archive", 1, 40),
        ("nas", 1, 60),
    }


def test_rates_fall_to_nothing_by_themselves_after_the_last_report(live: Live, clock: Clock) -> None:
    live.heard(delivered(1, 10), {1: running(1, 600)})
    said = (clock.now, report(live))
    assert live.rates() is None, "nothing moved since: an idle service writes nothing"
    assert throughput(said, clock.now + 30)["source_bytes_per_second"]["1m"] > 0
    assert throughput(said, clock.now + 90)["source_bytes_per_second"] == {
        "1m": 0,
        "15m": pytest.approx(600 / 90, rel=0.5),
    }
    assert throughput(said, clock.now + 3600)["source_bytes_per_second"]["15m"] == 0
    assert throughput(said, clock.now + 4000)["ratio"] is None


def test_what_is_kept_is_bounded(live: Live, clock: Clock) -> None:
    for number in range(3 * 3600):
        clock.now += 1
        live.heard(delivered(number, 1), {number: running(number, 1)})
        live.tick({})
    said = report(live)
    assert len(said["minutes"]) <= 60
    assert len(said["slots"]) <= 13
    assert not live._counted
    assert not live._finished
    rates = throughput((clock.now, said), clock.now)
    assert len(rates["minutes"]) == 60
    assert rates["files_per_second"]["1m"] == pytest.approx(1, rel=0.1)
    assert rates["files_per_second"]["15m"] == pytest.approx(1, rel=0.1)


def test_a_restart_leaves_no_gap_in_the_last_hour(live: Live, clock: Clock) -> None:
    live.heard(delivered(1, 10), {1: running(1, 600)})
    said = report(live)
    clock.now += 120
    again = Live(clock, clock)
    again.remember(said)
    again.heard(delivered(2, 10), {2: running(2, 600)})
    rates = throughput((clock.now, report(again)), clock.now)
    assert sum(minute["files"] for minute in rates["minutes"]) == 2


def test_reports_are_at_most_every_ten_seconds(live: Live, clock: Clock) -> None:
    said = 0
    for number in range(60):
        clock.now += 1
        live.heard(delivered(number, 1), {number: running(number, 1)})
        said += live.rates() is not None
    assert said == 6


def test_the_pace_of_a_job_is_that_of_its_last_seconds_and_of_its_stage(live: Live, clock: Clock) -> None:
    job = running(1, 1000, stage=Stage.FETCH)
    for _ in range(30):
        clock.now += 1
        job.source_bytes += 30
        live.tick({1: job})
    assert live.progress({1: job})["1"]["rate"] == pytest.approx(30)
    job.stage, job.source_bytes = Stage.TRANSFER, 0
    clock.now += 1
    live.tick({1: job})
    assert live.progress({1: job})["1"]["rate"] is None
    clock.now += 2
    job.source_bytes = 20
    live.tick({1: job})
    assert live.progress({1: job})["1"]["rate"] == pytest.approx(10)


# -- the snapshot --


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "landing").mkdir()
    (tmp_path / "quaymaster.toml").write_text(
        f"""
        [service]
        state_dir = "{tmp_path}/state"
        staging_dir = "{tmp_path}/staging"
        [destination.archive]
        type = "directory"
        path = "{tmp_path}/archive"
        [watch.landing]
        path = "{tmp_path}/landing"
        destinations = ["archive"]
        """
    )
    return load(str(tmp_path / "quaymaster.toml"), {})


@pytest.fixture
def store(config: Config) -> Store:
    store = Store(config.service.state_dir, create=True)
    yield store
    store.close()


def queue(store: Store, number: int, size: int = 100, first: int = 0) -> None:
    store.enqueue([FileVersion("landing", b"q%d" % n, Identity(n, size, 1)) for n in range(first, first + number)])


def test_a_running_job_says_how_long_it_will_take(config: Config, store: Store) -> None:
    queue(store, 3, 1000)
    (job,) = store.claim(1)
    said = {"stage": "transfer", "source_bytes": 400, "stored_bytes": 100, "size": 1000, "since": 1.0, "rate": 20.0}
    store.report("progress", {"jobs": {str(job.id): said}})
    now = time.time()
    store.report(
        "rates", {"since": now - 50, "slots": [[now - 20, 1, 3000, 500]], "minutes": [[now - 20, 1, 3000, 500]]}
    )
    found = snapshot(config, store, 1, now)
    (one,) = found["running"]
    assert (one["ratio"], one["rate"], one["eta_seconds"]) == (4.0, 20.0, 30.0)
    assert found["rates"]["source_bytes_per_second"]["1m"] == pytest.approx(60, rel=0.1)
    assert found["eta_seconds"] == pytest.approx(2600 / 60, rel=0.1)
    assert progress(store, job.id, 1, now)["eta_seconds"] == 30.0
    assert progress(store, 2, 1, now)["state"] == "queued"
    assert progress(store, 999, 1, now) is None


def test_what_waits_and_what_is_parked_is_told_by_its_error_with_when_it_goes_on(config: Config, store: Store) -> None:
    queue(store, 5)
    for at, job in enumerate(store.claim(4)):
        if at < 3:
            store.fail(job, State.WAITING, "unreachable", f"no answer {at}", retry_at=5000.0 + at)
        else:
            store.fail(job, State.PARKED, "conflict", "in the way")
    found = snapshot(config, store, None, time.time())
    (waiting,), (parked,) = found["waiting"], found["parked"]
    assert (waiting["error_code"], waiting["jobs"], waiting["bytes"], waiting["next_retry"]) == (
        "unreachable", 3, 300, 5000.0,
    )  # fmt: skip
    assert waiting["error"] == "no answer 2"
    assert waiting["newest"]["id"] == 3
    assert (parked["error_code"], parked["jobs"], parked["next_retry"]) == ("conflict", 1, None)
    assert found["next_retry"] == 5000.0


def test_a_paused_watch_says_since_when_and_by_whom_and_does_not_count_in_the_time_left(
    config: Config, store: Store
) -> None:
    queue(store, 2)
    assert store.pause(["landing"], "anna") == ["landing"]
    assert store.pause(["landing"], "bert") == []
    now = time.time()
    found = snapshot(config, store, 1, now)
    assert found["watches"][0]["paused"]["by"] == "anna"
    assert found["watches"][0]["paused"]["since"] == pytest.approx(now, abs=5)
    assert found["watches"][0]["oldest_queued"] == pytest.approx(now, abs=5)
    assert found["eta_seconds"] == 0
    assert store.resume(["landing"], "carl") == ["landing"]
    kinds = [(entry.fields["kind"], entry.fields["by"]) for entry in store.custody()]
    assert kinds == [("paused", "anna"), ("resumed", "carl")]


def test_no_figure_looks_at_each_job(config: Config, store: Store) -> None:
    """With a queue ten times as long a snapshot takes about as long, and loads no more jobs."""
    queue(store, 50)
    for job in store.claim(30):
        store.fail(job, State.PARKED, "conflict", "x")
    loaded = []
    original = Store.jobs

    def counting(self: Store, which: Filter) -> list[Job]:
        found = original(self, which)
        loaded.append(len(found))
        return found

    Store.jobs = counting  # type: ignore[method-assign]
    try:
        snapshot(config, store, 1, time.time())
    finally:
        Store.jobs = original  # type: ignore[method-assign]
    assert sum(loaded) == 0


@pytest.mark.parametrize("states", [(State.RUNNING,), (State.PARKED,), (State.WAITING,), (State.WAITING, State.PARKED)])
def test_held_jobs_are_found_by_an_index(store: Store, states: tuple[State, ...]) -> None:
    from quaymaster.store import jobs

    with store._db.read() as t:
        conditions, values = jobs._where(Filter(states=states))
        plan = " ".join(
            row[3]
            for row in t.execute(f"EXPLAIN QUERY PLAN {jobs._SELECT} WHERE {conditions} ORDER BY jobs.id", values)
        )
    assert "SEARCH jobs USING" in plan
    assert "SCAN jobs" not in plan


def test_a_list_goes_on_page_by_page(store: Store) -> None:
    queue(store, 25)
    seen: list[int] = []
    while page := store.jobs(Filter(limit=10, before=seen[-1] if seen else 0)):
        seen += [job.id for job in page]
    assert seen == list(range(25, 0, -1))
