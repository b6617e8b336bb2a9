"""Q6: of a damaged database, what can be read goes into the new one, and nothing there is taken for something else."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from quaymaster.model import Compression, Digests, FileVersion, Identity, Proof, State, Stored
from quaymaster.store import Filter, Store
from quaymaster.store.salvage import Salvaged, set_aside

HOME = ("archive", "far")


def version(name: str, size: int = 1) -> FileVersion:
    return FileVersion("w", name.encode(), Identity(1, size, 1))


def deliver(store: Store, file: FileVersion, *destinations: str) -> None:
    store.enqueue([file])
    store.claim(1)
    (job,) = [job for job in store.jobs(Filter(path=file.path)) if job.version == file]
    for destination in destinations:
        digests = Digests(file.size, "aa" * 32)
        stored = Stored(file.path.decode(), file.size, etag="e", evidence="sha256")
        store.deliver(Proof(job.id, file, destination, digests, digests, Compression.NONE, "", stored, 1.0))
    if destinations == HOME:
        store.finish(job, "kept")


class Damaged:
    """A database in ``state`` with ten delivered files, the first of them twice, and one that only "far" has."""

    def __init__(self, folder: Path) -> None:
        self.state = folder
        with closing(Store(str(folder), create=True)) as store:
            for number in range(10):
                deliver(store, version(f"f{number}"), *HOME)
            deliver(store, version("f0", 2), *HOME)
            deliver(store, version("half"), "far")

    def lose(self, statement: str) -> None:
        with closing(sqlite3.connect(self.state / "quaymaster.db")) as connection:
            connection.execute(statement)
            connection.commit()

    def salvaged(self) -> tuple[Store, Salvaged]:
        folder = set_aside(str(self.state), "then")
        store = Store(str(self.state), create=True, accept_loss=True)
        return store, store.salvage(folder)


@pytest.fixture
def damaged(tmp_path: Path) -> Damaged:
    return Damaged(tmp_path / "state")


def delivered_to(store: Store, name: str) -> list[str]:
    return sorted(delivery.proof.destination for delivery in store.deliveries("w", name.encode()))


def test_a_sound_one_is_carried_over_whole(damaged: Damaged) -> None:
    store, salvaged = damaged.salvaged()
    with closing(store):
        assert (salvaged.rows["jobs"], salvaged.rows["ledger"]) == (12, 23)
        assert [(d.proof.version.size, d.replaced) for d in store.deliveries("w", b"f0")] == [
            (1, True), (1, True), (2, False), (2, False),
        ]  # fmt: skip
        assert [job.version for job in store.jobs(Filter(states=(State.RUNNING,)))] == [version("half")]


def test_numbers_of_lost_jobs_are_not_given_to_other_files(damaged: Damaged) -> None:
    damaged.lose("DELETE FROM jobs")
    store, salvaged = damaged.salvaged()
    with closing(store):
        assert (salvaged.rows["jobs"], salvaged.rows["ledger"]) == (0, 23)
        assert delivered_to(store, "f3") == sorted(HOME)
        for number in range(20):
            store.enqueue([version(f"new{number}")])
        jobs = store.jobs(Filter(states=(State.QUEUED,)))
        assert len(jobs) == 20
        assert [d for job in jobs for d in store.deliveries_of(job)] == [], (
            "another file's delivery counts for a new one"
        )
        (half,) = store.jobs(Filter(path=b"half"))
        assert [d.proof.destination for d in store.deliveries_of(half)] == ["far"]


def test_a_copy_whose_successor_is_lost_does_not_become_the_current_one(damaged: Damaged) -> None:
    damaged.lose("DELETE FROM ledger WHERE path = CAST('f0' AS BLOB) AND size = 2")
    store, _ = damaged.salvaged()
    with closing(store):
        assert [d.replaced for d in store.deliveries("w", b"f0")] == [True, True]
        assert store.current("archive", "f0") is None


def test_rows_that_make_no_sense_are_left_behind(damaged: Damaged) -> None:
    damaged.lose("UPDATE ledger SET watch_id = 77 WHERE path = CAST('f1' AS BLOB)")
    damaged.lose("UPDATE ledger SET mtime_ns = 77 WHERE path = CAST('f2' AS BLOB)")
    store, _ = damaged.salvaged()
    with closing(store):
        assert [delivered_to(store, name) for name in ("f1", "f2", "f3")] == [[], [], sorted(HOME)]
        assert store.known("w", [(b"f1", Identity(1, 1, 1)), (b"f3", Identity(1, 1, 1))]) == [True, True]
