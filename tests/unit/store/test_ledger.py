"""P4, I8: the ledger says which version is where with what proof; the custody log cannot be edited unseen."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from quaymaster.model import Compression, Digests, FileVersion, Identity, Job, Proof, Stored
from quaymaster.store import Filter, Store
from quaymaster.store.custody import GENESIS


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path), create=True, clock=lambda: 1000.5)
    yield store
    store.close()


def running(store: Store, version: FileVersion) -> Job:
    """The job of a version, claimed once."""
    store.enqueue([version])
    store.claim(1)
    return next(job for job in store.jobs(Filter()) if job.version == version)


def deliver(
    store: Store, size: int, *, destination: str = "archive", key: str = "w/a.fastq.zst", token: str = ""
) -> Proof:
    version = FileVersion("w", b"a\xff.fastq", Identity(2**63 + 5, size, 1_700_000_000_123_456_789))
    job = running(store, version)
    proof = Proof(
        job=job.id, version=version, destination=destination, source=Digests(size, "aa" * 32, {"md5": "bb" * 16}),
        stored_digests=Digests(3, "cc" * 32), compression=Compression.ZSTD, compression_note="",
        stored=Stored(key, 3, etag=f"e{size}", version_id="v", checksum="SHA256:x", evidence="sha256"),
        delivered_at=1000.25,
    )  # fmt: skip
    store.deliver(proof, token)
    return proof


def test_a_proof_comes_back_whole(store: Store) -> None:
    proof = deliver(store, 10)
    (found,) = store.deliveries("w", b"a\xff.fastq")
    assert found.proof == proof
    assert not found.replaced
    current = store.current("archive", "w/a.fastq.zst")
    assert current is not None
    assert current.proof == proof
    assert store.current("archive", "other") is None


def test_a_newer_version_under_the_same_key_replaces_the_row_without_losing_it(store: Store) -> None:
    deliver(store, 10)
    newer = deliver(store, 11)
    assert [d.replaced for d in store.deliveries("w", b"a\xff.fastq")] == [True, False]
    current = store.current("archive", "w/a.fastq.zst")
    assert current is not None
    assert current.proof == newer


def test_what_became_of_the_source_stands_beside_the_proof(store: Store) -> None:
    proof = deliver(store, 10)
    job = running(store, proof.version)
    store.finish(job, "deleted")
    (found,) = store.deliveries_of(job)
    assert (found.disposal, found.disposed_at) == ("deleted", 1000.5)
    assert [e.fields["kind"] for e in store.history(job)] == ["delivered", "disposed"]


def test_the_end_of_an_upload_is_recorded_with_its_delivery(store: Store) -> None:
    version = FileVersion("w", b"a\xff.fastq", Identity(2**63 + 5, 10, 1_700_000_000_123_456_789))
    store.enqueue([version])
    (job,) = store.claim(1)
    store.begin_upload(job, "archive", "token")
    assert store.uploads() == [(job.id, "archive", "token")]
    deliver(store, 10, token="token")
    assert store.uploads(job) == []


def test_an_upload_that_could_not_be_aborted_is_remembered_beside_the_one_that_took_its_place(store: Store) -> None:
    version = FileVersion("w", b"a\xff.fastq", Identity(2**63 + 5, 10, 1_700_000_000_123_456_789))
    store.enqueue([version])
    (job,) = store.claim(1)
    store.begin_upload(job, "archive", "left behind")
    store.begin_upload(job, "archive", "token")
    deliver(store, 10, token="token")
    assert store.uploads() == [(job.id, "archive", "left behind")]
    store.end_upload(job.id, "archive", "left behind")
    assert store.uploads() == []


def test_the_chain_can_be_checked_by_hand_and_names_the_path_exactly(store: Store) -> None:
    deliver(store, 10)
    deliver(store, 11)
    entries = [
        entry
        for delivery in store.deliveries("w", b"a\xff.fastq")
        for entry in store.history(running(store, delivery.proof.version))
    ]
    previous = GENESIS
    for entry in entries:
        body = hashlib.sha256(entry.body.encode()).hexdigest()
        assert entry.sha256 == hashlib.sha256(f"{previous}\n{body}\n".encode()).hexdigest()
        previous = entry.sha256
    assert bytes.fromhex(entries[0].fields["path_hex"]) == b"a\xff.fastq"
    assert entries[0].fields["source_sha256"] == "aa" * 32
    assert store.custody_broken_at() is None


@pytest.mark.parametrize(
    ("damage", "at"),
    [
        ("UPDATE custody SET body = replace(body, 'archive', 'attic') WHERE seq = 2", 2),
        ("DELETE FROM custody WHERE seq = 2", 2),
        ("UPDATE custody SET seq = 9 WHERE seq = 1", 1),
    ],
)
def test_an_edit_a_deletion_and_a_reordering_are_found(store: Store, damage: str, at: int) -> None:
    for size in (10, 11, 12):
        deliver(store, size)
    with sqlite3.connect(store.path) as connection:
        connection.execute(damage)
    connection.close()
    assert store.custody_broken_at() == at
