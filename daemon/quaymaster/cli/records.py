"""Jobs, deliveries and custody entries as lines for people. As JSON: service/view/records.py, given on from here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quaymaster.cli import show
from quaymaster.model import Job, State, shown
from quaymaster.service.view.records import Record, delivery_record, entry_record, job_record, path_record

if TYPE_CHECKING:
    from quaymaster.store import Delivery, Entry

__all__ = [
    "Record",
    "delivery_lines",
    "delivery_record",
    "entry_lines",
    "entry_record",
    "job_lines",
    "job_record",
    "path_record",
    "state_sentence",
]


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
