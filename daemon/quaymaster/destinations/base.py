"""What a destination is. This docstring and those below are the contract; tests/contract holds every
implementation to it.

A destination takes bytes under a key and makes them visible in one step, or not at all:

- Nothing is visible under the key before :meth:`Upload.publish` returns, and after it exactly the bytes that were
  written are. A reader sees the whole object or none.
- An object that is already there is never overwritten, also when two writers race (exactly one wins, the other gets
  :class:`~quaymaster.errors.Conflict`), except the very object named in ``Put.replace``, while it is still as it was.
- A publication that already happened may be repeated: when the key holds an object whose content is proven equal to
  what was written (stored digest, not size alone), ``publish`` returns it as if it had just been put there.
- What is returned as :class:`~quaymaster.model.Stored` was proven by the destination after the last byte arrived
  (``evidence`` says how), never assumed from a status code.
- Errors are those of errors.py. A connection problem or 5xx is ``Unreachable``; bytes that differ are
  ``IntegrityError``; the rest is permanent. Nothing else escapes.
- Whatever fails, ``abort`` leaves nothing behind; ``abort`` itself never raises.

Behaviour such as retries of whole jobs, bandwidth limits and dry runs is added around this interface, not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from quaymaster.errors import TransferError
from quaymaster.model import Digests, Stored


def _unnoted(token: str) -> None:
    """For uploads whose traces nobody will look for after a crash."""


OWN = ".quaymaster-"
"""What keys of objects begin with that are no files of users: probes, claims, heads of the custody log."""


@dataclass(frozen=True, slots=True)
class Put:
    """One object about to be written."""

    key: str
    size_bound: int
    """The stored bytes will not be more than this (bytes). Chooses the part size."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """``quaymaster-*`` pairs known when the upload begins."""
    replace: Stored | None = None
    """The object of ours that this one takes the place of (PRODUCT W8); None: the key must be free."""
    mtime_ns: int = 0
    mode: int = 0o644
    """Permission bits of the source. A directory keeps mtime and mode on the file itself."""
    resume: str = ""
    """The ``resume_token`` of an earlier upload of the same bytes that was interrupted, after
    :meth:`Destination.resumable` said that it can go on: what has arrived already is not sent again. ``note`` is told
    it again when it is gone on with; if not, it stays what :meth:`Destination.abandon` has to be told."""
    memory: int = 0
    """Bytes of buffers that the upload may hold, at least :meth:`Destination.memory_least`; 0: as many as it likes."""
    tells_crc: bool = False
    """The digests that ``publish`` is given tell the CRC-64/NVME too, made together with their SHA-256: an upload may
    hold what it sent against that, instead of making a SHA-256 of the whole once more."""
    note: Callable[[str], None] = _unnoted
    """Told ``Upload.resume_token`` before the upload leaves its first trace, and when the token becomes another one.
    The token is durable when this returns; what it raises comes out unchanged."""


class Upload(Protocol):
    """One object on its way. Used by one thread."""

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes; may block while buffers are full. ``data`` may be reused by the caller afterwards."""
        ...

    def publish(self, digests: Digests, metadata: Mapping[str, str]) -> Stored:
        """Prove that what arrived is what left (``digests`` of the stored bytes), then make it visible.

        ``metadata`` is complete now; a destination that had to fix metadata when the upload began
        (:meth:`Destination.metadata_first`) was given the same pairs in ``Put.metadata``.
        """
        ...

    @property
    def resume_token(self) -> str:
        """What :meth:`Destination.abandon` needs to remove this upload after a crash; empty while there is nothing to
        remove: before the first trace, after publish, and after an abort that could remove everything."""
        ...

    def suspend(self) -> None:
        """End it for now. What has arrived and can be used later stays, under ``resume_token``; what cannot is removed
        as by abort. Never raises; a no-op after publish or abort."""
        ...

    def abort(self) -> None:
        """Forget the upload and remove every trace of it. Safe to call twice and after publish (then a no-op)."""
        ...


class Reading(Iterator[bytes]):
    """An object's bytes as they come."""

    def __init__(self, stored: Stored, pieces: Iterator[bytes]) -> None:
        self.stored = stored
        """The object as the destination tells of it with its bytes: metadata too, but perhaps no checksum."""
        self._pieces = pieces

    def __next__(self) -> bytes:
        return next(self._pieces)


class Destination(Protocol):
    """A place that files are delivered to. Thread-safe; opens no connection before it is first used."""

    name: str

    def metadata_first(self, size_bound: int) -> bool:
        """True when metadata must be complete at :meth:`begin` for an object of up to ``size_bound`` bytes.

        S3 takes an object's metadata when a multipart upload is created, not when it is completed, so the source's
        digest has to be known before the first part.
        """
        ...

    def by_crc(self, size_bound: int) -> bool:
        """True when the configuration prefers the CRC-64/NVME for what is sent there, and an object of up to
        ``size_bound`` bytes is held against it (``Put.tells_crc``): two readings of a source then need no second
        SHA-256 to be known for the same."""
        ...

    def longest_name(self) -> int:
        """Bytes that the last component of a key may have (255 on Linux filesystems; S3: 1,024 for the whole key)."""
        ...

    def memory_needed(self, size_bound: int) -> int:
        """Bytes of buffers that one upload of up to ``size_bound`` bytes holds at most."""
        ...

    def memory_least(self, size_bound: int) -> int:
        """Bytes of buffers that it cannot do without."""
        ...

    def begin(self, put: Put) -> Upload: ...

    def resumable(self, token: str, put: Put) -> bool:
        """Whether an upload that ended with this token could be gone on with for ``put``. Asks nobody: that the parts
        are there, and hold the same bytes, is found out when they are needed."""
        ...

    def abandon(self, token: str) -> bool:
        """Remove what an upload of an earlier process left (``token`` is its ``resume_token``). Never raises; False
        while that cannot be done."""
        ...

    def stat(self, key: str) -> Stored | None:
        """What is there now under ``key``, or None. Costs one round trip and reads no content."""
        ...

    def holding(self, key: str, digests: Digests) -> Stored | None:
        """The object under ``key`` if its content is proven to be ``digests``; None for another one, or none. May
        read it."""
        ...

    def make_durable(self, stored: Stored) -> None:
        """A copy that somebody else put there, who may not have cared, outlives a power cut when this returns."""
        ...

    def listing(self, prefix: str = "", known: Callable[[], Sequence[str]] = tuple) -> Iterator[Stored]:
        """Everything under keys that begin with ``prefix``, in no particular order, with key, size, ETag and mtime, but
        without checksum and metadata: that takes one ``stat`` each. What quaymaster keeps for itself (``OWN``) is left
        out, unless the prefix asks for it. Raises in the middle when the listing breaks off: then it is worth nothing.

        ``known`` gives keys that may well be there, in order, once they are known (until then none, at once; it is
        asked from any thread): a listing that comes page after page is divided at some of them. Then an object may come
        twice."""
        ...

    def read(self, stored: Stored, at_once: int = 1) -> AbstractContextManager[Reading]:
        """The object's bytes, past every cache, in pieces of at most 1 MiB; for reading back and restoring. Conflict
        when it is not the object with this ETag any more. ``at_once``: requests that may be under way for a large one,
        each with up to 8 MiB in memory; with one, no more than a piece is held."""
        ...

    def remove(self, stored: Stored) -> None:
        """Withdraw exactly this object, which we put there; Conflict if something else has taken its place."""
        ...

    def sweep(self, *, now: float, older_than: float = 3600, prefix: str = "") -> int:
        """Remove what dead processes of this host left unfinished at least so many seconds ago, when no token tells of
        it any more; how many. ``now`` in seconds since the epoch. Costs a walk of all that is below ``prefix``. Where
        it cannot be told whose an unfinished upload is (S3), nothing is removed."""
        ...

    def check(self) -> list[str]:
        """Facts the operator should know, one line each, after really trying the destination (a probe object is
        written, read back and removed). Raises the error that a delivery would raise."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Parcel:
    """One small object, all of it in memory. ``put.metadata`` is complete; ``put`` replaces and resumes nothing."""

    put: Put
    body: bytes
    digests: Digests


@runtime_checkable
class Together(Protocol):
    """What a destination is beside :class:`Destination` when many small objects at once cost it less than one by one.
    Each of them is put there as by ``begin``, ``write`` and ``publish``, with the same promises."""

    def together(self) -> int:
        """The bytes that each of them may have; 0 while it does not pay, as far as is known. Asks nobody."""
        ...

    def put_all(
        self, parcels: Sequence[Parcel], stopped: Callable[[], bool]
    ) -> Iterator[tuple[int, Stored | TransferError]]:
        """Put them there, in no particular order; tells of each (by its place in ``parcels``) as soon as its fate is
        known. Does not try again once ``stopped``. Raises TransferError before the first when it is the same for all.
        """
        ...
