"""I8: the custody log's head is noted where who edits the database does not reach, and a log that was cut off or
written anew contradicts it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from quaymaster.destinations.base import Put
from quaymaster.destinations.directory import Directory
from quaymaster.destinations.owner import own_tag
from quaymaster.model import Event, FileVersion, Identity, State
from quaymaster.service import heads
from quaymaster.service.heads import AT_DESTINATION_EVERY, IN_JOURNAL_EVERY, Heads
from quaymaster.store import Filter, Head, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(str(tmp_path / "state"), create=True)) as made:
        yield made


@pytest.fixture
def archive(tmp_path: Path) -> Directory:
    (tmp_path / "archive").mkdir()
    return Directory("archive", str(tmp_path / "archive"), emit=lambda _: None)


def happen(store: Store, number: int) -> None:
    """Something that belongs to a job."""
    store.enqueue([FileVersion("w", b"%d" % number, Identity(number, 1, 1))])
    (job,) = store.claim(1)
    store.fail(job, State.PARKED, "permanent", "no")


def test_the_head_at_a_destination_is_the_one_of_the_log(store: Store, archive: Directory) -> None:
    happen(store, 1)
    last = store.custody_entry()
    kept = heads.put(store, archive, "seq-1", 5.0)
    assert last is not None
    assert kept is not None
    assert kept.head == Head(last.seq, last.sha256)
    assert kept.key == f".quaymaster-custody/seq-1/{heads.log_of(store)}/{last.seq:012d}.json"
    assert list(heads.held(archive, "seq-1")) == [kept]
    assert list(heads.held(archive, "seq-2")) == []
    assert store.contradiction(kept.head) == ""


def test_a_foreign_file_among_the_heads_is_passed_over(store: Store, archive: Directory) -> None:
    happen(store, 1)
    kept = heads.put(store, archive, "h", 5.0)
    folder = Path(archive.path, heads.folder("h"), heads.log_of(store))
    for name, body in {
        "a": b"",
        "b": b"[]",
        "c": b'{"seq":-1}',
        "d": b"x" * 9999,
        "e": b'{"seq":1,"sha256":"x"}',
    }.items():
        (folder / name).write_bytes(body)
    assert list(heads.held(archive, "h")) == [kept]


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


def test_a_head_is_left_when_something_happened_and_at_most_once_an_hour(store: Store, archive: Directory) -> None:
    events: list[Event] = []
    clock = Clock()
    keeper = Heads(store, {"archive": archive}, "h", events.append, clock)
    store._clock = clock
    number = lambda: len(list(heads.held(archive, "h")))  # noqa: E731
    keeper.look()
    assert number() == 0, "nothing has happened yet"
    happen(store, 1)
    keeper.look()
    keeper.look()
    assert number() == 1
    happen(store, 2)
    clock.now += AT_DESTINATION_EVERY - 1
    keeper.look()
    assert number() == 1
    clock.now += 1
    keeper.look()
    assert number() == 2
    clock.now += AT_DESTINATION_EVERY
    keeper.look()
    assert number() == 2, "noting a head is nothing that happened"
    assert events == []


def test_a_destination_that_is_away_is_told_and_tried_again_later(store: Store, archive: Directory) -> None:
    events: list[Event] = []
    clock = Clock()
    away = Path(archive.path).rename(archive.path + ".away")
    keeper = Heads(store, {"archive": archive}, "h", events.append, clock)
    happen(store, 1)
    keeper.look()
    keeper.look()
    assert [event.kind for event in events] == ["head-not-kept"]
    away.rename(archive.path)
    clock.now += 301
    keeper.look()
    assert len(list(heads.held(archive, "h"))) == 1


def test_what_a_killed_process_left_of_a_head_is_removed(store: Store, archive: Directory) -> None:
    happen(store, 1)
    killed = Directory("archive", archive.path, emit=print, tag=f"{own_tag().partition('-')[0]}-1-1")
    killed.begin(Put(f"{heads.folder('h')}log/1.json", 1)).write(b"x")
    killed.begin(Put(f"{heads.folder('other')}log/1.json", 1)).write(b"x")
    Heads(store, {"archive": archive}, "h", print).clear()
    left = [os.path.join(folder, name) for folder, _, names in os.walk(archive.path) for name in names]
    assert len(left) == 1
    assert heads.folder("other") in left[0]


def test_the_journal_is_told_once_an_hour_and_the_file_at_once(store: Store) -> None:
    events: list[Event] = []
    clock = Clock()
    keeper = Heads(store, {}, "h", events.append, clock)
    happen(store, 1)
    keeper.keep()
    last = store.custody_entry()
    assert last is not None
    assert store.noted_head() == Head(last.seq, last.sha256)
    assert events == []
    clock.now += IN_JOURNAL_EVERY
    keeper.keep()
    keeper.keep()
    assert [event.kind for event in events] == ["custody-head"]
    assert f"custody log {heads.log_of(store)}: 1 entry, head {last.seq}:{last.sha256}" == events[0].message


def rewrite(store: Store) -> None:
    """What somebody does who may write to the database: another history, with a chain that holds."""
    from quaymaster.store.custody import GENESIS, link

    with closing(sqlite3.connect(store.path)) as connection:
        rows = connection.execute("SELECT seq, body FROM custody ORDER BY seq").fetchall()
        previous = GENESIS
        for seq, body in rows:
            fields = json.loads(body)
            if seq == 2:
                fields["error"] = "nothing happened"
            body = json.dumps(fields, sort_keys=True, separators=(",", ":"))
            previous = link(previous, body)
            connection.execute("UPDATE custody SET body = ?, sha256 = ? WHERE seq = ?", (body, previous, seq))
        connection.commit()


def test_a_log_that_was_written_anew_contradicts_a_head_kept_elsewhere(store: Store, archive: Directory) -> None:
    for number in range(3):
        happen(store, number)
    kept = heads.put(store, archive, "h", 5.0)
    assert kept is not None
    rewrite(store)
    assert store.custody_broken_at() is None, "the chain itself holds"
    assert store.contradiction(kept.head) == "entry 3 of the custody log is not what it was"
    assert len(store.jobs(Filter())) == 3
