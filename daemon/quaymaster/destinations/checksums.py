"""The checksums that S3 keeps of a whole object, computed from its bytes as they come.

``x-amz-checksum-…`` of an object in one piece, and of one in parts whose checksum type is FULL_OBJECT, is of its bytes.
The COMPOSITE one of an object in parts is of the parts' own, ends in ``-N``, and says nothing that could be computed
without their sizes (S3 user guide, "Checking object integrity in Amazon S3").
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from typing import Protocol

from quaymaster.destinations.crc64 import crc64nvme

Bytes = bytes | bytearray | memoryview


class Running(Protocol):
    """One checksum of bytes that come piece by piece."""

    evidence: str
    """What it proves by: ``sha256``, ``crc64nvme`` …"""

    def update(self, data: Bytes, /) -> None: ...

    def text(self) -> str:
        """Of all that came, in S3's notation: base64."""
        ...


def of_whole(checksum: str) -> Running | None:
    """What computes the checksum of the same kind as ``ALGORITHM:value`` (model.Stored.checksum); None when that is of
    an object's parts, or of a kind that is not known here."""
    algorithm, _, value = checksum.partition(":")
    if not value or "-" in value:
        return None
    if algorithm in _CRCS:
        update, size = _CRCS[algorithm]
        return _Crc(algorithm.lower(), update, size)
    return _Digest(algorithm.lower()) if algorithm in ("SHA256", "SHA1") else None


def sha256_in(checksum: str) -> str:
    """The SHA-256 of a whole object (hex), when it is what ``ALGORITHM:value`` tells; empty when it is not."""
    algorithm, _, value = checksum.partition(":")
    try:
        return base64.b64decode(value, validate=True).hex() if algorithm == "SHA256" else ""
    except ValueError:  # of parts: with their number
        return ""


class _Digest:
    def __init__(self, name: str) -> None:
        self.evidence = name
        self._digest = hashlib.new(name, usedforsecurity=False)
        self.update: Callable[[Bytes], None] = self._digest.update

    def text(self) -> str:
        return base64.b64encode(self._digest.digest()).decode()


class _Crc:
    def __init__(self, name: str, update: Callable[[Bytes, int], int], size: int) -> None:
        """``size``: of its value (bytes)."""
        self.evidence = name
        self._update, self._size, self._crc = update, size, 0

    def update(self, data: Bytes, /) -> None:
        self._crc = self._update(data, self._crc)

    def text(self) -> str:
        return base64.b64encode(self._crc.to_bytes(self._size)).decode()


def _crc32c(data: Bytes, before: int) -> int:
    from awscrt import checksums

    return int(checksums.crc32c(data, before))


_CRCS: dict[str, tuple[Callable[[Bytes, int], int], int]] = {
    "CRC64NVME": (crc64nvme, 8),
    "CRC32C": (_crc32c, 4),
    "CRC32": (zlib.crc32, 4),
}
"""How each goes on from what it was, and the bytes of its value, the highest first."""
