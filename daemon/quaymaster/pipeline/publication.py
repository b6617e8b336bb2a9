"""What was about to become visible when the process died (PRODUCT Q1, W8).

Between the moment a copy gets its name at a destination and the moment that is recorded, a crash leaves a copy that
nobody knows to be ours. So everything that the proof will say is noted durably just before. The next run of the same
job finds the same bytes under the key by itself; this here is for when there is no such run: a newer version of the
file has taken the job's place, or the source is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quaymaster.destinations.base import Destination
from quaymaster.model import Compression, Digests, Job, Proof, Stored
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


def published(job: Job, destinations: Mapping[str, Destination], at: float) -> Iterator[Proof]:
    """Proofs of those copies of the job's version that did become visible. Raises TransferError."""
    if (publication := Publication.of(job)) is None:
        return
    for name, key in publication.keys.items():
        destination = destinations.get(name)
        if destination is not None and (stored := destination.holding(key, publication.stored)) is not None:
            yield publication.proof(job, name, stored, at)
