"""A disk that remembers the order of all that was written to it, and can lose power at any moment of that.

A guest runs the service on three filesystems (sources, state, archive) on one logged disk (dm-log-writes): what was
written but not flushed is not in the log yet, so that a piece of the log from its beginning is what a disk with a
volatile cache may hold after a cut. The host cuts the log, and another guest mounts what is left.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
FILESYSTEMS = ("source", "state", "archive")
FILESYSTEM_SIZE = 48 * MIB
LOG_SIZE = 2048 * MIB  # sparse
SECTOR = 512
HOST = "recorder"
"""The name of the machine that is cut off, and comes up again."""

# linux/drivers/md/dm-log-writes.c
_MAGIC = 0x6A736677736872
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_DISCARD, _MARK = 4, 8


def content(name: str, version: int) -> bytes:
    """Of a version of a file: always the same, never that of another."""
    dice = random.Random(f"{name} {version}")
    return dice.randbytes(dice.choice((700, 9_000, 60_000, 400_000)))


@dataclass(frozen=True)
class Written:
    """One entry of the log: bytes at a place, or a mark."""

    at: int
    data: bytes
    mark: str = ""


def entries(log: Path) -> Iterator[Written]:
    """Everything that a dm-log-writes log holds, in order."""
    with open(log, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        magic, _, count, sector = _SUPER.unpack_from(held)
        assert (magic, sector) == (_MAGIC, SECTOR), "this is no log of dm-log-writes"
        place = SECTOR
        for _ in range(count):
            at, sectors, flags, length = _ENTRY.unpack_from(held, place)
            if flags & _MARK:
                start = place + _ENTRY.size
                yield Written(0, b"", held[start : start + length].rstrip(b"\0").decode())
            elif not flags & _DISCARD:
                data = held[place + SECTOR : place + SECTOR + sectors * SECTOR]
                place += sectors * SECTOR
                yield Written(at * SECTOR, data)
            place += SECTOR


class Disk:
    """What the logged disk holds after some entries of its log."""

    def __init__(self) -> None:
        self._held = bytearray(FILESYSTEM_SIZE * len(FILESYSTEMS))

    def write(self, entry: Written) -> None:
        self._held[entry.at : entry.at + len(entry.data)] = entry.data

    def save(self, folder: Path) -> None:
        """An image of each filesystem, without its empty blocks."""
        folder.mkdir()
        for number, name in enumerate(FILESYSTEMS):
            with open(folder / f"{name}.img", "wb") as file:
                file.truncate(FILESYSTEM_SIZE)
                begin = number * FILESYSTEM_SIZE
                for offset in range(0, FILESYSTEM_SIZE, 64 << 10):
                    piece = self._held[begin + offset : begin + offset + (64 << 10)]
                    if piece.count(0) != len(piece):
                        os.pwrite(file.fileno(), piece, offset)
