"""I2: what a pass asks of the queue takes no longer because much was delivered before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from quaymaster.model import FileVersion, Identity, State
from quaymaster.store import Downloaded, Filter, Store

DELIVERED = 2_000
"""Files: to look at each of them takes many thousand steps of SQLite's virtual machine."""
FEW_STEPS = 1_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(str(tmp_path), create=True, clock=lambda: 1000.0)) as store:
        store.adopt_all([(version(b"%d" % number), [], False) for number in range(DELIVERED)])  # in one commit
        yield store


def version(path: bytes, size: int = 10) -> FileVersion:
    return FileVersion("w", path, Identity(1, size, 1))


def row(path: bytes, size: int = 10) -> tuple[bytes, int, int, int]:
    return path, 1, size, 1


def steps(store: Store, act: Callable[[], object]) -> int:
    """How many steps SQLite took, in hundreds."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 100
        return 0

    with store._db.read() as reader:
        connections = (reader, store._db._writer)
    for connection in connections:
        connection.set_progress_handler(count, 100)
    try:
        act()
    finally:
        for connection in connections:
            connection.set_progress_handler(None, 100)
    return taken


def test_open_jobs_are_found_without_looking_at_those_that_are_done(store: Store) -> None:
    store.enqueue([version(name) for name in (b"parked", b"waiting", b"running")])
    parked, waiting, running = store.claim(3)
    store.fail(parked, State.PARKED, "permanent", "no")
    store.fail(waiting, State.WAITING, "unreachable", "not now", retry_at=2000.0)
    store.enqueue([version(b"queued")])
    found = {}
    assert steps(store, lambda: found.update(store.open_of("w"))) < FEW_STEPS
    expected = {parked.id: State.PARKED, waiting.id: State.WAITING, running.id: State.RUNNING}
    assert {**expected, running.id + 1: State.QUEUED} == found
    assert not store.open_of("another")


def test_what_a_mirror_no_longer_wants_is_given_up_without_looking_at_what_it_has(store: Store) -> None:
    store.enqueue([version(name) for name in (b"parked", b"waiting", b"running")])
    parked, waiting, _ = store.claim(3)
    store.fail(parked, State.PARKED, "permanent", "no")
    store.fail(waiting, State.WAITING, "unreachable", "not now", retry_at=2000.0)
    store.enqueue([version(b"queued"), version(b"wanted")])
    gone = []
    assert steps(store, lambda: gone.append(store.unlisted("w", {b"wanted"}))) < FEW_STEPS
    assert gone == [3]
    assert set(store.open_of("w").values()) == {State.RUNNING, State.QUEUED}
    assert store.unlisted("w", set()) == 1
    store.finish(*store.jobs(Filter(states=(State.RUNNING,))))
    assert store.oldest_open() is None


def test_what_a_mirror_has_got_since_it_looked_is_not_downloaded_once_more(store: Store) -> None:
    store.want("w", [version(b"object")])
    (job,) = store.claim(1)
    got = Downloaded(b"object", 1, job.id, b"object", 10, "5e", "", 2**63 + 5, 7)
    store.download_done(job, got, {})
    assert store.want("w", [version(b"object")]) == {}
    assert not store.open_of("w")
    store.want("w", [version(b"object")], [replace(got, file_inode=6)])
    assert not store.open_of("w"), "it was another file that was lost"
    store.want("w", [version(b"object")], [got])
    assert store.open_of("w") == {job.id: State.QUEUED}


def test_known_files_are_not_looked_for_among_superseded_ones_where_there_are_none(store: Store) -> None:
    one = [row(b"1000")]
    assert steps(store, lambda: store.unknown("w", one)) < FEW_STEPS
    assert store.unknown("w", [*one, row(b"new")]) == [row(b"new")]


def test_a_version_that_was_superseded_and_is_back_is_new(store: Store) -> None:
    store.enqueue([version(b"7", 11)])
    store.enqueue([version(b"7", 12)])
    assert store.unknown("w", [row(b"7", 11), row(b"7", 12), row(b"8")]) == [row(b"7", 11)]
