"""Bringing files back (PRODUCT I6): read, expand, verify, and put in place in one step. Nothing is ever overwritten.

    workers:   object ──► expand ──► hash ──► hidden file beside the target ──► size and SHA-256 as recorded? ──┐
    one more:  its name ◄── told to the ledger ◄── onto the disk, with all others that wait by then ◄──────────┘

A target that is there already with the same content counts as restored, so a run that was cut off goes on when it is
run again. What is restored and from where is decided in recall.py.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from queue import Empty, SimpleQueue

from quaymaster.destinations.base import Destination, Reading
from quaymaster.errors import (
    Conflict,
    IntegrityError,
    NameRefused,
    OutOfSpace,
    PermanentError,
    TemporaryError,
    TransferError,
)
from quaymaster.model import Compression, Identity, Stored, shown
from quaymaster.pipeline.budget import Cancelled
from quaymaster.pipeline.flights import Flights
from quaymaster.pipeline.formats import expand
from quaymaster.pipeline.landing import Ground, Landing, publish
from quaymaster.pipeline.stages import Stages

_TRIES = 3
_WAIT = 1.0
"""Seconds before the second try; twice as long before the third."""
_PATIENCE = 5.0
"""Seconds that the threads have to end when the run is given up."""
_TOGETHER = 64
"""Files that get their names together at most."""
_WAITING = 2 * _TOGETHER
"""Files that are whole and wait for their names at most: each keeps two descriptors open."""
_ALONE = 1 << 20
"""Bytes from which on a file is brought to the disk by its own worker: the small ones need not wait for it."""
_AT_ONCE = 3
"""Requests for one large object: what makes one connection slow (latency, a server's one thread) is had in parallel."""
_IN_STEPS = 16 << 20
"""Bytes from which on a file is expanded, hashed and written by a thread each."""
_READY = 4
"""Pieces that one of these keeps ready for the next."""
_MODE = 0o644
"""Of a file whose own permission bits nobody knows any more."""


@dataclass(frozen=True, slots=True)
class Source:
    """An object that a file's bytes can come from."""

    destination: str
    stored: Stored
    """As recorded. With ``version_id`` exactly that version is read, else what the key holds now."""
    compression: Compression
    gone: str = ""
    """Why it cannot be read, when that is known beforehand."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file to bring back."""

    watch: str
    """The watch that it was taken from; "" when nobody knows."""
    path: bytes
    """Below its watch, or the whole key when the watch is not known."""
    ground: Ground | None
    """The directory that it goes below; None when there is none (``refused``)."""
    target: bytes
    """Its path below that."""
    sources: tuple[Source, ...]
    size: int
    sha256: str
    """Of its content; empty when no record of it is left, and the object is taken as it is."""
    mtime_ns: int
    at_home: bool = False
    """Whether it goes to its own place in its watch."""
    refused: str = ""
    """Why it cannot be restored, when that is known beforehand."""

    @property
    def shown(self) -> str:
        return self.ground.where(self.target) if self.ground else shown(self.path)


class Outcome(StrEnum):
    RESTORED = "restored"
    THERE = "there"
    """Its content is in place already."""
    CONFLICT = "conflict"
    """Something else is in place; it was left alone."""
    REFUSED = "refused"
    """Its name cannot be restored there, or nobody knows where it belongs."""
    FAILED = "failed"
    DAMAGED = "damaged"
    """No copy has the bytes that were recorded."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of one file."""

    wanted: Wanted
    outcome: Outcome
    text: str = ""
    source: Source | None = None
    damaged: tuple[str, ...] = ()
    """What was wrong with copies that were tried before."""
    job: int = 0
    """What ``Restore.expect`` returned."""


@dataclass(slots=True)
class _Landed:
    """A file that is whole and as recorded, and has no name yet."""

    wanted: Wanted
    source: Source
    landing: Landing
    damaged: tuple[str, ...] = ()
    tried: int = 1


_Came = Restored | _Landed | BaseException | None
"""From a worker: what came of a file, why it ended, or that it ended."""
Find = Callable[[], Iterable[Wanted]]
"""Says what is to be restored; may ask a destination, so it is called by the thread that does the work."""


@dataclass(slots=True)
class Restore:
    """One run over many files."""

    place: Callable[[str, str], Destination | None]
    """(destination, watch) -> where the copies are; None when the configuration does not say."""
    expect: Callable[[Sequence[tuple[Wanted, Identity]]], Sequence[int]]
    """Told of files that are complete, just before they get their names; durable when it returns. What it returns for
    each is handed on to ``record``."""
    record: Callable[[Sequence[Restored]], None]
    """Told of files that have their names, before anybody else is: many at once, since to remember them takes long."""
    dry_run: bool = False
    workers: int = 4
    company: float = 0.1
    """Seconds for which a file that is whole waits for others that get their names together with it."""
    flights: Flights = field(default_factory=Flights)
    """What is being brought back now."""
    _end: threading.Event = field(default_factory=threading.Event)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    """Of the worker that asks what is to be done next."""
    _room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_WAITING))
    _came: SimpleQueue[_Came] = field(default_factory=SimpleQueue)

    def run(self, finds: Iterable[Find]) -> Generator[Restored, None, None]:
        """What comes of each file, as it comes. Closing the iterator, or an exception thrown into it, gives up: what
        is on its way is removed, at the latest by the next run."""
        todo = iter(finds)
        done: SimpleQueue[list[Restored] | BaseException | None] = SimpleQueue()
        threads = [
            threading.Thread(target=self._work, args=(todo,), name=f"restore-{n}", daemon=True)
            for n in range(self.workers)
        ]
        threads.append(threading.Thread(target=self._name, args=(done,), name="restore-name", daemon=True))
        for thread in threads:
            thread.start()
        try:
            while (came := done.get()) is not None:
                if isinstance(came, BaseException):
                    raise came
                yield from came
        finally:
            self._end.set()
            until = time.monotonic() + _PATIENCE
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))

    def _work(self, todo: Iterator[Find]) -> None:
        """A worker, as long as there is something to do."""
        try:
            while not self._end.is_set():
                with self._turn:
                    find = next(todo, None)
                if find is None:
                    break
                for wanted in find():
                    came = self._one(wanted)
                    if isinstance(came, _Landed):
                        self._wait_for_room(came)
                    self._came.put(came)
        except Cancelled:
            pass
        except Exception as error:
            self._came.put(error)
        finally:
            self._came.put(None)

    def _wait_for_room(self, one: _Landed) -> None:
        while not self._room.acquire(timeout=0.2):
            if self._end.is_set():
                one.landing.abort()
                raise Cancelled

    def _name(self, done: SimpleQueue[list[Restored] | BaseException | None]) -> None:
        """What comes from the workers, to its end: all at once that is there by then."""
        left = self.workers
        try:
            while left:
                came = self._all_that_came(left)
                left -= came.count(None)
                done.put(self._concluded(came))
                if failure := next((one for one in came if isinstance(one, BaseException)), None):
                    raise failure
        except BaseException as error:
            self._end.set()
            done.put(error)
            while left:  # these get no names any more
                came = self._all_that_came(left)
                left -= came.count(None)
                self._give_up(came)
        done.put(None)

    def _all_that_came(self, workers: int) -> list[_Came]:
        """At least one, and what else comes in a moment: company is what makes it quick. ``workers`` still at work."""
        came = [self._came.get()]
        until = time.monotonic() + self.company
        with suppress(Empty):
            while len(came) < _TOGETHER and came.count(None) < workers:
                came.append(self._came.get(timeout=max(0.0, until - time.monotonic())))
        return came

    def _give_up(self, came: Iterable[_Came]) -> None:
        for one in came:
            if isinstance(one, _Landed):
                one.landing.abort()
                self._room.release()

    # -- names --

    def _concluded(self, came: Sequence[_Came]) -> list[Restored]:
        """The results among them, and what comes of the files among them; recorded."""
        landed = [one for one in came if isinstance(one, _Landed)]
        results = [one for one in came if isinstance(one, Restored)]
        try:
            if landed:
                self._go_on()
                results += self._published(landed)
        finally:
            self._give_up(landed)
        if not self.dry_run and (new := [one for one in results if one.outcome is Outcome.RESTORED]):
            self.record(new)
        return results

    def _published(self, landed: Sequence[_Landed]) -> list[Restored]:
        jobs = [0] * len(landed)

        def expect(found: Mapping[int, Identity]) -> None:
            told = self.expect([(landed[at].wanted, identity) for at, identity in found.items()])
            for at, job in zip(found, told, strict=True):
                jobs[at] = job

        ends = publish([one.landing for one in landed], expect)
        return [self._end_of(one, end, job) for one, end, job in zip(landed, ends, jobs, strict=True)]

    def _end_of(self, one: _Landed, end: bool | TransferError, job: int) -> Restored:
        if end is True:
            return Restored(one.wanted, Outcome.RESTORED, "", one.source, one.damaged, job)
        one.landing.abort()
        if end is False:
            taken = f"{one.wanted.shown} was made by somebody else at this moment; it is left alone"
            return self._found(one.wanted) or Restored(one.wanted, Outcome.CONFLICT, taken, one.source, one.damaged)
        if not _worth_another_try(end, one.tried):
            return Restored(one.wanted, Outcome.FAILED, str(end), one.source, one.damaged)
        self._wait(one.tried)
        again = self._one(one.wanted)
        if isinstance(again, Restored):
            return again
        again.tried = one.tried + 1
        try:
            return self._published([again])[0]
        finally:
            again.landing.abort()

    # -- one file --

    def _one(self, wanted: Wanted) -> Restored | _Landed:
        """Bring a file, from the first of its sources that has the right bytes. Raises Cancelled."""
        if wanted.refused or wanted.ground is None:
            return Restored(wanted, Outcome.REFUSED, wanted.refused)
        return self._found(wanted) or self._from_any(wanted, wanted.ground)

    def _from_any(self, wanted: Wanted, ground: Ground) -> Restored | _Landed:
        damaged: list[str] = []
        failure: TransferError | None = None
        for source in wanted.sources:
            try:
                if self.dry_run:
                    self._readable(wanted, source)
                    return Restored(wanted, Outcome.RESTORED, source=source)
                landing = self._patiently(lambda source=source: self._bring(wanted, ground, source))  # type: ignore[misc]
                return _Landed(wanted, source, landing, tuple(damaged))
            except IntegrityError as error:
                damaged.append(f"the copy {source.stored.key} at {source.destination}: {error.message}")
            except NameRefused as error:
                return Restored(wanted, Outcome.REFUSED, str(error), damaged=tuple(damaged))
            except TransferError as error:
                failure = failure or error
        outcome = Outcome.FAILED if failure or not damaged else Outcome.DAMAGED
        text = str(failure) if failure else "" if damaged else "no copy of it is left"
        return Restored(wanted, outcome, text, damaged=tuple(damaged))

    def _found(self, wanted: Wanted) -> Restored | None:
        """What there is to say of a file without bringing it; None when its name is free."""
        assert wanted.ground is not None
        try:
            return self._standing(wanted, wanted.ground)
        except NameRefused as error:
            return Restored(wanted, Outcome.REFUSED, str(error))
        except Conflict as error:
            return Restored(wanted, Outcome.CONFLICT, str(error))
        except TransferError as error:
            return Restored(wanted, Outcome.FAILED, str(error))

    def _standing(self, wanted: Wanted, ground: Ground) -> Restored | None:
        with ground.folder(wanted.target, create=not self.dry_run) as directory:
            present = directory is not None and ground.present(directory, wanted.target)
            if directory is None or not present:
                return None
            sha256 = wanted.sha256 or self._digest(wanted)
            if sha256 and ground.holds(directory, wanted.target, wanted.size, sha256):
                return Restored(wanted, Outcome.THERE)
            text = f"{wanted.shown} is there already with other content ({present.st_size:,} bytes); it is left alone"
            return Restored(wanted, Outcome.CONFLICT, text)

    def _digest(self, wanted: Wanted) -> str:
        """Of an object that no record tells it of."""
        source, digest = wanted.sources[0], hashlib.sha256()
        place, now = self._readable(wanted, source)
        with place.read(now) as pieces:
            for piece in pieces:
                self._go_on()
                digest.update(piece)
        return digest.hexdigest()

    def _patiently(self, act: Callable[[], Landing]) -> Landing:
        for tried in range(1, _TRIES + 1):
            try:
                return act()
            except TransferError as error:
                if not _worth_another_try(error, tried):
                    raise
            self._wait(tried)
        raise AssertionError("the last try returns or raises")

    def _wait(self, tried: int) -> None:
        self._end.wait(_WAIT * 2 ** (tried - 1))
        self._go_on()

    def _bring(self, wanted: Wanted, ground: Ground, source: Source) -> Landing:
        with self._opened(wanted, source) as pieces, ground.folder(wanted.target, create=True) as directory:
            assert directory is not None
            landing = ground.begin(directory, wanted.target, wanted.size)
            try:
                with self.flights.one(wanted.shown, wanted.size) as moved:
                    sha256 = self._written(
                        expand(self._while_wanted(pieces), source.compression, size=wanted.size),
                        wanted.size,
                        landing,
                        moved,
                    )
                if wanted.sha256 and sha256 != wanted.sha256:
                    raise IntegrityError(f"it has SHA-256 {sha256} instead of {wanted.sha256}")
                landing.dress(_mode(pieces.stored), wanted.mtime_ns)
                if wanted.size >= _ALONE:
                    landing.harden()
                self._go_on()
            except BaseException:
                landing.abort()
                raise
        return landing

    def _written(
        self, pieces: Generator[bytes, None, None], size: int, landing: Landing, moved: Callable[[int], None]
    ) -> str:
        """Write it all; its SHA-256. Each step of a large file has its own thread: it takes as long as the fetching."""
        digest = hashlib.sha256()

        def hashed(some: Iterable[bytes]) -> Generator[bytes, None, None]:
            for piece in some:
                digest.update(piece)
                yield piece

        with Stages(self._end.is_set, timeout=0.0) as stages:
            if size < _IN_STEPS:
                came = hashed(pieces)
            else:
                came = stages.ahead(hashed(stages.ahead(pieces, _READY, "expand")), _READY, "hash")
            for piece in came:
                landing.write(piece)
                moved(len(piece))
        return digest.hexdigest()

    def _while_wanted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._go_on()
            yield piece

    @contextmanager
    def _opened(self, wanted: Wanted, source: Source) -> Iterator[Reading]:
        """The bytes of an object. As a rule it is as it was recorded, and need not be asked for before it is read."""
        place, then = self._place(wanted, source), replace(source.stored, checksum="")
        with ExitStack() as stack:
            try:
                reading = stack.enter_context(place.read(then, _AT_ONCE))
            except (Conflict, PermanentError):  # another object with the same bytes will do
                _, now = self._readable(wanted, source)
                reading = stack.enter_context(place.read(now, _AT_ONCE))
            if reading.stored.size != then.size:
                raise IntegrityError(f"it has {reading.stored.size:,} bytes instead of {then.size:,}")
            yield reading

    def _place(self, wanted: Wanted, source: Source) -> Destination:
        place = self.place(source.destination, wanted.watch)
        if place is None:
            raise PermanentError(f"There is no destination {source.destination} any more", "Configure it again")
        if source.gone:
            raise PermanentError(source.gone)
        return place

    def _readable(self, wanted: Wanted, source: Source) -> tuple[Destination, Stored]:
        """Where the object is, and the object as it is there now (with its metadata); the recorded version of it when
        there is one. Raises TransferError, IntegrityError when it cannot be the recorded one."""
        place, then = self._place(wanted, source), source.stored
        now = place.stat(then.key)
        if then.version_id:
            metadata: Mapping[str, str] = now.metadata if now else {}
            return place, replace(then, checksum="", metadata=metadata)
        if now is None:
            raise IntegrityError("it is not there any more")
        if now.size != then.size:
            raise IntegrityError(f"it has {now.size:,} bytes instead of {then.size:,}")
        return place, replace(now, checksum="")

    def _go_on(self) -> None:
        if self._end.is_set():
            raise Cancelled


def _worth_another_try(error: TransferError, tried: int) -> bool:
    return isinstance(error, TemporaryError) and not isinstance(error, OutOfSpace) and tried < _TRIES


def _mode(now: Stored) -> int:
    try:
        return int(now.metadata["quaymaster-mode"], 8)
    except (KeyError, ValueError):
        return _MODE
