"""What is to be restored, and from where: by the ledger, or by what a destination alone tells (PRODUCT I6, X2).

Without a ledger, an object's metadata says what it is a copy of, and its key where the source was. An object without
such metadata (a directory keeps none) is taken as it is, under its own name: nothing proves what it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from quaymaster import keys
from quaymaster.destinations.base import Destination
from quaymaster.errors import NameRefused, TransferError
from quaymaster.model import Compression, Stored, watch_of
from quaymaster.pipeline.adopt import Told
from quaymaster.pipeline.landing import Ground
from quaymaster.pipeline.restore import Find, Source, Wanted
from quaymaster.store import Delivery, Place, Selection, Store

_SUFFIXES = tuple(form.suffix for form in Compression if form.suffix)
_TIMES = range(-(1 << 63), 1 << 63)
"""Nanoseconds that a 64-bit time can hold."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a file goes."""

    ground: Ground
    target: bytes
    at_home: bool = False


Locate = Callable[[str, bytes], Spot | str]
"""(watch, path) -> its spot, or why there is none."""


def from_ledger(store: Store, which: Selection, locate: Locate) -> Iterator[Find]:
    """The newest version in the selection of each of its files."""
    after: Place | None = None
    while files := store.files(which, after):
        after = files[-1][0]
        for _, deliveries in files:
            wanted = _recorded(deliveries, locate)
            yield lambda wanted=wanted: [wanted]  # type: ignore[misc]


def _recorded(deliveries: Sequence[Delivery], locate: Locate) -> Wanted:
    newest = deliveries[0].proof
    version = newest.version
    watch = watch_of(version.watch)  # a unit's lists belong beside its files
    spot = locate(watch, version.path)
    here = spot if isinstance(spot, Spot) else None
    return Wanted(
        watch=watch,
        path=version.path,
        ground=here.ground if here else None,
        target=here.target if here else b"",
        sources=tuple(_source(delivery) for delivery in deliveries),
        size=version.size,
        sha256=newest.source.sha256,
        mtime_ns=version.identity.mtime_ns,
        at_home=here is not None and here.at_home,
        refused="" if isinstance(spot, Spot) else spot,
    )


def _source(delivery: Delivery) -> Source:
    proof = delivery.proof
    gone = ""
    if delivery.replaced and not proof.stored.version_id:
        gone = f"A newer version took the place of {proof.stored.key} at {proof.destination}, which keeps no older ones"
    return Source(proof.destination, proof.stored, proof.compression, gone)


# -- without a ledger --


@dataclass(frozen=True, slots=True)
class Origin:
    """A watch that delivers to the destination, and its template for keys."""

    watch: str
    template: str
    host: str


def from_destination(
    destination: Destination,
    prefix: str,
    origins: Sequence[Origin],
    locate: Callable[[str, bytes, bytes], Spot | str | None],
) -> Iterator[Find]:
    """Every object under the prefix. ``locate`` is given the watch and path ("" and b"" when no template tells them)
    and the path that the key is; None means that the file is not wanted.

    Objects that may be copies of one file are looked at together: the newest of them is restored. Keys in two spellings
    are of that kind too. The whole listing is held in memory.
    """
    groups: dict[bytes, list[Stored]] = {}
    refused: list[tuple[Stored, str]] = []
    for stored in destination.listing(prefix):
        try:
            groups.setdefault(_bare(keys.unescape(stored.key)), []).append(stored)
        except NameRefused as error:
            refused.append((stored, str(error)))
    for stored, text in refused:
        yield lambda stored=stored, text=text: [_refusal(destination.name, stored, text)]  # type: ignore[misc]
    for group in groups.values():
        yield lambda group=group: _told(destination, group, origins, locate)  # type: ignore[misc]


def _bare(path: bytes) -> bytes:
    for suffix in _SUFFIXES:
        if path.endswith(suffix.encode()):
            return path.removesuffix(suffix.encode())
    return path


def _told(
    destination: Destination,
    group: Iterable[Stored],
    origins: Sequence[Origin],
    locate: Callable[[str, bytes, bytes], Spot | str | None],
) -> Iterator[Wanted]:
    found: list[Wanted] = []
    for listed in group:
        try:
            stored = destination.stat(listed.key)
        except TransferError as error:
            found.append(_refusal(destination.name, listed, f"It cannot be asked for: {error}"))
            continue
        if stored is not None and (wanted := _wanted(destination.name, stored, origins, locate)):
            found.append(wanted)
    newest: dict[tuple[str, bytes], Wanted] = {}
    for wanted in sorted(found, key=lambda wanted: wanted.sources[0].stored.mtime, reverse=True):
        place = (wanted.ground.path if wanted.ground else "", wanted.target)
        if wanted.refused:
            yield wanted
        elif place not in newest:
            newest[place] = wanted
            yield wanted
        else:
            other = newest[place].sources[0].stored.key
            yield replace(wanted, refused=f"{other} is a newer copy of the same file, and is the one that is restored")


def _wanted(
    name: str,
    stored: Stored,
    origins: Sequence[Origin],
    locate: Callable[[str, bytes, bytes], Spot | str | None],
) -> Wanted | None:
    told = Told.by(stored)
    if told is None and any(key in stored.metadata for key in ("quaymaster-sha256", "quaymaster-size")):
        return _refusal(name, stored, "Its metadata is not what quaymaster writes")
    if told is not None and told.mtime_ns not in _TIMES:
        return _refusal(name, stored, f"Its metadata has an impossible time: {told.mtime_ns} ns")
    compression = told.compression if told else Compression.NONE
    whole = keys.unescape(stored.key)
    if compression.suffix and whole.endswith(compression.suffix.encode()):
        whole = whole.removesuffix(compression.suffix.encode())
    watch, path = _origin(stored.key, compression.suffix, origins)
    spot = locate(watch, path, whole)
    if spot is None:
        return None
    here = spot if isinstance(spot, Spot) else None
    return Wanted(
        watch=watch,
        path=path or whole,
        ground=here.ground if here else None,
        target=here.target if here else whole,
        sources=(Source(name, stored, compression),),
        size=told.size if told else stored.size,
        sha256=told.sha256 if told else "",
        mtime_ns=told.mtime_ns if told else _mtime(stored),
        at_home=here is not None and here.at_home,
        refused=spot if isinstance(spot, str) else "",
    )


def _origin(key: str, suffix: str, origins: Sequence[Origin]) -> tuple[str, bytes]:
    """The one watch and path that have this key; ("", b"") when there are none, or several."""
    found = []
    for origin in origins:
        path = keys.path_of(origin.template, key, watch=origin.watch, host=origin.host, suffix=suffix)
        if path is not None:
            found.append((origin.watch, path))
    return found[0] if len(found) == 1 else ("", b"")


def _mtime(stored: Stored) -> int:
    try:
        exact = int(stored.metadata["quaymaster-mtime"])
    except (KeyError, ValueError):
        exact = round(stored.mtime * 1e6) * 1000
    return exact if exact in _TIMES else 0


def _refusal(name: str, stored: Stored, text: str) -> Wanted:
    source = Source(name, stored, Compression.NONE)
    path = stored.key.encode("utf-8", "surrogateescape")
    return Wanted("", path, None, path, (source,), stored.size, "", 0, refused=text)
