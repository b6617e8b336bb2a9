"""The digests by which an S3 server and we agree on bytes, and how requests and answers write them.

Three count: SHA-256, CRC-64/NVME (crc64.py) and MD5. A SHA-256 of parts is one of the parts' digests and says nothing
of the whole; the CRC-64/NVME of parts can be joined to that of the whole ("Checking object integrity", S3 user guide).
Against accidents both are as good as certain (CRC: 1 of 2^64 goes unnoticed); only SHA-256 holds
against somebody who changes bytes on purpose. MD5 comes last: it is what an ETag happens to be with most servers.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from quaymaster.destinations import crc64

HEADERS = {
    "ChecksumSHA256": "x-amz-checksum-sha256",
    "ChecksumCRC64NVME": "x-amz-checksum-crc64nvme",
    "ContentMD5": "content-md5",
}
"""Request parameters of the library that :meth:`Sums.parameters` gives, as S3 names them."""
PARAMETERS = {"sha256": "ChecksumSHA256", "crc64nvme": "ChecksumCRC64NVME"}
"""By the name of a level; answers tell them under the same names."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Digests of one run of bytes: those that somebody asked for."""

    size: int
    sha256: bytes = b""
    crc64nvme: int = 0
    md5: bytes = b""

    def parameters(self, level: str) -> dict[str, str]:
        """The request parameter that lets the server check a body on arrival. An endpoint that checks nothing is sent
        Content-MD5 all the same: every unsigned body carries a checksum."""
        return {PARAMETERS.get(level, "ContentMD5"): self.text(level)}

    def text(self, level: str) -> str:
        if level == "crc64nvme":
            return crc64.text(self.crc64nvme)
        return digest_text(self.sha256 if level == "sha256" else self.md5)


def sums(body: bytes | bytearray | memoryview, levels: Collection[str]) -> Sums:
    """``levels``: of ``sha256``, ``crc64nvme`` and ``md5``; any other means MD5, as in :meth:`Sums.parameters`."""
    return Sums(
        len(body),
        hashlib.sha256(body).digest() if "sha256" in levels else b"",
        crc64.crc64nvme(body) if "crc64nvme" in levels else 0,
        hashlib.md5(body, usedforsecurity=False).digest() if set(levels) - {"sha256", "crc64nvme"} else b"",
    )


def body_digest(level: str, body: bytes | bytearray | memoryview) -> dict[str, str]:
    return sums(body, (level,)).parameters(level)


def joined(parts: Sequence[Sums]) -> int:
    """The CRC-64/NVME of the whole."""
    whole = 0
    for part in parts:
        whole = crc64.joined(whole, part.crc64nvme, part.size)
    return whole


def digest_text(digest: bytes) -> str:
    """A digest as S3 writes it in x-amz-checksum-* and Content-MD5: base64."""
    return base64.b64encode(digest).decode("ascii")


def plain_etag(value: object) -> str:
    return str(value or "").strip('"')
