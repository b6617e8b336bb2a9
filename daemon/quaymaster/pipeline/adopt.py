"""Recognising copies that are at a destination already, made by an earlier life of this host (PRODUCT I5) or by another
program (I2).

An object of ours in S3 tells by its metadata what it is a copy of: size, mtime and SHA-256 of the source. What another
program put there, uncompressed, is told by its SHA-256 or its ETag, for which the source is read (etag.py). Elsewhere
the copy is read too, and expanded, and its content compared with the source's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from quaymaster import keys
from quaymaster.destinations.base import Destination
from quaymaster.errors import IntegrityError, TransferError
from quaymaster.model import Compression, Digests, FileVersion, Identity, Proof, Stored
from quaymaster.pipeline import codec, etag, reader
from quaymaster.source import Root

_MOST_VERSIONS = 1000
"""Of one file with on_change = "keep-both", that are looked for."""


@dataclass(frozen=True, slots=True)
class Told:
    """What an object's metadata says of its source."""

    size: int
    mtime_ns: int
    sha256: str
    compression: Compression

    @classmethod
    def by(cls, stored: Stored) -> Told | None:
        """None when the object has no such metadata, or it makes no sense."""
        said = stored.metadata
        try:
            told = cls(
                int(said["quaymaster-size"]),
                int(said["quaymaster-mtime"]),
                said["quaymaster-sha256"],
                Compression(said["quaymaster-compression"]),
            )
            sane = told.size >= 0 and len(bytes.fromhex(told.sha256)) == 32
        except (KeyError, ValueError):
            return None
        return told if sane else None


@dataclass(frozen=True, slots=True)
class Shelf:
    """One destination of a watch, and how it is looked up there: in a listing, or one by one."""

    name: str
    destination: Destination
    look: Callable[[str], Stored | None]


def copies(
    version: FileVersion,
    root: Root,
    shelf: Shelf,
    template: str,
    host: str,
    wanted: Iterable[Compression],
    foreign: Collection[Compression] = tuple(Compression),
) -> tuple[Proof | None, list[Proof]]:
    """The proof of a copy of this very version at a destination, and of older versions of the same file there (whose
    inode nobody knows any more). What does not tell itself what it is, is compared only when ``foreign`` names its
    form. Raises TransferError."""
    older: list[Proof] = []
    for number in range(1, _MOST_VERSIONS):
        found = False
        for compression in wanted:
            key = keys.key_for(
                template, watch=version.watch, path=version.path, host=host, suffix=compression.suffix, version=number
            )
            if (listed := shelf.look(key)) is None:
                continue
            found = True
            proof = _proof(version, root, shelf, listed, compression, foreign)
            if proof is not None and proof.version == version:
                return proof, older
            if proof is not None:
                older.append(proof)
        if not found:
            break
    return None, older


def left_by_another(
    version: FileVersion,
    shelf: Shelf,
    template: str,
    host: str,
    wanted: Iterable[Compression],
    sha256: str = "",
    moved: Callable[[int], None] = lambda stored_bytes: None,
) -> Proof | None:
    """The proof of a copy of a version whose source is gone, because another host on the same share was quicker to
    deliver it and to remove it. A copy has its source's time; what does not tell its size too is expanded to see that.
    ``sha256`` of the source, if it was read before that. Raises TransferError."""
    for compression in wanted:
        key = keys.key_for(template, watch=version.watch, path=version.path, host=host, suffix=compression.suffix)
        stored = shelf.look(key)
        if stored is None or stored.metadata.get("quaymaster-mtime") != str(version.identity.mtime_ns):
            continue
        told = Told.by(stored)
        if told is not None:
            proof = replace(_by_metadata(version.watch, version.path, shelf.name, stored, told), version=version)
        else:
            try:
                proof = _read_back(version, shelf, stored, compression, moved)
            except IntegrityError:
                continue
        if proof.source.size == version.size and sha256 in ("", proof.source.sha256):
            return proof
    return None


def orphan(shelf: Shelf, listed: Stored, watch: str, template: str, host: str) -> Proof | None:
    """The proof of an object whose source is not here any more, by its metadata alone; None when it is not ours, or is
    of no file of this watch."""
    stored = shelf.destination.stat(listed.key)
    told = Told.by(stored) if stored else None
    if stored is None or told is None:
        return None
    path = keys.path_of(template, stored.key, watch=watch, host=host, suffix=told.compression.suffix)
    return _by_metadata(watch, path, shelf.name, stored, told) if path else None


def _proof(
    version: FileVersion,
    root: Root,
    shelf: Shelf,
    listed: Stored,
    compression: Compression,
    foreign: Collection[Compression],
) -> Proof | None:
    stored = shelf.destination.stat(listed.key)
    if stored is None:
        return None
    told = Told.by(stored)
    if told is not None:
        same = (told.size, told.mtime_ns) == (version.size, version.identity.mtime_ns)
        proof = _by_metadata(version.watch, version.path, shelf.name, stored, told)
        return replace(proof, version=version) if same else proof
    if compression not in foreign:
        return None
    if compression is Compression.NONE:
        if stored.size != version.size:
            return None
        if found := _by_digest(version, root, shelf, stored):
            return found
    return _by_content(version, root, shelf, stored, compression)


def _by_digest(version: FileVersion, root: Root, shelf: Shelf, stored: Stored) -> Proof | None:
    """None when the server tells no digest of the whole, or another one: it may be of something else than the bytes
    (an encrypted object's ETag), so this proves no difference."""
    told = etag.Told.by(stored)
    if told is None:
        return None
    with reader.opened(root, version.path, version.identity) as source:
        sha256, evidence = told.compare(source.pieces(lambda: False))
        reader.unchanged(root, version.path, source, version.identity)
    if not evidence:
        return None
    digests = Digests(version.size, sha256)
    return Proof(
        job=0,
        version=version,
        destination=shelf.name,
        source=digests,
        stored_digests=digests,
        compression=Compression.NONE,
        compression_note="",
        stored=replace(stored, evidence=evidence),
        delivered_at=stored.mtime,
    )


def _by_metadata(watch: str, path: bytes, name: str, stored: Stored, told: Told) -> Proof:
    # Of an object in one part, some servers tell the SHA-256 of the whole; else it is not known, but for its size.
    sha256 = told.sha256 if told.compression is Compression.NONE else ""
    return Proof(
        job=0,
        version=FileVersion(watch, path, Identity(0, told.size, told.mtime_ns)),
        destination=name,
        source=Digests(told.size, told.sha256),
        stored_digests=Digests(stored.size, sha256),
        compression=told.compression,
        compression_note="",
        stored=replace(stored, evidence="metadata"),
        delivered_at=stored.mtime,
    )


def _by_content(
    version: FileVersion, root: Root, shelf: Shelf, stored: Stored, compression: Compression
) -> Proof | None:
    """Both are read. A copy that cannot be expanded, or to other bytes, is none of this version."""
    try:
        proof = _read_back(version, shelf, stored, compression)
        with reader.opened(root, version.path, version.identity) as source:
            original = source.digest(lambda: False)
    except IntegrityError:
        return None
    if proof.source.sha256 != original:
        return None
    shelf.destination.make_durable(stored)
    return proof


def _read_back(
    version: FileVersion,
    shelf: Shelf,
    stored: Stored,
    compression: Compression,
    moved: Callable[[int], None] = lambda stored_bytes: None,
) -> Proof:
    """What the copy holds, expanded. Raises IntegrityError when it cannot be expanded to so many bytes."""
    with shelf.destination.read(stored) as pieces:
        counted = _Counted(pieces, moved)
        expanded = codec.digest(codec.expand(counted, compression, size=version.size))
    return Proof(
        job=0,
        version=version,
        destination=shelf.name,
        source=Digests(version.size, expanded),
        stored_digests=Digests(counted.size, counted.sha256()),
        compression=compression,
        compression_note="",
        stored=replace(stored, checksum=f"sha256:{counted.sha256()}", evidence="readback"),
        delivered_at=stored.mtime,
    )


class _Counted:
    """Passes pieces on, and digests them on the way."""

    def __init__(self, pieces: Iterable[bytes], moved: Callable[[int], None]) -> None:
        import hashlib

        self._moved = moved
        self._pieces, self._digest, self.size = iter(pieces), hashlib.sha256(), 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        self._digest.update(piece)
        self.size += len(piece)
        self._moved(self.size)
        return piece

    def sha256(self) -> str:
        return self._digest.hexdigest()


__all__ = ["Shelf", "Told", "TransferError", "copies", "left_by_another", "orphan"]
