"""A unit as a destination holds it, known by its manifest alone: to verify it, and to bring it back (PRODUCT W5).

The manifest is copied to a file without a name first and checked against its digest as a whole, so that nothing is done
by half of one, and however many files it tells of, one line at a time is in memory.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import IO

from quaymaster.destinations.base import Destination
from quaymaster.errors import IntegrityError, PermanentError, TransferError
from quaymaster.keys import key_for
from quaymaster.model import MANIFEST, Compression, Digests, Stored, shown
from quaymaster.pipeline import codec
from quaymaster.pipeline.formats import expand
from quaymaster.pipeline.manifest import Entry, Manifest, sums_line
from quaymaster.pipeline.recall import Spot
from quaymaster.pipeline.restore import Find, Source, Wanted

_MOST_GENERATIONS = 1000
"""Of one unit with on_change other than "replace", that are looked for."""
_AHEAD = 8
"""Files for each thread that are asked for before the first of them is answered."""

_FEW, _MOST_LISTED = 32, 200_000
"""Files from which on, and up to which, a unit is looked for by a listing: one by one is cheaper for fewer, and of more
a listing takes too much memory."""


@dataclass(frozen=True, slots=True)
class DeliveredUnit:
    destination: Destination
    key: str
    """Of the manifest."""
    head: Manifest
    """Its head is read, its files are not."""
    stored: Stored
    """The manifest as an object."""
    digests: Digests
    """Of the manifest."""
    _file: IO[bytes]

    @property
    def watch(self) -> str:
        return str(self.head.head.get("watch", ""))

    def files(self) -> Iterator[Entry]:
        """From the beginning; one caller at a time."""
        yield from _manifest(self._file, self.key, self.destination.name).files()

    def sums(self) -> Iterator[bytes]:
        """The lines of its list of checksums; they have the digest that the manifest tells."""
        return (sums_line(entry.sha256, entry.path) for entry in self.files())

    def finds(self, locate: Callable[[bytes], Spot | str]) -> Iterator[Find]:
        """What is to be restored. ``locate`` is given a path below the unit."""
        for entry in self.files():
            spot = locate(entry.path)
            here = spot if isinstance(spot, Spot) else None
            wanted = Wanted(
                watch=self.watch,
                path=self.head.unit + b"/" + entry.path,
                ground=here.ground if here else None,
                target=here.target if here else b"",
                sources=(Source(self.destination.name, entry.stored, entry.compression),),
                size=entry.size,
                sha256=entry.sha256,
                mtime_ns=entry.mtime_ns,
                at_home=here is not None and here.at_home,
                refused="" if isinstance(spot, Spot) else spot,
            )
            yield lambda wanted=wanted: [wanted]  # type: ignore[misc]

    def faults(self, read: bool, workers: int) -> Iterator[tuple[Entry, str, str]]:
        """Each of its files with what is wrong with its copy ("missing", "changed", "damaged", "unanswered"; empty:
        nothing) and a text. ``read``: every byte is read and expanded."""
        listed = {} if read else self._listed()
        under_way: deque[tuple[Entry, Future[tuple[str, str]]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            for entry in self.files():
                if listed.get(entry.stored.key) == (entry.stored.size, entry.stored.etag):
                    yield entry, "", ""
                    continue
                under_way.append((entry, pool.submit(_fault, self.destination, entry, read)))
                if len(under_way) >= workers * _AHEAD:
                    first, answer = under_way.popleft()
                    yield first, *answer.result()
            for first, answer in under_way:
                yield first, *answer.result()

    def _listed(self) -> Mapping[str, tuple[int, str]]:
        """Size and ETag of what a listing shows where its files are. What is not in it is still asked for by itself."""
        keys = (entry.stored.key for entry in self.files())
        first = least = most = next(keys, "")
        number = 1
        for key in keys:  # what the least and the most of them begin with, all do
            least, most, number = min(least, key), max(most, key), number + 1
        same = (a == b for a, b in zip(least, most, strict=False))
        beginning = first[: len(list(takewhile(bool, same)))]
        found: dict[str, tuple[int, str]] = {}
        if not _FEW < number <= _MOST_LISTED:
            return found
        try:
            for stored in self.destination.listing(beginning):
                found[stored.key] = stored.size, stored.etag
                if len(found) > 2 * number:  # most of it belongs to others
                    break
        except TransferError:
            return {}
        return found


@contextmanager
def opened(destination: Destination, key: str) -> Iterator[DeliveredUnit]:
    """The unit whose manifest has this key. Raises TransferError."""
    stored = destination.stat(key)
    if stored is None:
        raise PermanentError(
            f"There is no manifest {key} at {destination.name}",
            "Name the unit's directory, or the key of its manifest; quaymaster units says which are published",
        )
    with tempfile.TemporaryFile() as file:
        digest = hashlib.sha256()
        with destination.read(stored) as pieces:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
        end = file.tell()
        whole = _manifest(file, key, destination.name)
        for _ in whole.files():
            pass
        yield DeliveredUnit(destination, key, whole, stored, Digests(end, digest.hexdigest()), file)


def key_of(destination: Destination, template: str, watch: str, host: str, unit: bytes) -> str:
    """The key of the newest manifest of a unit of a watch."""
    found = ""
    for number in range(1, _MOST_GENERATIONS):
        path = unit + b"/" + MANIFEST.encode()
        key = key_for(template, watch=watch, path=path, host=host, version=number)
        if found and destination.stat(key) is None:
            break
        found = key
    return found


def _manifest(file: IO[bytes], key: str, destination: str) -> Manifest:
    file.seek(0)
    return Manifest(iter(lambda: file.read(1 << 20), b""), f"{key} at {destination}")


def _fault(destination: Destination, entry: Entry, read: bool) -> tuple[str, str]:
    then = entry.stored
    try:
        now = destination.stat(then.key)
        if now is None:
            return "missing", f"{then.key} is not there"
        if (now.size, now.etag) != (then.size, then.etag):
            return "changed", f"{then.key} is another object now ({now.size:,} bytes, ETag {now.etag})"
        if read:
            with destination.read(now) as pieces:
                found = codec.digest(expand(pieces, entry.compression, size=entry.size))
            if found != entry.sha256:
                how = "" if entry.compression is Compression.NONE else ", expanded,"
                return "damaged", f"{then.key}{how} has SHA-256 {found} instead of {entry.sha256}"
    except IntegrityError as error:
        return "damaged", str(error)
    except TransferError as error:
        return "unanswered", str(error)
    return "", ""


def shown_file(unit: DeliveredUnit, entry: Entry) -> str:
    """A file of it, for people."""
    return f"{shown(unit.head.unit)}/{shown(entry.path)}"


__all__ = ["DeliveredUnit", "key_of", "opened", "shown_file"]
