"""In what state directories are: which of their files are compressed already, and what compressing the rest would save
(PRODUCT I4)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from quaymaster.errors import TransferError
from quaymaster.intake.scan import Row, Rules, Tally, rows
from quaymaster.source import Root

_MAGIC = {b".gz": b"\x1f\x8b", b".zst": b"\x28\xb5\x2f\xfd"}  # RFC 1952, RFC 8878
_FASTQ = (b".fastq", b".fq")
_FASTQ_RATIO = 4.0


class Standing(StrEnum):
    """Of all files of one directory."""

    ALL_COMPRESSED = "ALL_COMPRESSED"
    ALL_UNCOMPRESSED = "ALL_UNCOMPRESSED"
    ALL_BOTH = "ALL_BOTH"
    """Each file is there in both forms."""
    MIXED = "MIXED"


@dataclass(slots=True)
class Directory:
    """Numbers of files; sizes in bytes."""

    path: bytes
    """Relative to what was looked at."""
    uncompressed: int = 0
    uncompressed_bytes: int = 0
    compressed: int = 0
    compressed_bytes: int = 0
    both: int = 0
    """Files of which both forms are there."""
    would_save: int = 0
    """What compressing those without a compressed form would save, as far as a ratio is known."""

    @property
    def standing(self) -> Standing:
        if self.both == self.uncompressed == self.compressed:
            return Standing.ALL_BOTH
        if not self.uncompressed:
            return Standing.ALL_COMPRESSED
        return Standing.MIXED if self.compressed else Standing.ALL_UNCOMPRESSED


@dataclass(slots=True)
class Report:
    """Looks at a tree. ``ratio``: how many times smaller compressed copies of these files were, None if not known (then
    only FASTQ has one, 4); ``min_size``: files of at most so many bytes are not compressed."""

    root: Root
    rules: Rules
    ratio: float | None
    min_size: int
    start: bytes = b""
    tally: Tally = field(default_factory=Tally)
    unreadable: list[bytes] = field(default_factory=list)
    """Files whose beginning could not be read: they count by their names."""

    def directories(self) -> Iterator[Directory]:
        """Each directory with a file in it. OSError is raised for the root alone."""
        here: bytes | None = None
        mine: list[Row] = []
        for piece in rows(self.root, self.rules, self.tally, self.start):
            for row in piece:
                folder = row[0].rpartition(b"/")[0]
                if folder != here and mine:  # the walker finishes one directory before the next
                    yield self._directory(here or b"", mine)
                    mine = []
                here = folder
                mine.append(row)
        if mine:
            yield self._directory(here or b"", mine)

    def _directory(self, path: bytes, found: list[Row]) -> Directory:
        one = Directory(path)
        bare = {row[0] for row in found}
        plain: dict[bytes, int] = {}
        packed: set[bytes] = set()
        for name, _, size, _ in found:
            if (base := self._expanded_name(name)) is None:
                plain[name] = size
                one.uncompressed_bytes += size
            else:
                packed.add(base)
                one.compressed += 1
                one.compressed_bytes += size
        one.uncompressed = len(plain)
        one.both = sum(base in bare for base in packed)
        one.would_save = int(sum(self._saving(n, size) for n, size in plain.items() if n not in packed))
        return one

    def _expanded_name(self, path: bytes) -> bytes | None:
        """The name of what is compressed in a file; None when it is not compressed."""
        stem, suffix = os.path.splitext(path)
        magic = _MAGIC.get(suffix)
        if magic is None:
            return None
        try:
            descriptor = self.root.open(path)
            try:
                return stem if os.read(descriptor, len(magic)) == magic else None
            finally:
                os.close(descriptor)
        except (OSError, TransferError):
            self.unreadable.append(path)
            return stem

    def _saving(self, path: bytes, size: int) -> float:
        ratio = self.ratio or (_FASTQ_RATIO if path.endswith(_FASTQ) else 1.0)
        return size * (1 - 1 / ratio) if size > self.min_size and ratio > 1 else 0.0
