"""A unit's manifest and its list of checksums: writing them, and reading a manifest back (PRODUCT W5).

Both are written from the ledger, one file of the unit at a time, and have one line for each. A manifest is of one
destination: its keys and what is stored there. ``SHA256SUMS`` is of the sources, so that ``sha256sum -c`` accepts a
unit that was restored; its own SHA-256 is the digest of the unit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO

from quaymaster import __version__
from quaymaster.errors import IntegrityError, NameRefused
from quaymaster.keys import escape, unescape
from quaymaster.model import MANIFEST, SUMS, Compression, State, Stored, shown
from quaymaster.store import Contents, Delivery, Unit

FORMAT = 1
"""Counts up when a reader of the earlier format would misread a manifest."""
OTHER_SUMS = f"quaymaster-{SUMS}"
_FILES, _END, _MISSING = b' "files": [', b" ]", b' "missing": ['
_LONGEST_LINE = 1 << 20
_MOST_MISSING = 10_000
"""Files that are missing and named; all are counted."""
_LONGEST_HEAD = 200
"""Lines."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written for one destination."""

    sums: bytes
    """The name of the list, below the unit."""
    contents: Contents


def write(
    folder: bytes,
    unit: Unit,
    host: str,
    destination: str,
    delivered: Iterable[Delivery],
    undelivered: Iterable[tuple[bytes, State, str]],
    cancelled: Callable[[], bool] = lambda: False,
) -> Written | None:
    """Write both into a directory, durably, with the time at which the unit was complete; None when ``cancelled``. The
    same unit gives the same bytes."""
    lines, below = os.path.join(folder, b".lines"), len(unit.path) + 1
    count = size = 0
    digest, sums = hashlib.sha256(), os.path.join(folder, b".sums")
    name = SUMS
    with open(sums, "wb") as list_file, open(lines, "wb") as body:
        for delivery in delivered:
            if cancelled():
                return None
            proof = delivery.proof
            path = proof.version.path[below:]
            if path == MANIFEST.encode():
                continue  # nothing that is taken has this name: an earlier one, found at the destination
            name = OTHER_SUMS if path == SUMS.encode() else name
            line = sums_line(proof.source.sha256, path)
            list_file.write(line)
            digest.update(line)
            body.write((b",\n" if count else b"") + b"  " + _json(_entry(delivery, path)))
            count, size = count + 1, size + proof.version.size
        _fsync(list_file)
    missing, lacking = [], 0
    for path, state, error in undelivered:
        lacking += 1
        if lacking <= _MOST_MISSING:
            why = {"error": error} if error else {}
            missing.append({"path": escape(path[below:]), "state": state.value, **why})
    contents = Contents(count, size, lacking, digest.hexdigest())
    head = _head(unit, host, destination, name, contents)
    manifest = os.path.join(folder, MANIFEST.encode())
    with open(manifest + b".new", "wb") as whole, open(lines, "rb") as body:
        whole.write(b"{\n" + b"".join(b" " + _json(key) + b": " + _json(value) + b",\n" for key, value in head.items()))
        whole.write(_FILES + b"\n")
        while piece := body.read(1 << 20):
            whole.write(piece)
        whole.write((b"\n" if count else b"") + _END + b",\n" + _MISSING + b"\n")
        whole.write(b",\n".join(b"  " + _json(one) for one in missing))
        whole.write((b"\n" if missing else b"") + _END + b"\n}\n")
        _fsync(whole)
    os.unlink(lines)
    for made, final in ((sums, os.path.join(folder, name.encode())), (manifest + b".new", manifest)):
        at = int((unit.completed_at or 0) * 1e9)
        os.utime(made, ns=(at, at))
        os.chmod(made, 0o644)
        os.replace(made, final)
    return Written(name.encode(), contents)


def _head(unit: Unit, host: str, destination: str, sums: str, contents: Contents) -> dict[str, Any]:
    at = datetime.fromtimestamp(unit.completed_at or 0.0, UTC)
    return {
        "quaymaster": __version__,
        "format": FORMAT,
        "unit": escape(unit.path),
        "watch": unit.watch,
        "host": host,
        "destination": destination,
        "generation": unit.generation,
        "completed_at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "complete_by": unit.complete_by,
        "forced_by": unit.forced_by,
        "file_count": contents.files,
        "bytes": contents.bytes,
        "missing_count": contents.missing,
        "sums": sums,
        "digest": f"sha256:{contents.digest}",
    }


def _entry(delivery: Delivery, path: bytes) -> dict[str, Any]:
    proof, stored = delivery.proof, delivery.proof.stored
    return {
        "path": escape(path),
        "size": proof.version.size,
        "mtime_ns": proof.version.identity.mtime_ns,
        "sha256": proof.source.sha256,
        "key": stored.key,
        "stored": {
            "size": stored.size,
            "etag": stored.etag,
            "version_id": stored.version_id,
            "sha256": proof.stored_digests.sha256,
            "compression": proof.compression.value,
        },
    }


def sums_line(sha256: str, path: bytes) -> bytes:
    """As sha256sum(1) writes it: a name with a backslash or line break is escaped, and the line begins with one."""
    escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    return (b"\\" if escaped != path else b"") + sha256.encode() + b"  " + escaped + b"\n"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _fsync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


# -- reading --


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a unit, as its manifest tells."""

    path: bytes
    """Below the unit."""
    size: int
    mtime_ns: int
    sha256: str
    stored: Stored
    stored_sha256: str
    compression: Compression


class Manifest:
    """A manifest as it comes, line by line. Raises IntegrityError for what no manifest is, and at the end when the
    files are not those that its digest is of; NameRefused for a path that leads out of the unit."""

    def __init__(self, pieces: Iterable[bytes], where: str) -> None:
        self._lines, self._where = _lines(pieces, where), where
        head = b""
        for _, line in zip(range(_LONGEST_HEAD), self._lines, strict=False):
            if line == _FILES:
                break
            head += line
        else:
            raise self._wrong('it has no "files"')
        self.head = self._parsed(head.rstrip(b",") + b"}")
        if self.head.get("format") != FORMAT:
            raise self._wrong(f"its format is {self.head.get('format')!r}, and this quaymaster reads {FORMAT}")
        try:
            self.unit = unescape(str(self.head["unit"]))
            self.generation = int(self.head["generation"])
            self.digest = str(self.head["digest"]).removeprefix("sha256:")
            self.sums = str(self.head["sums"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._wrong(f"its head is not complete ({error})") from None
        if self.sums not in (SUMS, OTHER_SUMS):
            raise self._wrong("the name of its list of checksums is not one")

    def contents(self) -> Contents:
        """What its head says."""
        return Contents(
            int(self.head["file_count"]), int(self.head["bytes"]), int(self.head["missing_count"]), self.digest
        )

    def files(self) -> Iterator[Entry]:
        digest, number = hashlib.sha256(), 0
        for line in self._lines:
            if line.startswith(_END):
                break
            entry = self._entry(self._parsed(line.rstrip(b",")))
            digest.update(sums_line(entry.sha256, entry.path))
            number += 1
            yield entry
        else:
            raise self._wrong("its end is missing")
        if digest.hexdigest() != self.digest or number != self.head.get("file_count"):
            raise self._wrong("its digest is of other files")

    def _entry(self, said: Mapping[str, Any]) -> Entry:
        try:
            stored = said["stored"]
            entry = Entry(
                path=unescape(str(said["path"])),
                size=int(said["size"]),
                mtime_ns=int(said["mtime_ns"]),
                sha256=str(said["sha256"]),
                stored=Stored(
                    str(said["key"]), int(stored["size"]), str(stored["etag"]), str(stored.get("version_id", ""))
                ),
                stored_sha256=str(stored["sha256"]),
                compression=Compression(stored["compression"]),
            )
            if min(entry.size, entry.stored.size) < 0 or len(bytes.fromhex(entry.sha256)) != 32:
                raise ValueError("a size or digest that none is")
            unescape(entry.stored.key)
        except NameRefused:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._wrong(f"an entry cannot be read ({error})") from None
        return entry

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self._wrong("it is not laid out as quaymaster writes it")
        return found

    def _wrong(self, what: str) -> IntegrityError:
        return IntegrityError(f"{self._where} is no manifest that can be relied on: {what}", "Publish the unit again")


def _lines(pieces: Iterable[bytes], where: str) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > _LONGEST_LINE:
            raise IntegrityError(f"{shown(os.fsencode(where))} is no manifest: it has a line of {len(rest):,} bytes")
    if rest:
        yield rest


__all__ = ["Entry", "Manifest", "Written", "sums_line", "write"]
