"""Jobs, deliveries and custody entries as JSON: a stable form, see quaymaster(1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quaymaster.model import Job, shown

if TYPE_CHECKING:
    from quaymaster.store import Delivery, Entry

Record = dict[str, Any]


def path_record(path: bytes) -> Record:
    """``path`` for people; ``path_bytes_hex`` too when that text is not exactly the name."""
    text = shown(path)
    return {"path": text} if text.encode() == path else {"path": text, "path_bytes_hex": path.hex()}


def job_record(job: Job) -> Record:
    identity = job.version.identity
    return {
        "id": job.id,
        "watch": job.version.watch,
        **path_record(job.version.path),
        "size": identity.size,
        "mtime_ns": identity.mtime_ns,
        "inode": identity.inode,
        "state": job.state.value,
        "stage": job.stage.value if job.stage else None,
        "attempts": job.attempts,
        "retry_at": job.retry_at,
        "error_code": job.error_code,
        "error": job.error,
        "queued_at": job.queued_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
    }


def delivery_record(delivery: Delivery) -> Record:
    proof, stored = delivery.proof, delivery.proof.stored
    return {
        "job": proof.job,
        "watch": proof.version.watch,
        **path_record(proof.version.path),
        "size": proof.version.size,
        "mtime_ns": proof.version.identity.mtime_ns,
        "inode": proof.version.identity.inode,
        "sha256": proof.source.sha256,
        "other_digests": dict(proof.source.others),
        "compression": proof.compression.value,
        "compression_note": proof.compression_note,
        "destination": proof.destination,
        "key": stored.key,
        "stored_size": stored.size,
        "stored_sha256": proof.stored_digests.sha256,
        "stored_other_digests": dict(proof.stored_digests.others),
        "etag": stored.etag,
        "version_id": stored.version_id,
        "checksum": stored.checksum,
        "evidence": stored.evidence,
        "delivered_at": proof.delivered_at,
        "replaced": delivery.replaced,
        "disposal": delivery.disposal,
        "disposed_at": delivery.disposed_at,
    }


def entry_record(entry: Entry) -> Record:
    """``body`` is text, byte for byte what the digest covers."""
    return {"seq": entry.seq, "sha256": entry.sha256, "body": entry.body}
