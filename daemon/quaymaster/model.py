"""The nouns of the journey: frozen, without I/O.

Paths are ``bytes``, relative to their watch's root, exactly as the kernel gave them: a name need not
be UTF-8 (PRODUCT W7). Keys are ``str`` (see keys.py). Sizes are bytes. Times are nanoseconds since
the epoch (``int``) for files and seconds since the epoch (``float``) for what the service did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one version of a file from another: from open+fstat, never stat alone (PLATFORM, NFS)."""

    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class FileVersion:
    """One version of one file: the unit of work. Two of these that are equal are one job (PRODUCT Q2)."""

    watch: str
    path: bytes
    identity: Identity

    @property
    def size(self) -> int:
        return self.identity.size


MANIFEST = "quaymaster-manifest.json"
"""What a unit's manifest is called, in its directory at a destination."""
SUMS = "SHA256SUMS"
"""What the list of its files is called that sha256sum(1) reads; ``quaymaster-SHA256SUMS`` where a file of the unit has
that name itself."""


def published_as(watch: str, destination: str) -> str:
    """The name under which the service's own files about a watch travel to a destination (PRODUCT W5). No watch of a
    configuration can have such a name."""
    return f"{watch}@{destination}"


def watch_of(name: str) -> str:
    """The watch that the files of that name belong to: the inverse of :func:`published_as`, or the name itself."""
    return name.partition("@")[0]


class State(StrEnum):
    """Where a job stands. The same words are in the CHECK constraint of the jobs table."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    """Failed for now; runs again at ``retry_at``."""
    PARKED = "parked"
    """Waits for an operator: ``quaymaster jobs retry`` or ``jobs drop``."""
    DONE = "done"
    SUPERSEDED = "superseded"
    """A newer version of the file took its place."""
    DROPPED = "dropped"
    """Given up by an operator."""

    @property
    def final(self) -> bool:
        return self in (State.DONE, State.SUPERSEDED, State.DROPPED)


class Stage(StrEnum):
    """What a running job is doing."""

    FETCH = "fetch"
    """Copying a network source to local staging."""
    TRANSFER = "transfer"
    """The one pass: read, hash, compress, expand and compare, upload."""
    PUBLISH = "publish"
    """Making the verified bytes visible at the destination, and proving what arrived."""
    RECORD = "record"
    DISPOSE = "dispose"


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the queue, as it stood when it was read."""

    id: int
    version: FileVersion
    state: State
    stage: Stage | None
    attempts: int
    """Times it failed so far."""
    strikes: int
    """Of these, failures of a kind that is tried 3 times (``Retry.LIMITED``)."""
    retry_at: float | None
    error_code: str
    error: str
    queued_at: float
    started_at: float | None
    ended_at: float | None
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """What its finished steps left behind, e.g. the staged copy and its digest."""


class Compression(StrEnum):
    NONE = "none"
    ZSTD = "zstd"
    GZIP = "gzip"

    @property
    def suffix(self) -> str:
        return {"none": "", "zstd": ".zst", "gzip": ".gz"}[self.value]


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of one run of bytes. ``sha256`` is always there; weaker ones stand beside it (PRODUCT P4)."""

    size: int
    sha256: str
    others: Mapping[str, str] = field(default_factory=dict)
    crc64nvme: int | None = field(default=None, compare=False)
    """CRC-64/NVME of the same bytes, where those who take them asked for it (destinations/base.py). Not recorded."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as a destination holds it: what identifies it, and what the server says of its content."""

    key: str
    size: int
    etag: str = ""
    """S3 ETag without quotes; for a directory ``inode:mtime_ns``."""
    version_id: str = ""
    checksum: str = ""
    """``ALGORITHM:value`` as the destination keeps it, e.g. ``SHA256:<base64>`` or ``sha256:<hex>``; empty if none."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    evidence: str = ""
    """How the stored bytes were proven: ``sha256``, ``sha256-parts``, ``crc64nvme``, ``md5``, ``readback`` …"""
    mtime: float = 0.0
    """When it was last modified, in seconds since the epoch, as the destination tells it (S3: when it was stored; a
    directory: of the source); 0 if unknown."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Everything the ledger records of one delivery of one version to one destination (PRODUCT P4, I8)."""

    job: int
    version: FileVersion
    destination: str
    source: Digests
    stored_digests: Digests
    compression: Compression
    compression_note: str
    """Why the bytes went as they are, when compression had been asked for; else empty (PRODUCT P3)."""
    stored: Stored
    delivered_at: float


class Level(IntEnum):
    """syslog priorities, as journald takes them."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth telling. ``kind`` is stable and machine-readable; ``message`` is for people."""

    kind: str
    message: str
    level: Level = Level.INFO
    watch: str = ""
    path: bytes = b""
    job: int = 0
    stage: str = ""
    destination: str = ""
    size: int = -1
    sha256: str = ""
    code: str = ""
    """Of the error behind it (errors.py)."""


Emit = Callable[[Event], None]


def plain(text: str) -> str:
    """On one line, with everything that is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(path: bytes) -> str:
    """A path for people: UTF-8 where it is, everything else (bytes, control characters) escaped, on one line."""
    return plain(path.decode("utf-8", "backslashreplace"))
