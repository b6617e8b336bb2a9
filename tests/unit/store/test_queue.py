"""Q1-Q3, Q5: the queue forgets nothing and makes one job of one version."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quaymaster.errors import TransferError
from quaymaster.model import FileVersion, Identity, Stage, State
from quaymaster.store import Filter, Queue, Store
from quaymaster.store.db import Database


class Clock:
    """A wall clock at ``now``; the monotonic one goes on when it is set."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.set_by = 0.0

    def __call__(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now - self.set_by

    def set(self, seconds: float) -> None:
        self.now += seconds
        self.set_by += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(str(tmp_path), create=True, clock=clock, monotonic=clock.monotonic)
    yield store
    store.close()


def version(
    path: bytes = b"a.fastq", *, watch: str = "w", inode: int = 1, size: int = 10, mtime_ns: int = 5
) -> FileVersion:
    return FileVersion(watch, path, Identity(inode, size, mtime_ns))


def states(store: Store) -> list[State]:
    return [job.state for job in store.jobs(Filter())]


def test_a_version_seen_a_hundred_times_is_one_job(store: Store) -> None:
    assert sum(store.enqueue([version()] * 10) for _ in range(10)) == 1
    assert len(store.jobs(Filter())) == 1
    assert store.known("w", [(b"a.fastq", version().identity), (b"b", version().identity)]) == [True, False]


def test_a_job_that_may_have_set_its_source_aside_comes_to_its_end_before_a_newer_version(store: Store) -> None:
    """Nobody else would ever look for the hidden name."""
    store.enqueue([version()])
    (job,) = store.claim(5)
    store.checkpoint(job, Stage.DISPOSE, {"disposing": True})
    store.recover()
    store.enqueue([version(mtime_ns=6)])
    assert states(store) == [State.QUEUED, State.QUEUED]
    (first,) = store.claim(5)
    assert first.id == job.id
    assert store.claim(5) == []
    store.finish(first, "deleted")
    (second,) = store.claim(5)
    assert second.version.identity.mtime_ns == 6


def test_only_jobs_that_were_killed_while_they_published_are_looked_after(store: Store) -> None:
    for number, left in enumerate([{}, {"publishing": {"keys": {}}}, {"source_sha256": "ab"}]):
        store.enqueue([version(mtime_ns=number)])
        (job,) = store.claim(1)
        store.checkpoint(job, Stage.PUBLISH, left)
        store.recover()
    store.enqueue([version(mtime_ns=9)])
    (found,) = store.unrecorded(version(mtime_ns=9))
    assert found.version.identity.mtime_ns == 1
    assert store.unrecorded(version(b"other")) == []
    store.forget_publication(found)
    assert store.unrecorded(version(mtime_ns=9)) == []


def test_an_older_job_of_the_same_file_that_failed_while_it_published_is_looked_after(store: Store) -> None:
    """It had failed when the newer version was queued already, so that nothing superseded it."""
    for number, state in enumerate((State.WAITING, State.PARKED)):
        path = b"%d" % number
        store.enqueue([version(path)])
        (older,) = store.claim(1)
        store.checkpoint(older, Stage.PUBLISH, {"publishing": {"keys": {}}})
        store.enqueue([version(path, mtime_ns=6)])
        store.fail(older, state, "unreachable", "no", retry_at=1e9 if state is State.WAITING else None)
        assert store.unrecorded(version(path, mtime_ns=6)) == [], "while no newer one runs, it runs again itself"
        (newer,) = store.claim(1)
        (found,) = store.unrecorded(newer.version)
        assert found.id == older.id
        store.forget_publication(found)
        (over,) = store.jobs(Filter(ids=(older.id,)))
        assert (over.state, over.retry_at, over.checkpoint) == (State.SUPERSEDED, None, {})
        assert store.unrecorded(newer.version) == []
        assert store.jobs(Filter(ids=(newer.id,)))[0].state is State.RUNNING


def test_a_job_that_may_have_set_its_source_aside_comes_to_its_end(store: Store) -> None:
    """It has recorded what it published, and nobody else would look for the hidden name of its source."""
    store.enqueue([version()])
    (older,) = store.claim(1)
    store.checkpoint(older, Stage.DISPOSE, {"publishing": {"keys": {}}, "disposing": True})
    store.enqueue([version(mtime_ns=6)])
    store.fail(older, State.WAITING, "source-unavailable", "no", retry_at=1e9)
    (newer,) = store.claim(1)
    assert store.unrecorded(newer.version) == []


def test_a_newer_job_is_no_older_publication(store: Store) -> None:
    """The one that runs looks back only: a later version replaces what it is going to put there."""
    store.enqueue([version()])
    (running,) = store.claim(1)
    store.enqueue([version(mtime_ns=6)])
    newer = store.jobs(Filter(states=(State.QUEUED,)))[0]
    store.checkpoint(newer, Stage.PUBLISH, {"publishing": {"keys": {}}})
    assert store.unrecorded(running.version) == []


def test_a_version_that_was_delivered_is_not_queued_again(store: Store) -> None:
    store.enqueue([version()])
    (job,) = store.claim(5)
    store.finish(job)
    assert store.enqueue([version()]) == 0
    assert states(store) == [State.DONE]


def test_a_newer_version_supersedes_the_older_that_waits(store: Store) -> None:
    store.enqueue([version(size=1)])
    assert store.enqueue([version(size=2)]) == 1
    assert states(store) == [State.SUPERSEDED, State.QUEUED]


def test_an_old_version_seen_late_does_not_supersede_the_newer(store: Store) -> None:
    store.enqueue([version(size=1)])
    store.finish(store.claim(1)[0])
    store.enqueue([version(size=2)])
    assert store.enqueue([version(size=1)]) == 0
    assert states(store) == [State.DONE, State.QUEUED]


def test_a_superseded_version_that_is_back_is_queued_again(store: Store) -> None:
    store.enqueue([version(size=1)])
    store.enqueue([version(size=2)])
    assert store.known("w", [(b"a.fastq", version(size=1).identity)]) == [False]
    assert store.enqueue([version(size=1)]) == 1
    assert states(store) == [State.QUEUED, State.SUPERSEDED]


def test_a_running_job_is_left_to_find_out_by_itself(store: Store) -> None:
    store.enqueue([version(size=1)])
    store.claim(1)
    store.enqueue([version(size=2)])
    assert states(store) == [State.RUNNING, State.QUEUED]


def test_a_newer_version_waits_while_the_older_one_runs(store: Store) -> None:
    store.enqueue([version(size=1), version(b"other")])
    older, _ = store.claim(2)
    store.enqueue([version(size=2), version(b"other", watch="elsewhere")])
    assert [job.version.watch for job in store.claim(5)] == ["elsewhere"]
    store.finish(older)
    assert [job.version.size for job in store.claim(5)] == [2]


def test_where_inode_numbers_pass_a_version_is_told_by_size_and_time(store: Store) -> None:
    store.enqueue([version(inode=1)])
    again = [(b"a.fastq", version(inode=2).identity), (b"a.fastq", version(inode=1, size=11).identity)]
    assert store.known("w", again) == [False, False]
    assert store.known("w", again, inodes=False) == [True, False]


def test_one_busy_watch_does_not_starve_another(store: Store) -> None:
    store.enqueue([version(b"busy-%d" % i, watch="busy", inode=i) for i in range(100)])
    store.enqueue([version(watch="quiet")])
    claimed = store.claim(4)
    assert [job.version.watch for job in claimed] == ["busy", "quiet", "busy", "busy"]


def test_oldest_first_within_a_watch_and_nothing_twice(store: Store) -> None:
    store.enqueue([version(b"%03d" % i, inode=i) for i in range(10)])
    first, second = store.claim(4), store.claim(100)
    assert [j.version.path for j in first + second] == [b"%03d" % i for i in range(10)]
    assert store.claim(1) == []


def test_only_the_named_watches_are_claimed_from(store: Store) -> None:
    store.enqueue([version(watch="gone"), version(watch="here")])
    assert [j.version.watch for j in store.claim(9, (Queue("here"),))] == ["here"]


def test_a_failed_job_waits_until_its_time_and_keeps_its_checkpoint(store: Store, clock: Clock) -> None:
    store.enqueue([version()])
    (job,) = store.claim(1)
    store.checkpoint(job, Stage.TRANSFER, {"staged_sha256": "ab"})
    store.fail(job, State.WAITING, "unreachable", "no answer", retry_at=1010.0)
    assert store.claim(1) == []
    assert store.next_retry() == 1010.0
    clock.now = 1010.0
    (again,) = store.claim(1)
    assert (again.attempts, again.strikes, again.checkpoint) == (1, 0, {"staged_sha256": "ab"})


def waiting_and_postponed(store: Store, clock: Clock) -> None:
    """Job 1 waits a month before its source is disposed of, since yesterday; job 2 has just failed."""
    store.enqueue([version()])
    (delivered,) = store.claim(1)
    store.postpone(delivered, clock.now + 30 * 86_400)
    clock.now += 86_400
    store.enqueue([version(b"b", inode=2)])
    (failed,) = store.claim(1)
    store.fail(failed, State.WAITING, "unreachable", "no answer", retry_at=clock.now + 10)
    assert store.claim(2) == []


def test_after_the_clock_was_set_back_a_failed_job_waits_for_no_past_time(store: Store, clock: Clock) -> None:
    """Also while another one waits for longer, from before."""
    waiting_and_postponed(store, clock)
    clock.set(-7200)
    assert [job.id for job in store.claim(2)] == [2]
    assert [job.state for job in store.jobs(Filter())] == [State.WAITING, State.RUNNING]


def test_a_clock_that_was_set_back_while_nothing_ran_is_noticed_too(store: Store, clock: Clock, tmp_path: Path) -> None:
    waiting_and_postponed(store, clock)
    store.close()
    clock.set(-7200)
    again = Store(str(tmp_path), create=True, clock=clock, monotonic=clock.monotonic)
    assert [job.id for job in again.claim(2)] == [2]
    again.close()


def test_a_clock_that_was_not_set_back_wakes_nobody(store: Store, clock: Clock) -> None:
    waiting_and_postponed(store, clock)
    for seconds in (0.5, -0.5, 5):  # 5 s after they were queued, and adjusted a little
        clock.set(seconds)
        assert store.claim(2) == []


def test_a_parked_job_stays_listed_until_an_operator_decides(store: Store, clock: Clock) -> None:
    store.enqueue([version(), version(b"b", inode=2)])
    for job in store.claim(2):
        store.fail(job, State.PARKED, "permission-denied", "no", strike=True)
    clock.now = 1e9
    assert store.claim(1) == []
    assert store.drop(Filter(path=b"b")) == [2]
    assert store.retry(Filter(states=(State.PARKED,))) == [1]
    (job,) = store.claim(5)
    assert (job.id, job.attempts, job.strikes) == (1, 0, 0)
    kinds = [entry.fields["kind"] for entry in store.history(job)]
    assert kinds == ["parked", "retried"]
    assert store.known("w", [(b"b", version(inode=2).identity)]) == [True], "a dropped version is not taken again"


def test_an_operators_word_on_very_many_jobs_does_not_keep_the_queue_for_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their number, each commit changes some of them only: a service that runs comes in between."""
    versions = [version(b"%d" % number, inode=number) for number in range(1, 1_201)]
    store.enqueue(versions)
    commits: list[int] = []
    commit = Database._commit

    def counted(self: Database, batch: list[Any]) -> None:
        commit(self, batch)
        commits.append(len(batch))

    monkeypatch.setattr(Database, "_commit", counted)
    assert len(store.drop(Filter())) == 1_200
    assert len(store.retry(Filter())) == 1_200
    assert len(commits) >= 4
    assert [job.state for job in store.jobs(Filter())] == [State.QUEUED] * 1_200
    assert store.custody_broken_at() is None


def test_what_ran_when_the_service_died_is_queued_again(store: Store) -> None:
    store.enqueue([version(), version(b"b", inode=2)])
    store.claim(1)
    assert store.recover() == 1
    assert states(store) == [State.QUEUED, State.QUEUED]


def test_a_released_or_postponed_job_is_not_counted_as_failed(store: Store, clock: Clock) -> None:
    store.enqueue([version()])
    store.release(store.claim(1))
    (job,) = store.claim(1)
    store.postpone(job, 2000.0)
    clock.now = 2000.0
    assert store.claim(1)[0].attempts == 0


def test_a_rename_is_recognised_by_inode_size_and_mtime(store: Store) -> None:
    store.enqueue([version(b"old", inode=7)])
    (job,) = store.claim(1)
    assert store.renamed(job) is None
    store.enqueue([version(b"other", inode=8), version(b"new", inode=7)])
    assert store.renamed(job) == b"new"


def test_every_state_and_stage_of_the_model_is_allowed_by_the_schema_and_no_other() -> None:
    sql = resources.files("quaymaster.store").joinpath("migrations/0001_journey.sql").read_text()
    for column, words in (("state", State), ("stage", Stage)):
        listed = re.search(rf"CHECK \({column} IN \(([^)]*)\)\)", sql)
        assert listed
        assert re.findall(r"'(\w+)'", listed[1]) == [word.value for word in words]


def test_filters_hold_together_and_a_directory_means_what_is_below_it(store: Store) -> None:
    paths = [b"run/a", b"run/b/c", b"run0", b"run-x/a", b"run"]
    store.enqueue([version(p, inode=i) for i, p in enumerate(paths)])
    assert [j.version.path for j in store.jobs(Filter(path=b"run"))] == [b"run/a", b"run/b/c", b"run"]
    assert [j.id for j in store.jobs(Filter(limit=2))] == [5, 4]
    assert store.jobs(Filter(watch="other")) == []


@given(
    path=st.binary(min_size=1, max_size=300).filter(lambda p: b"\0" not in p),
    inode=st.integers(0, 2**64 - 1), size=st.integers(0, 2**63 - 1), mtime_ns=st.integers(-(2**62), 2**62),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_any_name_and_any_64_bit_inode_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, path: bytes, inode: int, size: int, mtime_ns: int
) -> None:
    store = Store(str(tmp_path_factory.mktemp("state")), create=True)
    wanted = version(path, inode=inode, size=size, mtime_ns=mtime_ns)
    store.enqueue([wanted])
    assert store.jobs(Filter())[0].version == wanted
    assert store.known("w", [(path, wanted.identity)]) == [True]
    store.close()


def test_writers_that_meet_are_committed_together_and_each_gets_its_own_result(store: Store) -> None:
    results: dict[int, int] = {}

    def work(number: int) -> None:
        for i in range(20):
            results[number * 100 + i] = store.enqueue([version(b"%d-%d" % (number, i), inode=number * 100 + i)])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results.values()) == {1}
    assert len(results) == len(store.jobs(Filter())) == 160


def test_one_writer_that_raises_is_rolled_back_alone(store: Store) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(t: object) -> None:
        inside.set()
        go_on.wait(10)

    def failing(t: object) -> None:
        t.execute("INSERT INTO reports VALUES ('x', '{}', 1)")  # type: ignore[attr-defined]
        raise TransferError("refused")

    errors: list[BaseException] = []

    def try_failing() -> None:
        try:
            store._db.write(failing)
        except TransferError as error:
            errors.append(error)

    first = threading.Thread(target=lambda: store._db.write(slow))
    first.start()
    inside.wait(10)
    others = [threading.Thread(target=try_failing), threading.Thread(target=lambda: store.enqueue([version()]))]
    for thread in others:
        thread.start()
    while len(store._db._pending) < 2:
        pass
    go_on.set()
    for thread in [first, *others]:
        thread.join()
    assert [str(e) for e in errors] == ["refused"]
    assert store.reports() == {}
    assert len(store.jobs(Filter())) == 1
