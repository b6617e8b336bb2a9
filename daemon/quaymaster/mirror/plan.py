"""What a listing means: which objects are released together, and what cannot be released at all. Pure.

A version's directory is everything below ``name/version``, where the version is a positive number without leading
zeros; the name may have several parts (``team/model/1``). Without any number in its path, what is below ``name/other``
is a directory of its own, unless a model of that name has versions. A file beside versions (``name/config.json``), and
one at the top, is released by itself: a reader of several such files may see them at different times.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from quaymaster import keys
from quaymaster.errors import NameRefused
from quaymaster.model import Compression, Stored, shown
from quaymaster.pipeline.landing import require_name

VERSION = re.compile(rb"[1-9][0-9]{0,18}")
_OWN = (b".qm-", b".quaymaster-")
_SUFFIXES = tuple(form.suffix.encode() for form in Compression if form.suffix)
_LONGEST_PART = 255
"""Bytes (NAME_MAX)."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of the bucket."""

    path: bytes
    """Below the mirror."""
    stored: Stored
    tag: int


@dataclass(slots=True)
class Wanted:
    """What is released as one."""

    path: bytes
    directory: bool
    """False: one file by itself."""
    objects: dict[bytes, Listed] = field(default_factory=dict)
    refused: str = ""
    """Why it cannot be released as it is upstream."""

    @property
    def model(self) -> bytes:
        """What the version is one of."""
        return self.path.rpartition(b"/")[0]

    @property
    def version(self) -> int:
        """0: its name is no version."""
        leaf = self.path.rpartition(b"/")[2]
        return int(leaf) if self.directory and self.model and VERSION.fullmatch(leaf) else 0

    def fingerprint(self) -> str:
        """The same as long as its objects are."""
        digest = hashlib.sha256()
        for path in sorted(self.objects):
            digest.update(b"%b\0%d\0" % (path, self.objects[path].tag))
        return digest.hexdigest()

    def tags(self) -> dict[bytes, int]:
        return {path: listed.tag for path, listed in self.objects.items()}


@dataclass(slots=True)
class Plan:
    units: dict[bytes, Wanted]
    refused: list[tuple[str, str]]
    """Keys that are no paths, and why."""
    keys: dict[bytes, Listed]
    """Every object, by its path."""
    models: set[bytes] = field(default_factory=set)
    """Directories that have versions."""


def tag_of(etag: str, size: int) -> int:
    """63 bits that stand for one content under a key."""
    return int.from_bytes(hashlib.sha256(f"{etag}\0{size}".encode()).digest()[:8]) >> 1


def plan(objects: Iterable[Stored], prefix: str, layout: str, takes: Callable[[bytes], bool]) -> Plan:
    """``objects`` as the source lists them. Keys are hostile (PRODUCT X2)."""
    found: dict[bytes, Listed] = {}
    refused: list[tuple[str, str]] = []
    for stored in objects:
        key = stored.key[len(prefix) :]
        if not key or (key.endswith("/") and not stored.size):
            continue  # some programs put an empty object where a directory would be
        try:
            path = _path(key)
        except NameRefused as error:
            refused.append((key, error.message))
            continue
        if not takes(path):
            continue
        if path in found:
            refused.append((key, f"{found[path].stored.key} is another spelling of the same name"))
            continue
        found[path] = Listed(path, stored, tag_of(stored.etag, stored.size))
    units = _units(found, layout)
    _refuse_in_the_way(units, found)
    for key, why in refused:
        _blame(units, key, why)
    return Plan(units, refused, found, {unit.model for unit in units.values() if unit.version})


def _path(key: str) -> bytes:
    try:
        path = keys.unescape(key)
    except UnicodeEncodeError:
        raise NameRefused(f"The key {key!r} is not text") from None
    require_name(path)
    parts = path.split(b"/")
    if any(part.startswith(_OWN) for part in parts):
        raise NameRefused(f"{shown(path[:300])} has a part that begins like names of quaymaster's own")
    if any(len(part) > _LONGEST_PART for part in parts):
        raise NameRefused(f"{shown(path[:300])} has a part of more than {_LONGEST_PART} bytes")
    return path


def _units(found: Mapping[bytes, Listed], layout: str) -> dict[bytes, Wanted]:
    units: dict[bytes, Wanted] = {}
    rest: list[Listed] = []
    for path, listed in found.items():
        top = _versioned(path) if layout == "name/version" else path.partition(b"/")[0]
        if layout == "name" and b"/" not in path:
            top = b""
        if top:
            units.setdefault(top, Wanted(top, directory=True)).objects[path] = listed
        else:
            rest.append(listed)
    models = set(_above(units))
    for listed in rest:
        parts = listed.path.split(b"/")
        top = b"/".join(parts[:2])
        whole = len(parts) > 2 and top not in models and top not in units
        path = top if whole else listed.path
        units.setdefault(path, Wanted(path, directory=whole)).objects[listed.path] = listed
    return units


def _versioned(path: bytes) -> bytes:
    """The part of a path that is a version's directory; empty when none is."""
    parts = path.split(b"/")
    for at in range(1, len(parts) - 1):
        if VERSION.fullmatch(parts[at]):
            return b"/".join(parts[: at + 1])
    return b""


def _above(paths: Iterable[bytes]) -> Iterable[bytes]:
    for path in paths:
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            yield path


def _refuse_in_the_way(units: dict[bytes, Wanted], found: Mapping[bytes, Listed]) -> None:
    """A key that is a file and a directory at once cannot be both on a disk."""
    folders = set(_above(found))
    for unit in units.values():
        for path in unit.objects:
            if path in folders:
                unit.refused = f"{shown(path)} is an object, and others lie below it"
    tops = set(_above(units))
    for unit in units.values():
        if unit.directory and unit.path in tops:
            unit.refused = f"{shown(unit.path)} is to be released whole, and others lie below it"


def _blame(units: dict[bytes, Wanted], key: str, why: str) -> None:
    """A unit with an object that cannot be had is not whole."""
    raw = key.encode("utf-8", "surrogatepass")
    for above in _above([raw]):
        if (unit := units.get(above)) is not None:
            unit.refused = why
            return


def bare(path: bytes, compressed: bool) -> bytes:
    """The name of the content of an object."""
    if compressed:
        for suffix in _SUFFIXES:
            if path.endswith(suffix):
                return path.removesuffix(suffix)
    return path
