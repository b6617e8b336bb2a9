"""The source of one job: opened safely, and known to be the version the job is about."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from quaymaster.destinations import crc64
from quaymaster.destinations.ahead import in_order
from quaymaster.errors import IntegrityError, SourceChanged
from quaymaster.model import Digests, Identity
from quaymaster.pipeline.budget import Cancelled
from quaymaster.source import Pulse, Root, identity_of, source_error

PIECE = 1 << 20
"""Bytes read at a time."""


@dataclass(slots=True)
class Reader:
    """An open source. ``known_sha256`` is its digest where an earlier reading (of the network original) gave one,
    ``known_crc64nvme`` the CRC-64/NVME of the same reading where it was made."""

    descriptor: int
    size: int
    mode: int
    shown: str
    known_sha256: str = ""
    known_crc64nvme: int | None = None
    pulse: Pulse = field(default_factory=Pulse)

    def pieces(
        self, cancelled: Callable[[], bool], told: Callable[[int], None] = lambda _: None, at_once: int = 1
    ) -> Callable[[], bytes]:
        """A function that gives the content in order, b"" at its end. Each call of this method starts at byte 0. With
        ``at_once``, so many pieces are asked for at a time, by threads of their own."""
        offset = 0
        ahead = in_order(lambda at: self.at(at, PIECE), range(0, self.size if at_once > 1 else 0, PIECE), at_once)

        def read() -> bytes:
            nonlocal offset
            if cancelled():
                raise Cancelled
            data = next(ahead, b"")
            if len(data) < min(PIECE, self.size - offset):
                ahead.close()  # those behind it do not go on where it ends
            data = data or self.at(offset, PIECE)
            offset += len(data)
            told(offset)
            return data

        return read

    def at(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``, fewer only at the end."""
        try:
            with self.pulse:
                return os.pread(self.descriptor, length, offset)
        except OSError as error:
            raise source_error(error, self.shown) from None

    def known(self) -> Digests | None:
        """Both digests of an earlier reading."""
        if not self.known_sha256 or self.known_crc64nvme is None:
            return None
        return Digests(self.size, self.known_sha256, crc64nvme=self.known_crc64nvme)

    def digest(self, cancelled: Callable[[], bool]) -> str:
        """SHA-256 of the content, by reading it once."""
        return self.digests(cancelled, crc=False).sha256

    def digests(self, cancelled: Callable[[], bool], *, crc: bool) -> Digests:
        """The same, and if asked for the CRC-64/NVME too."""
        total, running = hashlib.sha256(), 0
        read = self.pieces(cancelled)
        while data := read():
            total.update(data)
            running = crc64.crc64nvme(data, running) if crc else 0
        return Digests(self.size, total.hexdigest(), crc64nvme=running if crc else None)


@contextmanager
def opened(root: Root, path: bytes, expected: Identity) -> Iterator[Reader]:
    """Open one version of a file beneath its root. Raises SourceChanged when another version is there by now."""
    shown = root.shown(path)
    try:
        with root.pulse:
            descriptor = root.open(path)
    except OSError as error:
        raise source_error(error, shown) from None
    try:
        status = status_of(root, descriptor, shown)
        if identity_of(status) != expected:
            raise SourceChanged(f"{shown} was changed after it was queued", "The newer version is taken")
        yield Reader(descriptor, status.st_size, status.st_mode & 0o7777, shown, pulse=root.pulse)
    finally:
        close(root, descriptor)


def unchanged(root: Root, path: bytes, reader: Reader, expected: Identity) -> None:
    """Raise SourceChanged unless both the open file and whatever has its name now are still that version."""
    with suppress(SourceChanged):
        if identity_of(status_of(root, reader.descriptor, reader.shown)) == expected:
            with opened(root, path, expected):
                return
    raise SourceChanged(f"{reader.shown} was changed while it was read", "The newer version is taken")


def close(root: Root, descriptor: int) -> None:
    """Close a source. Some filesystems give errors even then, which say nothing about what was read."""
    with suppress(OSError), root.pulse:
        os.close(descriptor)


def status_of(root: Root, descriptor: int, shown: str) -> os.stat_result:
    """fstat(2) of an open source."""
    try:
        with root.pulse:
            return os.fstat(descriptor)
    except OSError as error:
        raise source_error(error, shown) from None


def same(expected: str, found: str, what: str) -> None:
    """Raise IntegrityError unless two SHA-256 agree."""
    if expected != found:
        raise IntegrityError(
            f"{what}: SHA-256 {found} instead of {expected}", "Nothing was published; it is read again"
        )
