"""The ledger: which version of which file is where, with what proof (PRODUCT P4, I8)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from quaymaster.model import Compression, Digests, FileVersion, Identity, Proof, Stored
from quaymaster.store import jobs
from quaymaster.store.db import Transaction

_SELECT = "SELECT ledger.*, watches.name AS watch FROM ledger JOIN watches ON watches.id = ledger.watch_id"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One row: a proof, and what became of the copy and of the source since."""

    id: int
    proof: Proof
    replaced: bool
    """A newer version of the file took this copy's place."""
    disposal: str
    """What was done with the source: "", "kept", "deleted", "moved:PATH"."""
    disposed_at: float | None


def record(t: Transaction, proof: Proof) -> None:
    """Add a delivery. Whatever of ours had the same key there is marked as replaced."""
    version, stored = proof.version, proof.stored
    previous = t.execute(
        "SELECT id FROM ledger WHERE destination = ? AND key = ? AND replaced_by IS NULL",
        (proof.destination, stored.key),
    ).fetchone()
    if previous:
        # The unique index wants the old row out of the way first; it is pointed at the new one below.
        t.execute("UPDATE ledger SET replaced_by = id WHERE id = ?", (previous["id"],))
    number = t.execute(
        "INSERT OR REPLACE INTO ledger (job_id, watch_id, path, inode, size, mtime_ns, destination, key,"
        " source_sha256, source_others, stored_size, stored_sha256, stored_others, compression, compression_note,"
        " etag, version_id, checksum, evidence, delivered_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (
            proof.job,
            jobs.watch_id(t, version.watch),
            version.path,
            jobs.signed(version.identity.inode),
            version.size,
            version.identity.mtime_ns,
            proof.destination,
            stored.key,
            proof.source.sha256,
            json.dumps(dict(proof.source.others)),
            stored.size,
            proof.stored_digests.sha256,
            json.dumps(dict(proof.stored_digests.others)),
            proof.compression.value,
            proof.compression_note,
            stored.etag,
            stored.version_id,
            stored.checksum,
            stored.evidence,
            proof.delivered_at,
        ),
    ).fetchone()[0]
    if previous and previous["id"] != number:
        t.execute("UPDATE ledger SET replaced_by = ? WHERE id = ?", (number, previous["id"]))


def details(proof: Proof) -> dict[str, Any]:
    """What the custody log says of a delivery."""
    v, stored = proof.version, proof.stored
    found: dict[str, Any] = {
        "destination": proof.destination,
        "key": stored.key,
        "inode": v.identity.inode,
        "size": v.size,
        "mtime_ns": v.identity.mtime_ns,
        "source_sha256": proof.source.sha256,
        "stored_sha256": proof.stored_digests.sha256,
        "stored_size": stored.size,
        "compression": proof.compression.value,
        "etag": stored.etag,
        "version_id": stored.version_id,
        "checksum": stored.checksum,
        "evidence": stored.evidence,
    }
    if proof.source.others:
        found["source_others"] = dict(proof.source.others)
    if proof.compression_note:
        found["compression_note"] = proof.compression_note
    return found


def disposed(t: Transaction, job: int, disposal: str, now: float) -> None:
    t.execute("UPDATE ledger SET disposal = ?, disposed_at = ? WHERE job_id = ?", (disposal, now, job))


def of_job(t: Transaction, job: int) -> list[Delivery]:
    return from_rows(t.execute(f"{_SELECT} WHERE job_id = ? ORDER BY ledger.id", (job,)))


def of_path(t: Transaction, watch: str, path: bytes) -> list[Delivery]:
    """Every delivery of every version of a file, oldest first."""
    return from_rows(t.execute(f"{_SELECT} WHERE watches.name = ? AND path = ? ORDER BY ledger.id", (watch, path)))


def current(t: Transaction, destination: str, key: str) -> Delivery | None:
    """What we last put under this key, or None when we never did."""
    found = from_rows(
        t.execute(f"{_SELECT} WHERE destination = ? AND key = ? AND replaced_by IS NULL", (destination, key))
    )
    return found[0] if found else None


def ours(t: Transaction, destination: str, objects: Sequence[tuple[str, str]]) -> list[bool]:
    """Which of these (key, ETag) we put at the destination."""
    found: set[tuple[str, str]] = set()
    for start in range(0, len(objects), 500):
        some = [key for key, _ in objects[start : start + 500]]
        marks = ",".join("?" * len(some))
        found |= {
            (key, etag)
            for key, etag in t.execute(
                f"SELECT key, etag FROM ledger WHERE destination = ? AND replaced_by IS NULL AND key IN ({marks})",
                (destination, *some),
            )
        }
    return [found_as in found for found_as in objects]


def from_rows(rows: Iterable[Any]) -> list[Delivery]:
    """Of rows with all columns of the ledger, and the watch's name as ``watch``."""
    return [
        Delivery(
            id=r["id"],
            proof=Proof(
                job=r["job_id"],
                version=FileVersion(r["watch"], r["path"], Identity(r["inode"] % 2**64, r["size"], r["mtime_ns"])),
                destination=r["destination"],
                source=Digests(r["size"], r["source_sha256"], json.loads(r["source_others"])),
                stored_digests=Digests(r["stored_size"], r["stored_sha256"], json.loads(r["stored_others"])),
                compression=Compression(r["compression"]),
                compression_note=r["compression_note"],
                stored=Stored(
                    key=r["key"],
                    size=r["stored_size"],
                    etag=r["etag"],
                    version_id=r["version_id"],
                    checksum=r["checksum"],
                    evidence=r["evidence"],
                ),
                delivered_at=r["delivered_at"],
            ),
            replaced=r["replaced_by"] is not None,
            disposal=r["disposal"] or "",
            disposed_at=r["disposed_at"],
        )
        for r in rows
    ]
