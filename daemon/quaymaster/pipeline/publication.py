"""What was about to become visible when the process died (PRODUCT Q1, W8).

Between the moment a copy gets its name at a destination and the moment that is recorded, a crash leaves a copy that
nobody knows to be ours. So everything that the proof will say is noted durably just before. The next run of the same
job finds the same bytes under the key by itself; this here is for when there is no such run: a newer version of the
file has taken the job's place, or the source is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from quaymaster.destinations.base import Destination
from quaymaster.errors import IntegrityError, TransferError
from quaymaster.model import Compression, Digests, Event, FileVersion, Job, Level, Proof, Stage, Stored
from quaymaster.pipeline import codec
from quaymaster.store import Store
from quaymaster.store.passes import AGAIN

PUBLISHING = "publishing"
"""Where it is in the job's checkpoint."""


def delivered(store: Store, job: Job) -> dict[str, Proof]:
    """Destination -> proof of a job, of those that count: not the older ones of a job that is sent once more."""
    since = float(job.checkpoint.get(AGAIN, 0.0))
    return {d.proof.destination: d.proof for d in store.deliveries_of(job) if d.proof.delivered_at >= since}


@dataclass(frozen=True, slots=True)
class Publication:
    """Of one job, to the destinations of one run: their names and keys."""

    source: Digests
    stored: Digests
    compression: Compression
    note: str
    keys: Mapping[str, str]

    def proof(self, job: Job, destination: str, stored: Stored, at: float) -> Proof:
        return Proof(
            job=job.id,
            version=job.version,
            destination=destination,
            source=self.source,
            stored_digests=self.stored,
            compression=self.compression,
            compression_note=self.note,
            stored=stored,
            delivered_at=at,
        )

    def noted(self, store: Store, job: Job) -> Job:
        """The job with this in its checkpoint, durably: what it names may become visible now."""
        left = {**job.checkpoint, PUBLISHING: self.as_checkpoint()}
        store.checkpoint(job, Stage.PUBLISH, left)
        return replace(job, checkpoint=left)

    def as_checkpoint(self) -> dict[str, Any]:
        return {
            "source": [self.source.size, self.source.sha256, dict(self.source.others)],
            "stored": [self.stored.size, self.stored.sha256, dict(self.stored.others)],
            "compression": self.compression.value,
            "note": self.note,
            "keys": dict(self.keys),
        }

    @classmethod
    def of(cls, job: Job) -> Publication | None:
        """What the job's checkpoint says of it."""
        said = job.checkpoint.get(PUBLISHING)
        if not said:
            return None
        return cls(
            Digests(*said["source"]),
            Digests(*said["stored"]),
            Compression(said["compression"]),
            said["note"],
            said["keys"],
        )


Ask = Callable[[str, Callable[[], Stored | None]], Stored | None]
"""Asks the named destination."""


def published(job: Job, destinations: Mapping[str, Destination], at: float, ask: Ask) -> Iterator[Proof]:
    """Proofs of those copies of the job's version that did become visible. Raises TransferError."""
    if (publication := Publication.of(job)) is None:
        return
    for name, key in publication.keys.items():
        destination = destinations.get(name)
        if destination is None:
            continue
        stored = ask(name, partial(destination.holding, key, publication.stored))
        if stored is not None:
            yield publication.proof(job, name, stored, at)


def metadata(version: FileVersion, mode: int, compression: Compression, sha256: str = "") -> dict[str, str]:
    """What an object says of its source (adopt.Told reads it); the digest only once it is known."""
    found = {
        "quaymaster-size": str(version.size),
        "quaymaster-mtime": str(version.identity.mtime_ns),
        "quaymaster-mode": f"{mode:04o}",
        "quaymaster-compression": compression.value,
    }
    if sha256:
        found["quaymaster-sha256"] = sha256
    return found


def recall(store: Store, job: Job, destinations: Mapping[str, Destination], at: float, ask: Ask) -> None:
    """Record what a run of this job made visible and was killed before it could say so. Raises TransferError."""
    had = {d.proof.destination for d in store.deliveries_of(job)}
    for proof in published(job, destinations, at, ask):
        if proof.destination not in had:
            store.deliver(proof)
    store.forget_publication(job)


def abandon(store: Store, job: Job, destinations: Mapping[str, Destination]) -> None:
    """Remove what a job that is over left unfinished; what cannot be removed now is left to the sweep."""
    for number, name, token in store.uploads(job):
        destination = destinations.get(name)
        if destination is not None and destination.abandon(token):
            store.end_upload(number, name, token)


def read_back(destination: Destination, stored: Stored, expected: Digests) -> Stored:
    """``verify = "readback"``: fetch the object and hash it; withdraw it when it is not what was sent."""
    with destination.read(stored) as pieces:
        found = codec.digest(pieces)
    if found == expected.sha256:
        evidence = stored.evidence if stored.evidence == "readback" else f"{stored.evidence}+readback"
        return replace(stored, evidence=evidence)
    destination.remove(stored)
    raise IntegrityError(
        f"{destination.name} gave back other bytes for {stored.key} (SHA-256 {found} instead of {expected.sha256})",
        "The object was withdrawn; it is sent again",
    )


def told(proof: Proof) -> Event:
    """The delivery, for the operator."""
    version, stored = proof.version, proof.stored
    compressed = proof.compression is not Compression.NONE
    ratio = f", {proof.source.size / proof.stored_digests.size:.2f}:1" if compressed else ""
    return Event(
        "delivered",
        f"delivered to {proof.destination} as {stored.key}{ratio}, proven by {stored.evidence}",
        watch=version.watch,
        path=version.path,
        job=proof.job,
        destination=proof.destination,
        size=stored.size,
        sha256=proof.source.sha256,
    )


def told_failure(job: Job, destination: str, error: TransferError) -> Event:
    """That this destination did not take it, for those who look after destinations."""
    version = job.version
    return Event(
        "delivery-failed",
        str(error),
        Level.DEBUG,
        watch=version.watch,
        path=version.path,
        job=job.id,
        destination=destination,
        size=version.size,
        code=error.code,
    )
