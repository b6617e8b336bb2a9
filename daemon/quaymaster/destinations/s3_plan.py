"""How one object is divided into parts, and what the server must say of it (PRODUCT P5)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quaymaster.destinations.base import Put
from quaymaster.destinations.s3_probe import digest_text
from quaymaster.model import Digests, Stored

MIB = 1 << 20
MOST_PARTS = 10_000  # S3 user guide, "Amazon S3 multipart upload limits"
LARGEST_OBJECT = 5 << 40  # bytes; same table


def part_size_for(size_bound: int, least: int) -> int:
    """Bytes of one part, so that ``size_bound`` fits into the most parts there can be."""
    needed = -(-size_bound // MOST_PARTS)
    return max(least, -(-needed // MIB) * MIB)


@dataclass(frozen=True)
class Plan:
    """How one object is sent."""

    part_size: int
    buffers: int
    """Parts in memory at once, the one being filled included."""
    threads: int
    options: Mapping[str, Any]
    """Request parameters from the configuration: encryption, tags, storage class."""
    claims: bool
    """Whether publishers of one key have to be kept apart by us (s3_claim.py)."""

    def digest(self, put: Put) -> str:
        """Of what is fixed when a multipart upload begins: one with another digest cannot be gone on with."""
        fixed = [self.part_size, sorted(self.options.items()), sorted(put.metadata.items())]
        return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Part:
    number: int
    etag: str
    sha256: bytes
    md5: bytes


@dataclass(frozen=True, slots=True)
class Expected:
    """What the server must say of the object, if it holds what was sent."""

    digests: Digests
    proof: str
    checksum: str
    """SHA-256 in S3's notation: of the whole, or of the parts' digests with ``-N``."""
    md5: str = ""

    def found_in(self, present: Stored, *, adopting: bool) -> bool | None:
        """True, False, or None when the server's answer cannot tell: then the bytes have to be read.

        ``adopting``: the object may be another writer's, divided into other parts, and no MD5 counts.
        """
        if present.size != self.digests.size:
            return False
        if self.proof.startswith("sha256") and present.checksum.startswith("SHA256:"):
            told = present.checksum.removeprefix("SHA256:")
            if told in (self.checksum, digest_text(bytes.fromhex(self.digests.sha256))):
                return True
            return False if "-" not in told or not adopting else None
        if self.proof.startswith("md5") and not adopting and present.etag == self.md5:
            return True
        return None
