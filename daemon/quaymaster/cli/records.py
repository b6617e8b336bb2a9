"""Jobs, deliveries and custody entries, as JSON (a stable form: see quaymaster(1)) and as lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quaymaster.cli import show
from quaymaster.model import Job, State, shown

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


def job_lines(job: Job) -> list[str]:
    identity = job.version.identity
    return show.facts(
        [
            ("watch", show.plain(job.version.watch)),
            ("path", shown(job.version.path)),
            ("size", show.exact(identity.size)),
            ("modified", show.when_ns(identity.mtime_ns)),
            ("inode", str(identity.inode)),
            ("state", job.state.value),
            ("stage", job.stage.value if job.stage else ""),
            ("failed", show.count(job.attempts, "time") if job.attempts else ""),
            ("error", show.plain(f"{job.error_code}: {job.error}") if job.error_code else ""),
            ("next try", show.when(job.retry_at)),
            ("queued", show.when(job.queued_at)),
            ("started", show.when(job.started_at)),
            ("ended", show.when(job.ended_at)),
        ]
    )


def delivery_lines(delivery: Delivery) -> list[str]:
    proof, stored = delivery.proof, delivery.proof.stored
    identity = proof.version.identity
    compression = proof.compression.value
    if proof.compression_note:
        compression += f" ({show.plain(proof.compression_note)})"
    return show.facts(
        [
            ("source size", show.exact(identity.size)),
            ("source modified", show.when_ns(identity.mtime_ns)),
            ("source sha256", proof.source.sha256),
            *((f"source {name}", digest) for name, digest in sorted(proof.source.others.items())),
            ("compression", compression),
            ("destination", show.plain(proof.destination)),
            ("key", show.plain(stored.key)),
            ("stored size", show.exact(stored.size)),
            ("stored sha256", proof.stored_digests.sha256),
            *((f"stored {name}", digest) for name, digest in sorted(proof.stored_digests.others.items())),
            ("etag", show.plain(stored.etag)),
            ("version", show.plain(stored.version_id)),
            ("checksum", show.plain(stored.checksum)),
            ("evidence", show.plain(stored.evidence)),
            ("delivered", show.when(proof.delivered_at)),
            ("source after", _disposal(delivery)),
            ("copy", "replaced since by a newer version" if delivery.replaced else ""),
        ]
    )


def _disposal(delivery: Delivery) -> str:
    if not delivery.disposal:
        return ""
    what = show.plain(delivery.disposal).replace("moved:", "moved to ", 1)
    return f"{what} {show.when(delivery.disposed_at)}".rstrip()


def entry_lines(entries: Sequence[Entry]) -> list[str]:
    return [f"  {entry.seq} {entry.sha256} {show.plain(entry.body)}" for entry in entries]


def state_sentence(job: Job) -> str:
    """Where a job stands, and why, as the end of a sentence that begins with the file."""
    failures = f" after {show.count(job.attempts, 'failure')}" if job.attempts else ""
    because = f" because: {show.plain(job.error)}" if job.error else ""
    match job.state:
        case State.QUEUED:
            return f"queued since {show.when(job.queued_at)}{failures} (job {job.id})"
        case State.RUNNING:
            stage = f", {job.stage.value}" if job.stage else ""
            return f"being delivered since {show.when(job.started_at)}{stage} (job {job.id})"
        case State.WAITING:
            return f"waiting until {show.when(job.retry_at)}{failures} (job {job.id}){because}"
        case State.PARKED:
            return f"parked{failures} (job {job.id}){because}"
        case State.DONE:
            return f"finished {show.when(job.ended_at)} (job {job.id})"
        case State.SUPERSEDED:
            return f"superseded by a newer version {show.when(job.ended_at)} (job {job.id})"
        case State.DROPPED:
            return f"given up by an operator {show.when(job.ended_at)} (job {job.id})"
