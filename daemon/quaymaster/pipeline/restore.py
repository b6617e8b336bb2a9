"""Bringing files back (PRODUCT I6): read, expand, verify, and put in place in one step. Nothing is ever overwritten.

    object ──► expand ──► hash ──► hidden file beside the target ──► size and SHA-256 as recorded? ──► its name

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
from queue import Empty, Full, Queue
from typing import Any

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
from quaymaster.pipeline.landing import Ground

_TRIES = 3
_WAIT = 1.0
"""Seconds before the second try; twice as long before the third."""
_PATIENCE = 5.0
"""Seconds that the threads have to end when the run is given up."""
_RECORDED = 500
"""Files that are recorded together at most."""
_AT_ONCE = 4
"""Requests for one large object: what makes one connection slow (latency, a server's one thread) is had in parallel."""
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


_Came = Restored | BaseException | None
"""From a thread: what came of a file, why it ended, or that it ended."""
Find = Callable[[], Iterable[Wanted]]
"""Says what is to be restored; may ask a destination, so it is called by the thread that does the work."""


@dataclass(slots=True)
class Restore:
    """One run over many files."""

    place: Callable[[str, str], Destination | None]
    """(destination, watch) -> where the copies are; None when the configuration does not say."""
    expect: Callable[[Wanted, Identity], int]
    """Told of a file that is complete, just before it gets its name; durable when it returns. What it returns is handed
    on to ``record``."""
    record: Callable[[Sequence[Restored]], None]
    """Told of files that have their names, before anybody else is: many at once, since to remember them takes long."""
    dry_run: bool = False
    workers: int = 4
    flights: Flights = field(default_factory=Flights)
    """What is being brought back now."""
    _end: threading.Event = field(default_factory=threading.Event)

    def run(self, finds: Iterable[Find]) -> Generator[Restored, None, None]:
        """What comes of each file, as it comes. Closing the iterator, or an exception thrown into it, gives up: what
        is on its way is removed, at the latest by the next run."""
        todo: Queue[Find | None] = Queue(4 * self.workers)
        done: Queue[_Came] = Queue()
        threads = [
            threading.Thread(target=self._work, args=(todo, done), name=f"restore-{n}", daemon=True)
            for n in range(self.workers)
        ]
        feeder = threading.Thread(target=self._feed, args=(finds, todo, done), name="restore-find", daemon=True)
        for thread in (feeder, *threads):
            thread.start()
        left = len(threads)
        try:
            while left:
                came = _all_of(done, wait=True)
                left -= came.count(None)
                yield from self._recorded(came)
                if failure := next((one for one in came if isinstance(one, BaseException)), None):
                    raise failure
        finally:
            self._end.set()
            until = time.monotonic() + _PATIENCE
            for thread in (feeder, *threads):
                thread.join(max(0.0, until - time.monotonic()))
            while came := _all_of(done, wait=False):
                self._recorded(came)

    def _recorded(self, came: Sequence[_Came]) -> list[Restored]:
        results = [one for one in came if isinstance(one, Restored)]
        if not self.dry_run and (new := [one for one in results if one.outcome is Outcome.RESTORED]):
            self.record(new)
        return results

    def _feed(self, finds: Iterable[Find], todo: Queue[Find | None], done: Queue[Any]) -> None:
        try:
            for find in finds:
                self._put(todo, find)
            for _ in range(self.workers):
                self._put(todo, None)
        except Cancelled:
            pass
        except Exception as error:
            done.put(error)

    def _put(self, todo: Queue[Find | None], find: Find | None) -> None:
        while not self._end.is_set():
            try:
                todo.put(find, timeout=0.2)
                return
            except Full:
                pass
        raise Cancelled

    def _work(self, todo: Queue[Find | None], done: Queue[Any]) -> None:
        try:
            while not self._end.is_set():
                try:
                    find = todo.get(timeout=0.2)
                except Empty:
                    continue
                if find is None:
                    break
                for wanted in find():
                    done.put(self.one(wanted))
        except Cancelled:
            pass
        except Exception as error:
            done.put(error)
        finally:
            done.put(None)

    # -- one file --

    def one(self, wanted: Wanted) -> Restored:
        """Restore a file, from the first of its sources that has the right bytes. Raises Cancelled and StoreError."""
        if wanted.refused or wanted.ground is None:
            return Restored(wanted, Outcome.REFUSED, wanted.refused)
        try:
            if found := self._standing(wanted, wanted.ground):
                return found
        except NameRefused as error:
            return Restored(wanted, Outcome.REFUSED, str(error))
        except Conflict as error:
            return Restored(wanted, Outcome.CONFLICT, str(error))
        except TransferError as error:
            return Restored(wanted, Outcome.FAILED, str(error))
        return self._from_any(wanted, wanted.ground)

    def _from_any(self, wanted: Wanted, ground: Ground) -> Restored:
        damaged: list[str] = []
        failure: TransferError | None = None
        for source in wanted.sources:
            try:
                if self.dry_run:
                    self._readable(wanted, source)
                    return Restored(wanted, Outcome.RESTORED, source=source)
                end, job = self._patiently(lambda source=source: self._bring(wanted, ground, source))  # type: ignore[misc]
                taken = f"{wanted.shown} was made by somebody else at this moment; it is left alone"
                text = taken if end is Outcome.CONFLICT else ""
                return Restored(wanted, end, text, source, tuple(damaged), job)
            except IntegrityError as error:
                damaged.append(f"the copy {source.stored.key} at {source.destination}: {error.message}")
            except NameRefused as error:
                return Restored(wanted, Outcome.REFUSED, str(error), damaged=tuple(damaged))
            except TransferError as error:
                failure = failure or error
        outcome = Outcome.FAILED if failure or not damaged else Outcome.DAMAGED
        text = str(failure) if failure else "" if damaged else "no copy of it is left"
        return Restored(wanted, outcome, text, damaged=tuple(damaged))

    def _standing(self, wanted: Wanted, ground: Ground) -> Restored | None:
        """What has the target's name already, if anything has."""
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

    def _patiently(self, act: Callable[[], tuple[Outcome, int]]) -> tuple[Outcome, int]:
        for tried in range(1, _TRIES + 1):
            try:
                return act()
            except TemporaryError as error:
                if tried == _TRIES or isinstance(error, OutOfSpace):
                    raise
            self._end.wait(_WAIT * 2 ** (tried - 1))
            self._go_on()
        raise AssertionError("the last try returns or raises")

    def _bring(self, wanted: Wanted, ground: Ground, source: Source) -> tuple[Outcome, int]:
        with self._opened(wanted, source) as pieces, ground.folder(wanted.target, create=True) as directory:
            assert directory is not None
            landing = ground.begin(directory, wanted.target, wanted.size)
            try:
                digest = hashlib.sha256()
                with self.flights.one(wanted.shown, wanted.size) as moved:
                    for piece in expand(self._while_wanted(pieces), source.compression, size=wanted.size):
                        digest.update(piece)
                        landing.write(piece)
                        moved(len(piece))
                if wanted.sha256 and digest.hexdigest() != wanted.sha256:
                    raise IntegrityError(f"it has SHA-256 {digest.hexdigest()} instead of {wanted.sha256}")
                identity = landing.complete(_mode(pieces.stored), wanted.mtime_ns)
                self._go_on()
                job = self.expect(wanted, identity)
                published = landing.publish()
            finally:
                landing.abort()
        return (Outcome.RESTORED if published else Outcome.CONFLICT), job

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


def _all_of(done: Queue[_Came], *, wait: bool) -> list[_Came]:
    """What is in the queue now; ``wait``: at least one."""
    came = [done.get()] if wait else []
    with suppress(Empty):
        while len(came) < _RECORDED:
            came.append(done.get_nowait())
    return came


def _mode(now: Stored) -> int:
    try:
        return int(now.metadata["quaymaster-mode"], 8)
    except (KeyError, ValueError):
        return _MODE
