"""Many jobs of small files at once: the same state in the end as one by one, in fewer commits (PRODUCT Q1, I8)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quaymaster.errors import StoreError
from quaymaster.model import Compression, Digests, FileVersion, Identity, Job, Proof, Stage, State, Stored
from quaymaster.store import Filter, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path), create=True)
    yield store
    store.close()


def version(name: str, *, watch: str = "w", size: int = 10, mtime_ns: int = 5) -> FileVersion:
    return FileVersion(watch, name.encode(), Identity(1, size, mtime_ns))


def proof(job: Job) -> Proof:
    digests = Digests(job.version.size, "0" * 64)
    stored = Stored(job.version.path.decode(), job.version.size, "etag", evidence="sha256")
    return Proof(job.id, job.version, "archive", digests, digests, Compression.NONE, "", stored, 1.0)


def keyed(jobs: list[Job]) -> list[tuple[Job, str]]:
    return [(job, job.version.path.decode()) for job in jobs]


def test_small_files_of_one_watch_are_claimed_oldest_first(store: Store) -> None:
    store.enqueue([version("a"), version("large", size=1000), version("b"), version("c")])
    store.enqueue([version("other", watch="v")])
    claimed = store.claim_small("w", 2, 100)
    assert [job.version.path for job in claimed] == [b"a", b"b"]
    assert all(job.state is State.RUNNING for job in claimed)
    assert [job.version.path for job in store.claim_small("w", 10, 100)] == [b"c"]
    assert {job.version.path for job in store.claim(10)} == {b"large", b"other"}


def test_a_newer_version_waits_for_the_older_one(store: Store) -> None:
    store.enqueue([version("a")])
    (older,) = store.claim_small("w", 10, 100)
    store.enqueue([version("a", mtime_ns=6)])
    assert store.claim_small("w", 10, 100) == []
    store.finish(older)
    assert [job.version.identity.mtime_ns for job in store.claim_small("w", 10, 100)] == [6]


def test_only_what_has_no_past_is_a_first_time(store: Store) -> None:
    names = ["new", "delivered", "changed", "begun", "taken"]
    store.enqueue([version(name) for name in names])
    jobs = {job.version.path.decode(): job for job in store.claim(10)}
    store.deliver(proof(jobs["delivered"]))
    store.enqueue([version("changed", mtime_ns=6)])
    store.begin_upload(jobs["begun"], "archive", "token")
    store.enqueue([version("taken-by", watch="v")])
    (other,) = store.claim(1)
    store.deliver(Proof(**{**_fields(proof(other)), "stored": Stored("taken", 10, "etag", evidence="sha256")}))
    wanted = keyed([jobs[name] for name in names])
    assert store.first_times("archive", wanted) == {jobs["new"].id}
    assert jobs["taken"].id in store.first_times("elsewhere", wanted)
    assert store.first_times("archive", []) == set()


def _fields(found: Proof) -> dict[str, object]:
    return {name: getattr(found, name) for name in Proof.__dataclass_fields__}


def test_deliveries_and_the_ends_of_their_jobs_are_one_commit_and_one_chain(store: Store) -> None:
    store.enqueue([version(f"f{number}") for number in range(700)])
    jobs = store.claim(700)
    store.note_all(Stage.PUBLISH, [(job.id, {"publishing": {"n": job.id}}) for job in jobs])
    assert {job.checkpoint["publishing"]["n"] for job in store.jobs(Filter())} == {job.id for job in jobs}
    store.deliver_all([proof(job) for job in jobs[:-1]], disposal="kept")
    store.deliver_all([proof(jobs[-1])])
    assert store.custody_broken_at() is None
    assert [entry.fields["kind"] for entry in store.custody()] == ["delivered"] * 700
    states = [job.state for job in store.jobs(Filter())]
    assert states == [State.DONE] * 699 + [State.RUNNING]
    (delivery,) = store.deliveries("w", b"f3")
    assert (delivery.disposal, delivery.proof) == ("kept", proof(jobs[3]))


def test_deliveries_of_which_one_cannot_be_recorded_are_none(store: Store) -> None:
    store.enqueue([version("a"), version("b")])
    a, b = store.claim(2)
    wrong = Proof(**{**_fields(proof(b)), "source": Digests(10, None)})  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        store.deliver_all([proof(a), wrong], disposal="kept")
    assert store.deliveries("w", b"a") == []
    assert list(store.custody()) == []
    assert {job.state for job in store.jobs(Filter())} == {State.RUNNING}
