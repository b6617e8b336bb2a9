"""Comparing what the ledger says with what the destinations hold (PRODUCT I7). Nothing is repaired or removed.

    listing     one listing of each destination: what is missing, of another size or another ETag
    checksum    also asks for each object, and compares the checksum that the destination keeps with the recorded one
    readback    also reads objects within a budget, those first that were read the longest ago or never; their bytes
                must be those that were stored, and expand to those of the source

Before something counts as missing or changed, it is asked for by itself, the ledger is read again, and an object that
carries another ETag or checksum is read: the same bytes are no failure, whatever their label. A destination that cannot
be asked, and a listing that breaks off, say nothing about what is there.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from quaymaster.destinations.base import Destination
from quaymaster.errors import Conflict, DestinationMissing, IntegrityError, TemporaryError, TransferError
from quaymaster.model import Stored, shown
from quaymaster.pipeline.budget import Cancelled
from quaymaster.pipeline.flights import Flights
from quaymaster.pipeline.formats import expand
from quaymaster.store import Copy, Selection, Store

if TYPE_CHECKING:
    from concurrent.futures import Executor

_PAGE = 500
"""Copies looked at between two commits of what was found."""
_BATCH, _BATCH_BYTES = 128, 256 << 20
"""Copies, and their bytes, that are read back between two such commits: what a stop makes to be done again."""
_TRIES = 3
"""Times that an answer is asked for, when there is none."""
_WAIT = 1.0
"""Seconds before the second try; twice as long before the third."""


class Depth(StrEnum):
    LISTING = "listing"
    CHECKSUM = "checksum"
    READBACK = "readback"


class Places(Protocol):
    """The destinations by name."""

    def known(self, name: str) -> bool:
        """Whether the configuration has a destination of that name."""
        ...

    def shared(self, name: str) -> Destination | None:
        """The one place that the name stands for; None when each watch has its own (beside its sources)."""
        ...

    def of(self, name: str, watch: str) -> Destination | None:
        """Where the copies of a watch are; None when the configuration does not say any more."""
        ...


@dataclass(frozen=True, slots=True)
class Fault:
    """A copy that is not what it was."""

    copy: Copy
    what: str
    """``missing``, ``changed`` (another object, or another label with bytes not read) or ``damaged`` (other bytes)."""
    text: str

    @property
    def good_at(self) -> float:
        """When the copy was last known to be good (seconds since the epoch). Labels say nothing about damaged bytes."""
        return self.copy.proven_at if self.what == "damaged" else self.copy.good_at


@dataclass(slots=True)
class Summary:
    """What one run found. Sizes are bytes as stored."""

    level: str
    started_at: float
    seconds: float = 0.0
    copies: int = 0
    """Those to be verified."""
    bytes: int = 0
    good: int = 0
    read: int = 0
    """Objects of which the bytes were read, and how many bytes."""
    read_bytes: int = 0
    missing: int = 0
    changed: int = 0
    damaged: int = 0
    moving: int = 0
    """Of which a newer version was on its way: they are for the next run."""
    unread: int = 0
    """Left for the next run by the budget."""
    unknown: int = 0
    """Objects that the ledger does not know."""
    unanswered: int = 0
    """Copies that their destination gave no answer about."""
    unconfigured: int = 0
    """Copies at places that the configuration does not name any more."""
    complete: bool = False
    """Whether the run came to its end."""
    unreachable: dict[str, str] = field(default_factory=dict)
    """Destination -> why it could not be verified."""

    @property
    def faults(self) -> int:
        return self.missing + self.changed + self.damaged

    @property
    def failed(self) -> bool:
        """Whether something could not be looked at."""
        return bool(self.unreachable or self.unanswered) or not self.complete


@dataclass(frozen=True, slots=True)
class _Seen:
    """What came of one copy: fine without ``what``."""

    copy: Copy
    what: str = ""
    text: str = ""
    read: int = -1
    """Bytes that were read; -1: none were asked for."""
    error: TransferError | None = None
    """Why nothing is known of it."""


@dataclass(slots=True)
class Scrub:
    """One run. ``tell`` is given each fault as it is found. ``rest`` is called with the seconds that a piece of work
    took, and may wait as long as it likes."""

    store: Store
    places: Places
    depth: Depth
    which: Selection = field(default_factory=Selection)
    budget: int | None = None
    """Bytes that may be read; a single larger object is read when its turn has come."""
    workers: int = 1
    tell: Callable[[Fault], None] = lambda _: None
    cancelled: Callable[[], bool] = lambda: False
    rest: Callable[[float], None] = lambda _: None
    clock: Callable[[], float] = time.time
    flights: Flights = field(default_factory=Flights)
    """What is being read now."""
    summary: Summary = field(init=False)
    """The figures so far."""
    _end: threading.Event = field(default_factory=threading.Event)
    _upto: int = 0
    _read_at_most: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _settled: set[int] = field(default_factory=set)
    """Deliveries of which it is known that they are not fine: they are not looked at again."""
    _gone: dict[str, TransferError] = field(default_factory=dict)
    """Destinations that give no answer any more."""

    def __post_init__(self) -> None:
        self.summary = Summary(self.depth.value, self.clock())

    def run(self) -> Summary:
        """Raises StoreError. When cancelled, what was found so far is recorded, and ``complete`` is False."""
        summary = self.summary
        self._upto, self._read_at_most = self.store.last_delivery(), self.budget
        wanted = self.store.destinations(self.which)
        summary.copies = sum(number for number, _ in wanted.values())
        summary.bytes = sum(size for _, size in wanted.values())
        try:
            with self._pool() as each:
                for name, (number, _) in wanted.items():
                    if self.places.known(name):
                        self._verify(name, summary, each)
                    else:
                        summary.unconfigured += number
                        self._gone[name] = DestinationMissing(f"There is no destination {name} any more")
                if self.depth is Depth.READBACK:
                    self._read_some(summary, each)
            summary.complete = True
        except Cancelled:
            pass
        finally:
            self._end.set()
            self._finish(summary)
        return summary

    def _finish(self, summary: Summary) -> None:
        summary.unreachable |= {name: str(e) for name, e in self._gone.items() if self.places.known(name)}
        rest = summary.copies - summary.good - summary.faults - summary.moving - summary.unconfigured
        if summary.complete and summary.unreachable:
            summary.unanswered = max(0, rest)
        elif summary.complete:
            summary.moving += max(0, rest)  # replaced before their turn came
        summary.seconds = self.clock() - summary.started_at
        said: dict[str, Any] = {name: getattr(summary, name) for name in FIGURES}
        if summary.unreachable:
            said["unreachable"] = dict(summary.unreachable)
        self.store.note("verified", said | {"level": summary.level, "complete": summary.complete})

    # -- one destination --

    def _verify(self, name: str, summary: Summary, each: _Each) -> None:
        listed: bytearray | None = None
        # One listing costs less than a question for each, unless only a few are meant.
        if self.which.everything and (shared := self.places.shared(name)) is not None:
            try:
                listed = self._listed(name, shared, summary)
            except TransferError as error:
                self._gone[name] = error
                return
        self._look_at_all(name, listed, summary, each)

    def _listed(self, name: str, destination: Destination, summary: Summary) -> bytearray:
        """One bit for each delivery: whether the listing has it as it was recorded. A million take 125 kB."""
        found = bytearray(self._upto // 8 + 1)
        objects: list[Stored] = []

        def compare() -> None:
            copies = self.store.copies_by_key(name, [item.key for item in objects])
            for item in objects:
                copy = copies.get(item.key)
                if copy is None:
                    summary.unknown += 1
                elif copy.delivery.id <= self._upto:
                    then = copy.delivery.proof.stored
                    if (item.size, item.etag) == (then.size, then.etag):
                        found[copy.delivery.id // 8] |= 1 << copy.delivery.id % 8
            objects.clear()

        for item in destination.listing():
            objects.append(item)
            if len(objects) >= 2 * _PAGE:
                self._go_on()
                compare()
        compare()
        return found

    def _look_at_all(self, name: str, listed: bytearray | None, summary: Summary, each: _Each) -> None:
        """Everything up to the checksums; what the listing has proven is not asked for again at the other levels."""
        which, after = replace(self.which, destination=name), 0
        level = Depth.CHECKSUM if self.depth is Depth.CHECKSUM or listed is None else Depth.LISTING
        while name not in self._gone and (
            copies := self.store.copies(which, after=after, upto=self._upto, limit=_PAGE)
        ):
            after = copies[-1].delivery.id
            proven = [
                copy
                for copy in copies
                if level is Depth.LISTING and listed and listed[copy.delivery.id // 8] >> copy.delivery.id % 8 & 1
            ]
            known = {copy.delivery.id for copy in proven}
            began = time.monotonic()
            seen = [*each(self._ask, (copy for copy in copies if copy.delivery.id not in known))]
            self.rest(time.monotonic() - began)
            self._settle([*seen, *map(_Seen, proven)], level, summary)

    def _read_some(self, summary: Summary, each: _Each) -> None:
        """Of all destinations together, so that each has its turn."""
        order = [n for n in self.store.reading_order(self.which, self._upto) if n not in self._settled]
        left, at, full = len(order), 0, False
        while at < len(order) and not full:
            some: list[Copy] = []
            together, batch = 0, order[at : at + _BATCH]
            at += len(batch)
            for copy in self.store.copies_by_number(batch):
                size = copy.delivery.proof.stored.size
                if some and together + size > _BATCH_BYTES:
                    at -= len(batch) - batch.index(copy.delivery.id)
                    break
                together += size
                first = left == len(order) and not some
                if self._read_at_most is not None and size > self._read_at_most and not first:
                    full = True
                    break
                if copy.delivery.proof.destination not in self._gone:
                    self._read_at_most = None if self._read_at_most is None else self._read_at_most - size
                    some.append(copy)
            seen: list[_Seen] = []
            try:
                seen.extend(each(self._read, some))
            finally:  # when it is stopped, what has been read need not be read again
                summary.good -= len(seen)  # so they were counted when they were looked at
                self._settle(seen, Depth.READBACK, summary)
                left -= len(some)
        summary.unread += left

    # -- what came of it --

    def _settle(self, seen: Sequence[_Seen], level: Depth, summary: Summary) -> None:
        """Count, remember and tell."""
        good = [one.copy.delivery.id for one in seen if not one.what and one.error is None]
        read = [one for one in seen if one.read >= 0]
        summary.good += len(good)
        summary.read += len(read)
        summary.read_bytes += sum(one.read for one in read)
        for one in seen:
            if one.error is not None:
                self._settled.add(one.copy.delivery.id)
                summary.unreachable.setdefault(one.copy.delivery.proof.destination, str(one.error))
            elif one.what:
                self._settled.add(one.copy.delivery.id)
                self._judge(one, summary)
        self.store.verified(good, [one.copy.delivery.id for one in read], level.value)

    def _judge(self, one: _Seen, summary: Summary) -> None:
        """What the service replaced meanwhile, or is replacing, is no failure."""
        proof = one.copy.delivery.proof
        replaced = not self.store.copies_by_number([one.copy.delivery.id])
        if replaced or self.store.under_way(proof.version.watch, proof.version.path):
            summary.moving += 1
            return
        setattr(summary, one.what, getattr(summary, one.what) + 1)
        fault = Fault(one.copy, one.what, one.text)
        details = {"what": one.what, "text": one.text, "level": self.depth.value, "good_at": fault.good_at}
        self.store.note_fault(proof, details)
        self.tell(fault)

    # -- one copy --

    def _ask(self, copy: Copy) -> _Seen:
        """What the destination tells of an object, and its bytes where that leaves a doubt."""
        return self._guarded(copy, lambda place: self._compare(copy, place))

    def _compare(self, copy: Copy, place: Destination) -> _Seen:
        then = copy.delivery.proof.stored
        now = place.stat(then.key)
        if (fault := _other_size(copy, now)) or now is None:
            return fault or _Seen(copy)
        if told := _other_source(copy, now):
            return _Seen(copy, "changed", told)
        if doubt := _doubt(then, now):
            return self._resolved(copy, place, now, doubt)
        return _Seen(copy)

    def _resolved(self, copy: Copy, place: Destination, now: Stored, doubt: str) -> _Seen:
        """The label differs; the bytes decide, as far as they may be read."""
        with self._lock:
            if self._read_at_most is not None:
                if now.size > self._read_at_most:
                    return _Seen(copy, "changed", f"{doubt} (its bytes were not read: the budget is spent)")
                self._read_at_most -= now.size
        seen = self._bytes(copy, place, now)
        return replace(seen, what="changed", text=f"{doubt}, and {seen.text}") if seen.what else seen

    def _read(self, copy: Copy) -> _Seen:
        """The object's bytes, whatever else is known of it."""

        def act(place: Destination) -> _Seen:
            then = copy.delivery.proof.stored
            now = place.stat(then.key)
            if (fault := _other_size(copy, now)) or now is None:
                return fault or _Seen(copy)
            return self._bytes(copy, place, now)

        return self._guarded(copy, act)

    def _bytes(self, copy: Copy, place: Destination, now: Stored) -> _Seen:
        proof = copy.delivery.proof
        stored, source, counted = hashlib.sha256(), hashlib.sha256(), 0

        def passing(pieces: Iterable[bytes], moved: Callable[[int], None]) -> Iterator[bytes]:
            nonlocal counted
            began = time.monotonic()
            for piece in pieces:
                self._go_on()
                stored.update(piece)
                counted += len(piece)
                moved(len(piece))
                yield piece
                self.rest(time.monotonic() - began)
                began = time.monotonic()

        try:
            # Without what the destination knows of the checksum: the recorded digests are what counts here.
            with (
                self.flights.one(shown(proof.version.path), now.size) as moved,
                place.read(replace(now, checksum="", metadata={})) as pieces,
            ):
                for piece in expand(passing(pieces, moved), proof.compression, size=proof.version.size):
                    source.update(piece)
        except IntegrityError as error:
            return _Seen(copy, "damaged", error.message[:1].lower() + error.message[1:], counted)
        if proof.stored_digests.sha256 and stored.hexdigest() != proof.stored_digests.sha256:
            return _Seen(copy, "damaged", _digests("its bytes have", stored, proof.stored_digests.sha256), counted)
        if source.hexdigest() != proof.source.sha256:
            return _Seen(copy, "damaged", _digests("it expands to", source, proof.source.sha256), counted)
        return _Seen(copy, read=counted)

    def _guarded(self, copy: Copy, act: Callable[[Destination], _Seen]) -> _Seen:
        """Try again what gives no answer; learn which destinations give none at all."""
        self._go_on()
        proof = copy.delivery.proof
        place = self.places.of(proof.destination, proof.version.watch)
        if place is None:
            return _Seen(copy, error=DestinationMissing(f"Watch {proof.version.watch} is not configured any more"))
        try:
            for tried in range(1, _TRIES + 1):
                if proof.destination in self._gone:
                    break
                try:
                    return act(place)
                except TemporaryError as error:
                    if tried == _TRIES:
                        place.stat(proof.stored.key)  # one that cannot be read does not mean that the others cannot
                        return _Seen(copy, error=error, read=0)
                self._end.wait(_WAIT * 2 ** (tried - 1))
                self._go_on()
        except Conflict as error:  # something that is no file, or that changes at this moment
            return _Seen(copy, "changed", error.message)
        except (DestinationMissing, TemporaryError) as error:
            self._gone.setdefault(proof.destination, error)
        except TransferError as error:
            return _Seen(copy, error=error)
        return _Seen(copy, error=self._gone[proof.destination])

    def _go_on(self) -> None:
        if self._end.is_set() or self.cancelled():
            raise Cancelled

    def _pool(self) -> _Pool:
        return _Pool(self.workers, self._end)


FIGURES = (
    "copies", "bytes", "good", "read", "read_bytes", "missing", "changed", "damaged", "moving", "unread", "unknown",
    "unanswered", "unconfigured",
)  # fmt: skip
"""The numbers of a Summary."""

_Each = Callable[[Callable[[Copy], _Seen], Iterable[Copy]], Iterable[_Seen]]


class _Pool:
    """Does the same with many copies, in the calling thread when there is one worker."""

    def __init__(self, workers: int, end: threading.Event) -> None:
        self._threads: Executor | None = None
        self._end = end
        if workers > 1:
            from concurrent.futures import ThreadPoolExecutor  # the service has one worker, and is to stay small

            self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verify")

    def __enter__(self) -> _Each:
        return self._threads.map if self._threads else map

    def __exit__(self, kind: object, *_: object) -> None:
        if self._threads:
            if kind is not None:
                self._end.set()
            self._threads.shutdown(cancel_futures=True)


def _other_size(copy: Copy, now: Stored | None) -> _Seen | None:
    then = copy.delivery.proof.stored
    if now is None:
        return _Seen(copy, "missing", "it is not there any more")
    if now.size != then.size:
        return _Seen(copy, "changed", f"it has {now.size:,} bytes instead of {then.size:,}")
    return None


def _doubt(then: Stored, now: Stored) -> str:
    """What the destination says differently of an object of the right size; an empty string when nothing is."""
    algorithm = then.checksum.partition(":")[0]
    comparable = now.checksum.partition(":")[0] == algorithm and bool(algorithm)
    if comparable and now.checksum != then.checksum:
        return f"its checksum is {now.checksum} instead of {then.checksum}"
    if now.etag != then.etag and not (comparable and algorithm == "SHA256" and "-" not in now.checksum):
        return f"it is not the object that was put there (ETag {now.etag} instead of {then.etag})"
    return ""


def _other_source(copy: Copy, now: Stored) -> str:
    said, recorded = now.metadata.get("quaymaster-sha256", ""), copy.delivery.proof.source.sha256
    if said and said != recorded:
        return f"its metadata speaks of another source: SHA-256 {said} instead of {recorded}"
    return ""


def _digests(what: str, found: Any, recorded: str) -> str:
    return f"{what} SHA-256 {found.hexdigest()} instead of {recorded}"
