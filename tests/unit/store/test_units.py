"""Units: which generation it is, and that nothing of a unit is ever published behind its back."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from quaymaster.model import Compression, Digests, FileVersion, Identity, Proof, State, Stored, published_as
from quaymaster.pipeline.manifest import write
from quaymaster.store import Contents, Filter, Store, Unit, UnitState

NOTHING = Contents(0, 0, 0, "d")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(str(tmp_path), create=True)
    yield opened
    opened.close()


def version(path: bytes, mtime: int = 1, watch: str = "w") -> FileVersion:
    return FileVersion(watch, path, Identity(1, 10, mtime))


def land(store: Store, *paths: bytes, mtime: int = 1) -> None:
    store.units.enqueue([version(path, mtime) for path in paths], lambda v: v.path.split(b"/")[0])


def unit(store: Store, path: bytes = b"run") -> Unit:
    found = store.units.get("w", path)
    assert found is not None
    return found


def deliver(store: Store, number: int = 100) -> None:
    for job in store.claim(number):
        digests = Digests(10, "0" * 64)
        key = job.version.path.decode()
        store.deliver(Proof(job.id, job.version, "d", digests, digests, Compression.NONE, "", Stored(key, 10), 1.0))
        store.finish(job, "kept")


def publish(store: Store) -> None:
    assert store.units.complete(unit(store), "by")
    assert store.units.publish(unit(store), [])
    assert store.units.published(unit(store), NOTHING, {})


def kinds(store: Store) -> list[str]:
    return [entry.fields["kind"] for entry in store.custody() if entry.fields["kind"].startswith("unit-")]


def test_what_comes_meanwhile_stops_each_step(store: Store) -> None:
    land(store, b"run/a")
    seen = unit(store)
    land(store, b"run/b")
    assert not store.units.complete(seen, "by")
    assert store.units.complete(unit(store), "by")
    seen = unit(store)
    land(store, b"run/c")
    assert not store.units.publish(seen, [])
    assert (unit(store).state, unit(store).generation) == (UnitState.OPEN, 1)  # nothing of 1 can have been visible
    assert store.units.complete(unit(store), "by")
    assert store.units.publish(unit(store), [version(b"run/m", watch=published_as("w", "d"))])
    seen = unit(store)
    land(store, b"run/d")
    assert not store.units.published(seen, NOTHING, {})
    assert (unit(store).state, unit(store).generation) == (UnitState.OPEN, 2)
    assert [job.state for job in store.jobs(Filter(watch=published_as("w", "d")))] == [State.SUPERSEDED]


def test_only_what_is_new_opens_a_unit_again(store: Store) -> None:
    land(store, b"run/a")
    publish(store)
    land(store, b"run/a")
    land(store, b"run2/a", b"runner/a")
    assert unit(store).state is UnitState.PUBLISHED
    land(store, b"run/a", mtime=2)
    assert (unit(store).state, unit(store).generation) == (UnitState.OPEN, 2)
    publish(store)
    assert kinds(store)[-3:] == ["unit-reopened", "unit-complete", "unit-published"]


def test_a_unit_holds_the_newest_copy_of_each_of_its_files(store: Store) -> None:
    land(store, b"run/b", b"run/a", b"run0/x", b"run-/x", b"run/sub/c")
    deliver(store)
    land(store, b"run/a", mtime=2)
    deliver(store)
    found = [(d.proof.version.path, d.proof.version.identity.mtime_ns) for d in store.units.delivered(unit(store), "d")]
    assert found == [(b"run/a", 2), (b"run/b", 1), (b"run/sub/c", 1)]
    assert list(store.units.delivered(unit(store), "elsewhere")) == []


@pytest.mark.parametrize(
    "number",
    [5_000, pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
    ids=["thousands", "a million"],
)
def test_a_large_unit_is_listed_within_its_bounds(store: Store, tmp_path: Path, number: int) -> None:
    """Memory does not grow with the number of files, neither for the manifest nor for the questions before it."""
    digests = Digests(10, "0" * 64)
    for start in range(0, number, 1000):
        land(store, *(b"run/%08d" % n for n in range(start, start + 1000)))
        jobs = store.claim(1000)
        keys = [job.version.path.decode() for job in jobs]
        proofs = [
            Proof(job.id, job.version, "d", digests, digests, Compression.NONE, "", Stored(key, 10), 1.0)
            for job, key in zip(jobs, keys, strict=True)
        ]
        store.deliver_all(proofs, disposal="kept")
    assert store.units.complete(unit(store), "by")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert list(store.units.undelivered(unit(store), 1)) == []
    written = write(os.fsencode(tmp_path), unit(store), "h", "d", store.units.delivered(unit(store), "d"), [])
    assert written is not None
    assert written.contents.files == number
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_a_delivered_file_that_waits_for_its_disposal_is_not_undelivered(store: Store) -> None:
    land(store, b"run/a", b"run/b")
    job, other = store.claim(2)
    digests = Digests(10, "0" * 64)
    store.deliver(Proof(job.id, job.version, "d", digests, digests, Compression.NONE, "", Stored("k", 10), 1.0))
    store.fail(other, State.PARKED, "c", "why")
    assert store.units.await_published(job, b"run", 1e12)
    assert list(store.units.undelivered(unit(store), 1)) == [(other.version.path, State.PARKED, "why")]
    assert len(list(store.units.undelivered(unit(store), 2))) == 2
    publish(store)
    assert [job.id for job in store.claim(9)] == [job.id]  # the publication woke it
    assert not store.units.await_published(job, b"run", 1e12)


def test_operators_force_and_abandon(store: Store) -> None:
    land(store, b"run/a")
    store.units.abandon(unit(store), "me", "why")
    land(store, b"run/b")
    assert (unit(store).state, unit(store).why) == (UnitState.ABANDONED, "why")
    store.units.force(unit(store), "me")
    assert (unit(store).state, unit(store).forced_by) == (UnitState.OPEN, "me")
    assert store.units.counts() == {"w": {UnitState.OPEN: 1}}
    assert kinds(store) == ["unit-abandoned", "unit-forced"]


def test_a_file_outside_of_units_costs_nothing(store: Store) -> None:
    store.units.enqueue([version(b"top")], lambda v: None)
    assert store.units.find() == []
