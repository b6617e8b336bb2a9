"""Looks after the units of one watch (PRODUCT W5): which there are, when each is whole, and its manifest, which is
published last.

    open      what says that it is whole is there, and queue or ledger have every file as it is now
    complete  every file is delivered: the lists are written from the ledger, into a directory of the service's own
              SHA256SUMS is queued, and when it is at every destination, the manifest
    published

The lists travel as files of the watch's own (travel.own): retried, proven and recorded like all others. Each step is
durable before the next, and one that was cut off is taken again: the same unit gives the same bytes. What holds up one
unit is said with it and holds up no other.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from quaymaster import keys
from quaymaster.errors import IntegrityError, NameRefused, QuaymasterError, StoreError
from quaymaster.intake.intake import Intake
from quaymaster.intake.observe import policy_for
from quaymaster.intake.units import Eyes
from quaymaster.model import (
    MANIFEST,
    SUMS,
    Compression,
    Digests,
    Emit,
    Event,
    FileVersion,
    Identity,
    Job,
    Level,
    Proof,
    State,
    Stored,
    published_as,
    shown,
)
from quaymaster.pipeline import delivered_unit, manifest
from quaymaster.service.travel import own_directory
from quaymaster.source import Root, identity_of
from quaymaster.store import Filter, Store, Unit, UnitState

if TYPE_CHECKING:
    from quaymaster.config import Watch
    from quaymaster.destinations.base import Destination
    from quaymaster.intake.attend import Known

_TICK = 0.5
_LOOK_FOR_NEW = 3.0
"""Seconds between looks for units that have no file yet."""
_REST = 5.0
"""Times as long as a look at a unit took, it is left alone before the next: it and those alike together."""
_ALIKE = 10.0
"""A look that takes so many times as long as another does not keep that one waiting."""
_PUBLISHED_AGAIN = 2.0
"""Seconds between looks whether what was missing of a published unit has come."""
_STOP = 2.0
_MOST_KNOWN = 10_000
_STUCK = (State.PARKED, State.DROPPED)


class Held:
    """Whether a file waits for the unit that it is in (``upload = "unit"``). For one thread."""

    def __init__(self, watch: Watch, store: Store, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._watch, self._store, self._monotonic = watch, store, monotonic
        self._known: dict[bytes, tuple[bool, float]] = {}

    def __call__(self, path: bytes) -> bool:
        if self._watch.upload != "unit" or (path_of_unit := self._watch.unit_of(path)) is None:
            return False
        now = self._monotonic()
        answer, until = self._known.get(path_of_unit, (True, float("-inf")))
        if now >= until:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            unit = self._store.units.get(self._watch.name, path_of_unit)
            answer = unit is None or not unit.released
            self._known[path_of_unit] = answer, now + _TICK
        return answer


class Keeper:
    """One thread. ``wake`` tells the workers that there is something to carry."""

    def __init__(
        self,
        watch: Watch,
        store: Store,
        intake: Intake,
        known: Known,
        destinations: Mapping[str, Destination],
        *,
        staging_dir: str,
        host: str,
        emit: Emit,
        wake: Callable[[], None],
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch, self._store, self._intake, self._destinations = watch, store, intake, destinations
        self._staging_dir, self._host = staging_dir, host
        self._emit, self._wake, self._wall, self._monotonic = emit, wake, wall, monotonic
        self._eyes = Eyes(watch, Root(watch.path, hard_links=watch.hard_links), known, intake.pulse)
        self._stopping = threading.Event()
        self._next: dict[int, float] = {}
        self._took: dict[int, float] = {}
        """Seconds of the last look at each unit that is not at its end."""
        self._seen: set[bytes] = set()
        self._next_look = float("-inf")
        self._told_long: set[tuple[int, int]] = set()
        self._thread = threading.Thread(target=self._run, name=f"units-{watch.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """It ends after what it looks at now; one that hangs in its filesystem is left behind, which loses nothing."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP)

    def _run(self) -> None:
        while not self._stopping.wait(_TICK):
            try:
                if self._intake.here():
                    self.tend()
            except (StoreError, OSError):
                continue  # a store in trouble is told by those who have something to lose, a root by its intake
            except Exception as error:  # a defect of ours: the next round tries again
                self._say("unit-trouble", Level.ERROR, f"units of {self._watch.name}: {type(error).__name__}: {error}")
                self._stopping.wait(_LOOK_FOR_NEW)

    def tend(self) -> None:
        """One round over all units that are not at their end."""
        now = self._monotonic()
        if self._next_look < 0:
            self._sweep()
        if now >= self._next_look:
            for path in self._eyes.directories():
                if path not in self._seen:
                    self._store.units.opened(self._watch.name, path)
                    self._seen.add(path)
            self._next_look = self._monotonic() + max(_LOOK_FOR_NEW, _REST * (self._monotonic() - now))
        unfinished = self._store.units.unfinished(self._watch.name)
        self._took = {unit.id: self._took.get(unit.id, 0.0) for unit in unfinished}
        looked = list[Unit]()
        for unit in unfinished:
            if self._stopping.is_set() or self._monotonic() < self._next.get(unit.id, 0.0):
                continue
            began = self._monotonic()
            try:
                self._tend_one(unit)
            except StoreError:
                raise
            except QuaymasterError as error:
                self._store.units.wait(unit, str(error))
            except OSError as error:  # one that cannot be looked at, or whose name is too long, holds up no other
                self._store.units.wait(unit, f"it cannot be looked after now ({error.strerror})")
            self._took[unit.id] = self._monotonic() - began
            looked.append(unit)
        self._rest(looked)

    def _rest(self, looked: Sequence[Unit]) -> None:
        """Leave them alone for a while, so that a thousand that are looked at in vain take no more of the processor
        than one. One that goes on is not kept waiting."""
        took = sorted(self._took.values())
        sums, now = [0.0, *accumulate(took)], self._monotonic()
        for unit in looked:
            of_alike = sums[bisect_right(took, _ALIKE * self._took[unit.id])]
            least = _PUBLISHED_AGAIN if unit.state is UnitState.PUBLISHED else 0.0
            rest = 0.0 if unit.publishing or self._went_on(unit) else _REST * of_alike
            self._next[unit.id] = now + max(least, rest)

    def _went_on(self, unit: Unit) -> bool:
        now = self._store.units.get(unit.watch, unit.path)
        return now is None or (now.state, now.publishing, now.released) != (
            unit.state,
            unit.publishing,
            unit.released,
        )

    def _sweep(self) -> None:
        """Remove lists that will not travel any more."""
        for unit in self._store.units.find(self._watch.name):
            if unit.state is not UnitState.COMPLETE:
                self._forget_lists(unit)

    def _forget_lists(self, unit: Unit) -> None:
        for destination in self._watch.destinations:
            shutil.rmtree(self._folder(unit, destination), ignore_errors=True)

    def _tend_one(self, unit: Unit) -> None:
        self._tell_long(unit)
        match unit.state:
            case UnitState.OPEN:
                self._open(unit)
            case UnitState.COMPLETE if unit.publishing:
                self._publish(unit)
            case UnitState.COMPLETE:
                self._prepare(unit)
            case _:
                lacking = sum(1 for _ in self._store.units.undelivered(unit, len(self._watch.destinations)))
                if lacking < unit.missing:
                    self._store.units.touch(unit.watch, unit.path, "what was missing has come")

    # -- is it whole? --

    def _open(self, unit: Unit) -> None:
        by = f"forced by {unit.forced_by}" if unit.forced_by else self._watch.whole.said()
        if not unit.forced_by and (why := self._lacks(unit)):
            self._store.units.wait(unit, why)
        elif self._store.units.complete(unit, by):
            what = f"unit {self._shown(unit)} is complete (generation {unit.generation}): {by}"
            self._say("unit-complete", Level.NOTICE, what, unit)
            if (now := self._store.units.get(unit.watch, unit.path)) and now.state is UnitState.COMPLETE:
                self._prepare(now)

    def _lacks(self, unit: Unit) -> str:
        """What keeps it from being whole; empty: nothing. Raises OSError when the watch cannot be read."""
        whole, stopping = self._watch.whole, self._stopping.is_set
        if not self._eyes.is_there(unit.path):
            return self._vanished(unit)
        there = self._eyes.fitting(unit.path, whole.patterns, lambda: self._store.units.gone(unit))
        if missing := whole.missing(there):
            return f"{missing} {'are' if ',' in missing else 'is'} missing"
        if whole.idle is not None and 0 <= self._wall() - unit.changed_at < whole.idle:
            return f"waits for {whole.idle:g} s without anything new"
        if self._watch.upload == "unit" and not unit.released:
            return self._release(unit)
        seen = self._eyes.scan(unit.path, stopping)
        if why := seen.waits_for():
            return why
        if not seen.files and not any(self._store.units.delivered(unit, self._watch.destinations[0])):
            return "it has no file yet"
        return ""

    def _release(self, unit: Unit) -> str:
        ground = self._intake.ground()
        if ground is None:
            return "its watch is away"
        policy = policy_for(self._watch, ground)
        seen = self._eyes.settled(unit.path, policy, int(self._wall() * 1e9), self._stopping.is_set)
        if why := seen.waits_for():
            return why
        if not seen.files:
            return "it has no file yet"
        self._store.units.release(unit)
        self._stopping.wait(_TICK)  # what intake knows of it is as old as that
        self._intake.rescan()
        return "its files are being queued"

    def _vanished(self, unit: Unit) -> str:
        self._intake.confirm()  # else the whole watch is away
        lacking = next(self._store.units.undelivered(unit, len(self._watch.destinations)), None)
        if lacking is None and not any(self._store.units.delivered(unit, self._watch.destinations[0])):
            self._store.units.abandon(unit, "service", "its directory is gone, and nothing of it was delivered")
            return ""
        return (
            "its directory is gone: renamed or removed. What is there is published by quaymaster units complete;"
            " quaymaster units abandon closes it"
        )

    # -- its lists --

    def _prepare(self, unit: Unit) -> None:
        """Every file is delivered: write the lists, and let the first of them travel."""
        if not unit.forced_by and (why := self._on_their_way(unit)):
            self._store.units.wait(unit, why)
            return
        if (earlier := self._published_before(unit)) >= unit.generation:
            self._store.units.follow(unit, earlier + 1)
            return
        versions = []
        for destination in self._watch.destinations:
            name = self._write(unit, destination)
            if name is None:
                return
            versions.append(self._version(unit, destination, name))
        if self._store.units.publish(unit, versions):
            self._wake()

    def _published_before(self, unit: Unit) -> int:
        """The generation of a manifest of this unit that is at a destination and that the ledger knows nothing of (it
        was lost); 0 for none. Its lists are ours, and recorded now. Raises TransferError."""
        highest = 0
        for name in self._watch.destinations:
            destination, path = self._destinations[name], unit.path + b"/" + MANIFEST.encode()
            if self._store.deliveries(published_as(unit.watch, name), path):
                continue
            key = delivered_unit.key_of(destination, self._watch.key, unit.watch, self._host, unit.path)
            if destination.stat(key) is None:
                continue
            with suppress(IntegrityError, NameRefused), delivered_unit.opened(destination, key) as found:
                head = found.head
                if (found.watch, head.unit, head.head.get("host")) == (unit.watch, unit.path, self._host):
                    self._recognise(name, path, found.stored, found.digests)
                    sums = os.path.join(unit.path, head.sums.encode())
                    template = keys.key_for(self._watch.key, watch=unit.watch, path=sums, host=self._host)
                    digests = Digests(sum(map(len, found.sums())), head.digest)
                    if (stored := destination.holding(template, digests)) is not None:
                        self._recognise(name, sums, stored, digests)
                    highest = max(highest, head.generation)
        return highest

    def _recognise(self, destination: str, path: bytes, stored: Stored, digests: Digests) -> None:
        """Record a list of an earlier life as what it is."""
        lane = published_as(self._watch.name, destination)
        version = FileVersion(lane, path, Identity(0, digests.size, int(stored.mtime * 1e9)))
        proof = Proof(
            job=0,
            version=version,
            destination=destination,
            source=digests,
            stored_digests=digests,
            compression=Compression.NONE,
            compression_note="",
            stored=replace(stored, checksum=stored.checksum or f"sha256:{digests.sha256}", evidence="readback"),
            delivered_at=stored.mtime or self._wall(),
        )
        self._store.adopt(version, [proof], here=False)

    def _on_their_way(self, unit: Unit) -> str:
        counts: dict[State, int] = {}
        for _, state, _ in self._store.units.undelivered(unit, len(self._watch.destinations)):
            counts[state] = counts.get(state, 0) + 1
        counts.pop(State.DROPPED, None)  # an operator's word
        parked = counts.pop(State.PARKED, 0)
        parts = [f"{parked:,} file{'s' * (parked != 1)} parked"] if parked else []
        parts += [f"{number:,} {state.value}" for state, number in sorted(counts.items())]
        return ", ".join(parts)

    def _write(self, unit: Unit, destination: str) -> bytes | None:
        folder = self._folder(unit, destination)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        written = manifest.write(
            folder,
            unit,
            self._host,
            destination,
            self._store.units.delivered(unit, destination),
            self._store.units.undelivered(unit, len(self._watch.destinations)),
            self._stopping.is_set,
        )
        return None if written is None else written.sums

    def _publish(self, unit: Unit) -> None:
        """The lists are on their way: after the checksums the manifests, after these it is published."""
        for names in ((SUMS.encode(), manifest.OTHER_SUMS.encode()), (MANIFEST.encode(),)):
            found = {d: self._travels(unit, d, names) for d in self._watch.destinations}
            if None in found.values():
                versions = [self._version(unit, d, names[0]) for d, job in found.items() if job is None]
                self._store.enqueue(versions)
                self._wake()
                return
            waiting = [job for job in found.values() if job and job.state is not State.DONE]
            if waiting:
                self._wait_for(unit, waiting)
                return
        self._published(unit, {d: job for d, job in found.items() if job is not None})

    def _travels(self, unit: Unit, destination: str, names: tuple[bytes, ...]) -> Job | None:
        """The job of a list of this generation; None when it was not queued. When the file that it is to carry is gone,
        it is written again."""
        if not os.path.exists(os.path.join(self._folder(unit, destination), MANIFEST.encode())):
            self._write(unit, destination)
        for name in names:
            path = os.path.join(self._folder(unit, destination), name)
            if os.path.exists(path):
                version = self._version(unit, destination, name)
                lane = published_as(self._watch.name, destination)
                jobs = self._store.jobs(Filter(watch=lane, path=version.path, exact=True))
                same = [job for job in jobs if job.version == version]
                # After a crash the file may have been written again: whichever of this time is done, is published.
                done = [
                    job
                    for job in jobs
                    if job.state is State.DONE and job.version.identity.mtime_ns == version.identity.mtime_ns
                ]
                return next(iter(done or same), None)
        return None

    def _wait_for(self, unit: Unit, jobs: list[Job]) -> None:
        stuck = [job for job in jobs if job.state in _STUCK]
        if stuck:
            job = stuck[0]
            why = f"its list {shown(job.version.path)} is {job.state}: {job.error} (quaymaster jobs retry {job.id})"
            self._store.units.wait(unit, why)
        else:
            self._store.units.wait(unit, "its lists are on their way")

    def _published(self, unit: Unit, jobs: Mapping[str, Job]) -> None:
        contents, said = None, dict[str, Mapping[str, Any]]()
        for destination, job in jobs.items():
            proof = self._store.deliveries_of(job)[-1].proof
            said[destination] = {"key": proof.stored.key, "size": proof.stored.size, "sha256": proof.source.sha256}
            with open(os.path.join(self._folder(unit, destination), MANIFEST.encode()), "rb") as file:
                contents = manifest.Manifest(iter(lambda: file.read(1 << 20), b""), "the manifest").contents()
        assert contents is not None
        if not self._store.units.published(unit, contents, said):
            return
        self._forget_lists(unit)
        less = f", {contents.missing:,} missing" if contents.missing else ""
        what = f"unit {self._shown(unit)} is published (generation {unit.generation}): {contents.files:,} files{less}"
        self._say("unit-published", Level.NOTICE, what, unit)
        self._wake()

    # -- names --

    def _folder(self, unit: Unit, destination: str) -> bytes:
        return os.path.join(os.fsencode(own_directory(self._staging_dir, self._watch.name, destination)), unit.path)

    def _version(self, unit: Unit, destination: str, name: bytes) -> FileVersion:
        path = os.path.join(unit.path, name)
        status = os.stat(os.path.join(self._folder(unit, destination), name))
        return FileVersion(published_as(self._watch.name, destination), path, identity_of(status))

    def _shown(self, unit: Unit) -> str:
        return shown(os.path.join(os.fsencode(self._watch.path), unit.path))

    # -- saying --

    def _tell_long(self, unit: Unit) -> None:
        most = self._watch.unit_open_max
        if most is None or unit.state is UnitState.PUBLISHED or self._wall() - unit.opened_at < most:
            return
        if (unit.id, unit.generation) not in self._told_long:
            self._told_long.add((unit.id, unit.generation))
            days = (self._wall() - unit.opened_at) / 86400
            what = f"unit {self._shown(unit)} has not been published for {days:.1f} days: {unit.why or unit.state}"
            self._say("unit-overdue", Level.WARNING, what, unit)

    def _say(self, kind: str, level: Level, message: str, unit: Unit | None = None) -> None:
        with suppress(Exception):
            self._emit(Event(kind, message, level, watch=self._watch.name, path=unit.path if unit else b""))
