"""Q4: no watch starves another, whatever it has waiting; and what is counted is counted right, in constant time."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quaymaster.model import FileVersion, Identity, Job, State
from quaymaster.store import Filter, Queue, Store, jobs
from quaymaster.store.turns import LOWER_EVERY

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path), create=True, clock=lambda: 1000.0)
    yield store
    store.close()


def land(store: Store, watch: str, sizes: Sequence[int], first: int = 0) -> None:
    store.enqueue(
        [
            FileVersion(watch, b"%07d" % (first + number), Identity(first + number, size, 1))
            for number, size in enumerate(sizes)
        ]
    )


def one_by_one(store: Store, count: int, *queues: Queue) -> list[Job]:
    return [job for _ in range(count) for job in store.claim(1, queues)]


def names(jobs: Sequence[Job]) -> str:
    return "".join(job.version.watch for job in jobs)


def test_a_single_file_waits_for_no_backlog(store: Store) -> None:
    """The promise of Q4, as it is said: a long backlog, and a file of another watch is delayed by no more than what
    is in flight already."""
    land(store, "busy", [4 * MIB] * 20_000)
    in_flight = store.claim(20)
    land(store, "quiet", [MIB])
    claimed_before = 0
    while store.claim(1)[0].version.watch != "quiet":
        claimed_before += 1
    print(f"claimed before the single file, with {len(in_flight)} in flight: {claimed_before} of 20,000")
    assert claimed_before <= 1


def test_watches_share_by_bytes_not_by_files(store: Store) -> None:
    land(store, "l", [64 * MIB] * 50)
    land(store, "s", [4 * MIB] * 2000)
    taken = [job for _ in range(40) for job in store.claim(10)]
    sizes = {watch: sum(j.version.size for j in taken if j.version.watch == watch) for watch in "ls"}
    print(f"bytes taken: {sizes}")
    assert abs(sizes["l"] - sizes["s"]) <= 0.15 * sizes["l"]


def test_files_without_content_take_turns_too(store: Store) -> None:
    land(store, "a", [0] * 50)
    land(store, "b", [0] * 50)
    assert names(store.claim(10)) == "ab" * 5


def test_small_files_that_travel_with_another_count_as_turns_of_their_watch(store: Store) -> None:
    land(store, "a", [1000] * 2000)
    land(store, "b", [1000] * 2000)
    assert names(store.claim(1)) == "a"
    assert len(store.claim_small("a", 100, 1000)) == 100
    assert names(one_by_one(store, 90)) == "b" * 90


def test_an_idle_watch_has_saved_nothing_up(store: Store) -> None:
    land(store, "a", [10 * MIB] * 200)
    land(store, "b", [10 * MIB] * 200)
    one_by_one(store, 100)
    land(store, "c", [10 * MIB] * 100)
    assert Counter(names(one_by_one(store, 30))) == {"a": 10, "b": 10, "c": 10}


def test_the_order_holds_across_a_restart(store: Store, tmp_path: Path) -> None:
    land(store, "a", [100 * MIB] + [MIB] * 50)
    land(store, "b", [MIB] * 50)
    store.claim(1)
    store.close()
    again = Store(str(tmp_path), create=True)
    assert names(again.claim(40)) == "b" * 40  # until it has had what "a" took in one go
    again.close()


def test_the_higher_priority_goes_first_and_the_lower_gets_one_turn_in_eight(store: Store) -> None:
    land(store, "h", [MIB] * 100)
    land(store, "l", [MIB] * 100)
    land(store, "m", [MIB] * 100)
    queues = Queue("l", -1), Queue("h", 5), Queue("m", 0)
    taken = names(one_by_one(store, 64, *queues))
    assert LOWER_EVERY == 8
    assert Counter(taken) == {"h": 56, "m": 4, "l": 4}
    assert taken.startswith("h" * 7)
    assert max(map(len, taken.replace("m", "l").split("l"))) == 7


def test_a_lower_priority_with_nothing_above_it_has_every_turn(store: Store) -> None:
    land(store, "l", [MIB] * 20)
    land(store, "k", [MIB] * 20)
    assert Counter(names(store.claim(20, (Queue("h", 5), Queue("l", -3), Queue("k", -3))))) == {"l": 10, "k": 10}


def test_smallest_first_within_a_watch(store: Store) -> None:
    land(store, "a", [5, 3, 9, 1, 3])
    land(store, "b", [5, 3, 9])
    taken = store.claim(8, (Queue("a", order="smallest"), Queue("b")))
    assert [j.version.size for j in taken if j.version.watch == "a"] == [1, 3, 3, 5, 9]
    assert [j.version.size for j in taken if j.version.watch == "b"] == [5, 3, 9]


def test_smallest_first_still_keeps_the_versions_of_a_file_in_order(store: Store) -> None:
    store.enqueue([FileVersion("a", b"x", Identity(1, 50, 1))])
    (older,) = store.claim(1)
    store.enqueue([FileVersion("a", b"x", Identity(1, 5, 2)), FileVersion("a", b"y", Identity(2, 20, 1))])
    store.release([older])
    found = [store.claim(1, (Queue("a", order="smallest"),)) for _ in range(3)]
    assert [[j.version.size for j in jobs] for jobs in found] == [[20], [50], []]


def test_no_step_takes_longer_when_more_waits_or_more_is_done(store: Store) -> None:
    """Counted in steps of SQLite's machine, so the same on every machine."""
    queues = Queue("a"), Queue("b", order="smallest")

    def steps(act: Callable[[Any], object]) -> int:
        taken = 0

        def step() -> int:
            nonlocal taken
            taken += 1
            return 0

        def run(t: Any) -> None:
            t.set_progress_handler(step, 1)
            act(t)
            t.set_progress_handler(None, 1)

        store._db.write(run)
        return taken

    def measured() -> dict[str, int]:
        return {
            "claim": steps(lambda t: jobs.claim(t, 3, 1000.0, queues)),
            "ready": steps(lambda t: jobs.ready(t, 1000.0)),
            "next retry": steps(jobs.next_retry),
            "counts": steps(jobs.count),
            "open": steps(jobs.count_open),
            "oldest": steps(jobs.oldest_open),
        }

    for watch in "ab":
        land(store, watch, [MIB] * 40)
        for job in store.claim(10, (Queue(watch),)):
            store.finish(job)
    few = measured()
    for watch in "ab":
        land(store, watch, [MIB] * 4000, first=100)
        store._db.write(lambda t: jobs.finish(t, [job.id for job in jobs.claim(t, 1000, 1000.0)], 1000.0))
    many = measured()
    print(few, many)
    assert all(many[name] <= 1.1 * few[name] + 20 for name in few), (few, many)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["land", "claim", "finish", "fail", "park", "release", "retry", "drop"]), st.integers(0, 5)
    ),
    max_size=40,
)


@given(ACTIONS)
@settings(max_examples=60, deadline=None)
def test_the_counts_are_those_of_the_jobs(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    store = Store(str(tmp_path_factory.mktemp("store")), create=True, clock=lambda: 1000.0)
    running: list[Job] = []
    for number, (action, choice) in enumerate(actions):
        if action == "land":
            land(store, "ab"[choice % 2], [choice * 10], first=number % 7)
        elif action == "claim":
            running += store.claim(choice)
        elif action == "retry":
            store.retry(Filter())
        elif action == "drop":
            store.drop(Filter(limit=2))
        elif running:
            job = running.pop()
            match action:
                case "finish":
                    store.finish(job)
                case "fail":
                    store.fail(job, State.WAITING, "unreachable", "no", retry_at=2000.0)
                case "park":
                    store.fail(job, State.PARKED, "conflict", "no")
                case _:
                    store.release([job])
    expected: dict[str, dict[State, tuple[int, int]]] = {}
    for job in store.jobs(Filter()):
        of_watch = expected.setdefault(job.version.watch, {})
        jobs, size = of_watch.get(job.state, (0, 0))
        of_watch[job.state] = (jobs + 1, size + job.version.size)
    assert store.counts() == expected
    open_now = {s: sum(w.get(s, (0, 0))[0] for w in expected.values()) for s in State if not s.final}
    assert store.open_jobs() == open_now
    oldest = [job.queued_at for job in store.jobs(Filter()) if not job.state.final]
    assert store.oldest_open() == (min(oldest) if oldest else None)
    store.close()


def test_an_earlier_database_is_counted_when_it_is_migrated(store: Store, tmp_path: Path) -> None:
    land(store, "a", [10] * 5)
    store.finish(store.claim(1)[0])
    before = store.counts()
    store.close()
    with sqlite3.connect(tmp_path / "quaymaster.db") as connection:
        for name in ("jobs_added", "jobs_moved", "jobs_removed", "watches_tallied"):
            connection.execute(f"DROP TRIGGER {name}")
        for name in ("tallies", "turns", "units", "hooks", "outbox"):
            connection.execute(f"DROP TABLE {name}")
        for name in ("jobs_smallest", "jobs_open_since", "jobs_stuck"):
            connection.execute(f"DROP INDEX {name}")
        for name in ("mirror_objects", "mirror_units"):
            connection.execute(f"DROP TABLE {name}")
        for name in ("served", "kind"):
            connection.execute(f"ALTER TABLE watches DROP COLUMN {name}")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    again = Store(str(tmp_path), create=True)
    assert again.counts() == before
    assert len(again.claim(9)) == 4
    again.close()
