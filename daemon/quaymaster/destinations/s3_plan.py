"""How one object is divided into parts, and what the server must say of it (PRODUCT P5)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quaymaster.destinations import crc64
from quaymaster.destinations.base import Put
from quaymaster.destinations.s3_sums import Sums, digest_text, joined
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
    checksum: str = "sha256"
    """The digest that the configuration prefers: an upload is created for parts with one kind of digest."""

    def digest(self, put: Put) -> str:
        """Of what is fixed when a multipart upload begins: one with another digest cannot be gone on with."""
        fixed: list[Any] = [self.part_size, sorted(self.options.items()), sorted(put.metadata.items())]
        if self.checksum != "sha256":  # tokens of older versions do not tell it
            fixed.append(self.checksum)
        return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Part:
    number: int
    etag: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class Expected:
    """What the server must say of the object, if it holds what was sent."""

    digests: Digests
    proof: str
    sha256: str
    """In S3's notation: of the whole, or of the parts' digests with ``-N``."""
    md5: str = ""
    crc64nvme: str = ""
    """Of the whole, in S3's notation; empty when it was not made."""
    source: str = ""
    """The SHA-256 of the source that our own object tells in its metadata."""

    @classmethod
    def of_one(cls, digests: Digests, proof: str, sums: Sums, source: str) -> Expected:
        crc = crc64.text(sums.crc64nvme) if proof == "crc64nvme" else ""
        return cls(digests, proof, digest_text(bytes.fromhex(digests.sha256)), sums.md5.hex(), crc, source)

    @classmethod
    def of_parts(cls, digests: Digests, proof: str, parts: Sequence[Sums], source: str) -> Expected:
        sha256 = hashlib.sha256(b"".join(part.sha256 for part in parts)).digest()
        md5 = hashlib.md5(b"".join(part.md5 for part in parts), usedforsecurity=False).hexdigest()
        tail = f"-{len(parts)}"
        return cls(digests, proof, digest_text(sha256) + tail, md5 + tail, crc64.text(joined(parts)), source)

    def found_in(self, present: Stored, *, adopting: bool) -> bool | None:
        """True, False, or None when the server's answer cannot tell: then the bytes have to be read.

        ``adopting``: the object may be another writer's, divided into other parts, and no MD5 counts; nor does its
        CRC, which anybody can make come out right, unless it tells as well that it is ours.
        """
        if present.size != self.digests.size:
            return False
        kind, _, told = present.checksum.partition(":")
        if self.proof.startswith("sha256") and kind == "SHA256":
            if told in (self.sha256, digest_text(bytes.fromhex(self.digests.sha256))):
                return True
            return False if "-" not in told or not adopting else None
        if kind == "CRC64NVME" and self.crc64nvme and "-" not in told:
            if told != self.crc64nvme:
                return False
            ours = self.source and present.metadata.get("quaymaster-sha256") == self.source
            return True if self.proof == "crc64nvme" and (ours or not adopting) else None
        if self.proof.startswith("md5") and not adopting and present.etag == self.md5:
            return True
        return None
