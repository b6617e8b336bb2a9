"""What a server's digests of an object say of a file, when another program put the object there (PRODUCT I2).

The ETag of an object that was sent in one piece is the MD5 of its bytes; of one sent in parts it is the MD5 of the
parts' MD5s, with their number: ``9b2c…-14`` (S3 user guide, "Checking object integrity"). The size of the parts is not
told: those that programs use, and that make this number of parts, are tried. A checksum that the server keeps of the
whole is better than either, and programs of today have it kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from quaymaster.destinations import checksums
from quaymaster.model import Stored

_MIB = 1 << 20
_ETAG = re.compile(r"([0-9a-f]{32})(?:-([1-9][0-9]{0,4}))?")

# In MiB: boto3 and the AWS CLI 8, rclone and mc 5 and 16, s3cmd 15, s5cmd 50; larger ones are set by hand.
_PART_SIZES = (5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 32, 48, 50, 64, 96, 100, 128, 200, 250, 256, 500, 512, 1024, 5120)
_MOST_TRIED = 6
_ENOUGH = frozenset({"SHA256", "SHA1", "CRC64NVME"})
"""Checksums that are enough to take an object for a file's copy: of 32 bits, one in four thousand million objects of
the same size has the same by chance."""


@dataclass(frozen=True, slots=True)
class Told:
    """A digest of a whole object that can be computed from the file alone."""

    checksum: str
    """``ALGORITHM:value`` of the whole object, as the server keeps it; empty when it keeps none that would do."""
    md5: str
    """Of the object, or of its parts' MD5s."""
    part_sizes: tuple[int, ...]
    """Bytes; empty for an object in one piece."""

    @classmethod
    def by(cls, stored: Stored) -> Told | None:
        """None when nothing is told that could be compared."""
        if stored.checksum.partition(":")[0] in _ENOUGH and checksums.of_whole(stored.checksum):
            return cls(stored.checksum, "", ())
        match = _ETAG.fullmatch(stored.etag)
        if match is None:
            return None
        md5, parts = match.groups()
        sizes = part_sizes(stored.size, int(parts)) if parts else ()
        return None if parts and not sizes else cls("", md5, sizes)

    def compare(self, read: Callable[[], bytes]) -> tuple[str, str]:
        """SHA-256 (hex) of what ``read`` gives, and the evidence that it is what was told of: empty if it is not."""
        whole = hashlib.sha256()
        told = checksums.sha256_in(self.checksum)
        kept = None if told else checksums.of_whole(self.checksum)
        md5 = None if told or kept else Running(self)
        while data := read():
            whole.update(data)
            if beside := kept or md5:
                beside.update(data)
        sha256 = whole.hexdigest()
        if md5 is not None:
            same, of_parts = md5.verdict()
            return sha256, ("etag-md5-parts" if of_parts else "etag-md5") if same else ""
        if kept is not None:
            return sha256, kept.evidence if kept.text() == self.checksum.partition(":")[2] else ""
        return sha256, "sha256" if sha256 == told else ""


class Running:
    """Bytes that are compared with an ETag as they come."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._plain = None if told.part_sizes else hashlib.md5(usedforsecurity=False)
        self._parts = [_Parts(size) for size in told.part_sizes]

    def update(self, data: bytes | memoryview) -> None:
        if self._plain:
            self._plain.update(data)
        for each in self._parts:
            each.update(data)

    def verdict(self) -> tuple[bool, bool]:
        """Whether they are the same, and whether that is said of parts whose size had to be guessed."""
        if self._plain:
            return self._plain.hexdigest() == self._told.md5, False
        return any(each.digest() == self._told.md5 for each in self._parts), True


def part_sizes(size: int, parts: int) -> tuple[int, ...]:
    """Sizes of parts (bytes) that programs use and that cut ``size`` bytes into so many parts."""
    fair = -(-size // parts)  # what cuts it into equal parts, rounded up to whole MiB as some programs do
    tried = [n * _MIB for n in _PART_SIZES] + [-(-fair // _MIB) * _MIB, fair]
    fitting = dict.fromkeys(part for part in tried if part and -(-size // part) == parts)
    return tuple(fitting)[:_MOST_TRIED] if size else ()


class _Parts:
    """The MD5 of the MD5s of parts of one size."""

    def __init__(self, size: int) -> None:
        self._size, self._left = size, size
        self._part = hashlib.md5(usedforsecurity=False)
        self._all = hashlib.md5(usedforsecurity=False)

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            piece = view[: self._left]
            self._part.update(piece)
            self._left -= len(piece)
            view = view[len(piece) :]
            if not self._left:
                self._close_part()

    def _close_part(self) -> None:
        self._all.update(self._part.digest())
        self._part = hashlib.md5(usedforsecurity=False)
        self._left = self._size

    def digest(self) -> str:
        if self._left != self._size:
            self._close_part()
        return self._all.hexdigest()
