"""``quaymaster sync``: one pass over watches, and an end (PRODUCT I1-I3). The same walker, queue, workers and ledger as
the service: no second way for any byte.

    each watch ──► files ──► not in the ledger ──► whole? ──► at the destinations already? ──► ledger
                                                                       └── no ──► room? ──► queue
    workers of this process, or of the service that runs ──► until each of these jobs has come to its end

Read :meth:`Sync.run` from top to bottom.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quaymaster.errors import SourceUnavailable, StoreUnwritable, UsageError
from quaymaster.intake.footing import Memory
from quaymaster.intake.observe import ignore_lease_breaks
from quaymaster.intake.scan import Rules
from quaymaster.intake.survey import Narrow, Survey
from quaymaster.keys import escape
from quaymaster.model import FileVersion, Identity, Proof, State
from quaymaster.service import anchor, build
from quaymaster.service.lock import Lock, take
from quaymaster.service.station import Station
from quaymaster.service.summary import Moment, Step, Summary, Wanted
from quaymaster.source import Root

if TYPE_CHECKING:
    from quaymaster.config import Config, Watch
    from quaymaster.service.comparison import Comparison, Verdicts
    from quaymaster.service.units import Held
    from quaymaster.store import Row, Store

_BATCH = 5_000
"""Files put into the queue in one commit."""
_IDS = 500
_ADOPTED = 500
"""Files recorded in one commit: more would keep the service's own writes waiting."""
_BEGINS = 20.0
"""Seconds that another process may take from the lock to its database."""


@dataclass(slots=True)
class Sync:
    config: Config
    wanted: Wanted
    tell: Callable[[str], None]
    """Given a line about something that an operator should know."""
    progress: Callable[[Moment], None]
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    summary: Summary = field(default_factory=Summary)
    _stations: dict[str, Station] = field(default_factory=dict)
    _send: list[FileVersion] = field(default_factory=list)
    _again: list[FileVersion] = field(default_factory=list)
    _open: list[int] = field(default_factory=list)
    """Jobs of these files that are in the queue already."""
    _begun: dict[str, Comparison] = field(default_factory=dict)
    """Whose listing has begun, and that nobody has made use of yet."""
    _complete: set[FileVersion] = field(default_factory=set)
    """Adopted at every destination: when their jobs are done, nothing was sent."""

    def run(self) -> Summary:
        """Raises StoreError, and before anything is touched UsageError (a watch is paused) or OutOfSpace.
        KeyboardInterrupt ends it in order: what was in flight continues the next time."""
        began, since = self.monotonic(), self.clock()
        ignore_lease_breaks()
        with self._state() as (store, lock), self._closed_at_the_end():
            if store is not None and not self.wanted.dry_run:
                self._refuse_paused(store)
            for stray in self.wanted.strays:
                self.summary.fail(stray.path, stray.code, stray.text)
            for name, narrow in self.wanted.watches.items():
                self._survey(store, self.config.watches[name], narrow)
            if not self.wanted.dry_run and store is not None:
                self._enqueue_and_follow(store, lock, since)
        self.summary.seconds = self.monotonic() - began
        return self.summary

    @contextmanager
    def _closed_at_the_end(self) -> Iterator[None]:
        try:
            yield
        finally:
            for begun in self._begun.values():
                begun.close()

    # -- the state directory --

    @contextmanager
    def _state(self) -> Iterator[tuple[Store | None, Lock | None]]:
        """The store, and the lock that makes the queue ours; None while another process runs it."""
        directory = self.config.service.state_dir
        self.summary.dry_run = self.wanted.dry_run
        if self.wanted.dry_run and not os.path.exists(directory):
            yield None, None
            return
        from quaymaster.store import Store
        from quaymaster.store.db import FILE_NAME

        if self.wanted.dry_run:
            if not os.path.exists(os.path.join(directory, FILE_NAME)):
                yield None, None
                return
            with closing(Store(directory)) as store:
                yield store, None
            return
        _make(directory)
        _make(self.config.service.staging_dir)
        lock = self._take(directory)
        try:
            with closing(Store(directory, create=lock is not None)) as store:
                if lock is not None:
                    store.recover()
                yield store, lock
        finally:
            if lock is not None:
                lock.release()

    def _take(self, directory: str) -> Lock | None:
        """The lock. Who holds it may only just have begun, and its database not be there yet: that is waited for."""
        from quaymaster.store.db import FILE_NAME

        end = self.monotonic() + _BEGINS
        lock = take(directory)
        while lock is None and not os.path.exists(os.path.join(directory, FILE_NAME)) and self.monotonic() < end:
            time.sleep(0.05)
            lock = take(directory)
        return lock

    def _refuse_paused(self, store: Store) -> None:
        paused = store.control().paused
        for name in self.wanted.watches:
            if name in paused:
                raise UsageError(f"The watch {name} is paused by {paused[name].by}", f"quaymaster resume {name}")

    # -- what there is --

    def _survey(self, store: Store | None, watch: Watch, narrow: Narrow) -> None:
        """The files of a watch: what is known is counted, the rest is compared and noted."""
        began = self.monotonic()
        try:
            station = Station(watch, self._memory(store, watch))
            root = Root(watch.path, hard_links=watch.hard_links, pulse=station.pulse)
            survey = Survey(
                root,
                Rules(watch.include, watch.exclude, watch.ignored),
                station.policy(),
                os.fsencode(watch.marker or ""),
                narrow,
                int(self.clock() * 1e9),
            )
            if store is None and not self.wanted.force:  # it is sure to be needed: list while the files are found
                self._begun[watch.name] = self._comparison(store, watch, root)
                self._begun[watch.name].begin()
            fresh = self._fresh(store, watch, station, survey)
            station.scanned(survey.tally.entries)
        except (OSError, SourceUnavailable) as error:
            text = (
                str(error) if isinstance(error, SourceUnavailable) else f"{watch.path} cannot be read: {error.strerror}"
            )
            self.summary.fail(watch.path, SourceUnavailable.code, text)
            return
        self._stations[watch.name] = station
        self.summary.files += survey.tally.files
        self.summary.writing += len(survey.writing) + survey.tally.held
        self._tell_problems(survey)
        self._spent("scan", began)
        if fresh:
            self._compare(store, watch, survey, fresh)

    def _memory(self, store: Store | None, watch: Watch) -> Memory:
        if store is None:
            return Memory(watch.name, watch.path)
        kept_as = anchor.of_watch(watch.name)
        if self.wanted.dry_run:
            return Memory(watch.name, watch.path, lambda: store.reports().get(kept_as, (0.0, {}))[1])
        return anchor.memory(store, kept_as, watch.name, watch.path)

    def _released(self, held: Held, survey: Survey, new: list[Row]) -> list[Row]:
        """Without the files that wait for their unit: the service lets them go when it is whole."""
        released = [row for row in new if not held(row[0])]
        survey.tally.held += len(new) - len(released)
        return released

    def _fresh(self, store: Store | None, watch: Watch, station: Station, survey: Survey) -> list[FileVersion]:
        """Whole files of which the ledger knows nothing."""
        ground = station.ground()
        inodes = ground is None or ground.filesystem.keeps_inodes
        waiting = self._open_jobs(store, watch)
        fresh: list[FileVersion] = []
        for rows in survey.chunks():
            self.progress(Moment("scan", survey.tally.files))
            new = rows if store is None else store.unknown(watch.name, rows, inodes=inodes)
            if store is not None and watch.upload == "unit":
                from quaymaster.service.units import Held

                new = self._released(Held(watch, store, self.monotonic), survey, new)
            if waiting:
                self._follow(waiting, rows)
            if self.wanted.force:
                again = [_version(watch, row) for row in sorted(set(rows) - set(new) - waiting.keys())]
                self._again += again
                if self.wanted.dry_run:
                    self.summary.steps += [Step("send", survey.root.shown(v.path), v.size) for v in again]
            else:
                self.summary.skipped += len(rows) - len(new) - len(waiting.keys() & set(rows))
            # What is found to be there is not opened by a pass that only looks.
            whole = survey.whole(new) if new and not self._only_listed else new
            fresh += [_version(watch, row) for row in self._not_made_here(store, watch, whole)]
        return fresh

    def _open_jobs(self, store: Store | None, watch: Watch) -> dict[Row, int]:
        """Version -> job, of those in the queue already."""
        ids = list(store.open_of(watch.name)) if store else []
        found = store.outcomes(ids, 0.0) if store and ids else []
        return {
            (o.version.path, o.version.identity.inode, o.version.size, o.version.identity.mtime_ns): o.job
            for o in found
        }

    def _follow(self, waiting: Mapping[Row, int], rows: Sequence[Row]) -> None:
        self._open += [waiting[row] for row in waiting.keys() & set(rows)]

    def _not_made_here(self, store: Store | None, watch: Watch, rows: list[Row]) -> list[Row]:
        """Without compressed copies that we put beside their sources: no sources themselves."""
        beside = build.beside(self.config, watch)
        if store is None or not beside or not rows:
            return rows
        from quaymaster.destinations.directory_upload import etag_of

        objects = [(escape(path), etag_of(inode, mtime_ns)) for path, inode, _, mtime_ns in rows]
        found = [store.put_there_by_us(destination, objects) for destination in beside]
        sources = [row for row, *ours in zip(rows, *found, strict=True) if not any(ours)]
        self.summary.skipped += len(rows) - len(sources)
        return sources

    # -- what is there already --

    @property
    def _only_listed(self) -> bool:
        return self.wanted.dry_run and not self.wanted.force

    def _compare(self, store: Store | None, watch: Watch, survey: Survey, fresh: list[FileVersion]) -> None:
        began = self.monotonic()
        root = survey.root
        verdicts = self._verdicts(store, watch, root, fresh)
        for name, error in verdicts.unseen.items():
            if self.wanted.dry_run:
                self.summary.fail(f"destination {name}", error.code, f"destination {name} cannot be looked at: {error}")
            else:
                self.tell(f"destination {name} cannot be looked at, so nothing there is recognised: {error}")
        if self._only_listed:
            self._only_whole(watch, survey, verdicts)
        if self.wanted.dry_run:
            self.summary.steps += [Step("adopt", root.shown(v.path), v.size) for v in verdicts.same]
            self.summary.steps += [Step("send", root.shown(v.path), v.size) for v in verdicts.send]
        elif store is not None:
            self._adopt(store, watch, verdicts)
        self.summary.adopted += len(verdicts.same)
        for version, text in verdicts.conflicts:
            self.summary.fail(root.shown(version.path), "conflict", f"{root.shown(version.path)}: {text}")
        self._send += verdicts.send
        self._spent("compare", began)

    def _only_whole(self, watch: Watch, survey: Survey, verdicts: Verdicts) -> None:
        """Leaves out what would be sent and is still being written."""
        before, troubles = len(survey.writing), len(survey.problems)
        whole = survey.whole([_row(version) for version in verdicts.send])
        verdicts.send = [_version(watch, row) for row in whole]
        self.summary.writing += len(survey.writing) - before
        self._tell_problems(survey, troubles)

    def _tell_problems(self, survey: Survey, first: int = 0) -> None:
        for problem in survey.problems[first:]:
            self.summary.fail(survey.root.shown(problem.path), problem.code, problem.text)

    def _verdicts(self, store: Store | None, watch: Watch, root: Root, fresh: list[FileVersion]) -> Verdicts:
        from quaymaster.service.comparison import Verdicts  # with all that reads a destination

        if self.wanted.force:
            return Verdicts(send=fresh)
        if watch.name not in self._begun:
            self._begun[watch.name] = self._comparison(store, watch, root)
        with closing(self._begun.pop(watch.name)) as comparison:
            return comparison.run(fresh)

    def _comparison(self, store: Store | None, watch: Watch, root: Root) -> Comparison:
        from quaymaster.service.comparison import Comparison
        from quaymaster.service.places import Places

        places = Places(self.config, None if self.wanted.dry_run else store, lambda _: None)
        found = {name: places.of(name, watch.name) for name in watch.destinations}
        return Comparison(
            self.config,
            watch,
            root,
            {name: place for name, place in found.items() if place is not None},
            store,
            self.wanted.dry_run,
            self.tell,
            lambda done, total: self.progress(Moment("compare", done, total)),
            places.close,
        )

    def _adopt(self, store: Store, watch: Watch, verdicts: Verdicts) -> None:
        """Into the ledger. A file that is not everywhere yet, or of whose source something is to become, is queued."""
        same = set(verdicts.same)
        found: list[tuple[FileVersion, Sequence[Proof], bool]] = [(p.version, [p], False) for p in verdicts.older]
        found += [(v, proofs, v not in same or watch.after != "keep") for v, proofs in verdicts.adopted]
        for start in range(0, len(found), _ADOPTED):
            store.adopt_all(found[start : start + _ADOPTED])
        if watch.after != "keep":
            self._send += verdicts.same
            self._complete |= same
        self._send += [version for version, _ in verdicts.adopted if version not in same]

    # -- sending --

    def _unit_of(self, version: FileVersion) -> bytes | None:
        return self.config.watches[version.watch].unit_of(version.path)

    def _enqueue_and_follow(self, store: Store, lock: Lock | None, since: float) -> None:
        from quaymaster.service import room  # a pass that only looks sends nothing
        from quaymaster.service.sending import Sending

        room.check(self.config, self._stations, self._send + self._again, store.ratio)
        began = self.monotonic()
        for start in range(0, len(self._send), _BATCH):
            store.units.enqueue(self._send[start : start + _BATCH], self._unit_of)
        if self._again:
            store.send_again(self._again)
            again = {(version.watch, unit) for version in self._again if (unit := self._unit_of(version))}
            for name, unit in sorted(again):
                store.units.touch(name, unit, "sent again")
        if self._open:
            self._retry(store)
        jobs = sorted({*self._open, *store.numbers(self._send + self._again)})
        if not jobs:
            return
        sending = Sending(
            self.config,
            store,
            self._stations,
            self.summary,
            jobs,
            since,
            patience=self.wanted.patience,
            complete=self._complete,
            tell=self.tell,
            progress=self.progress,
        )
        try:
            sending.run(lock)
        finally:
            self._spent("send", began)
            sums = {"files": self.summary.files, "sent": self.summary.sent, "failed": self.summary.failed}
            store.note("sync", sums | {"watches": sorted(self.wanted.watches)})

    def _retry(self, store: Store) -> None:
        """Whoever asks for a pass wants what failed earlier to be tried again now."""
        from quaymaster.store import Filter

        states = (State.WAITING, State.PARKED)
        for start in range(0, len(self._open), _IDS):
            which = Filter(ids=tuple(self._open[start : start + _IDS]), states=states)
            store.retry(which)

    def _spent(self, stage: str, began: float) -> None:
        stages = self.summary.stages
        stages[stage] = stages.get(stage, 0.0) + self.monotonic() - began


def _version(watch: Watch, row: Row) -> FileVersion:
    path, *identity = row
    return FileVersion(watch.name, path, Identity(*identity))


def _row(version: FileVersion) -> Row:
    return version.path, version.identity.inode, version.size, version.identity.mtime_ns


def _make(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreUnwritable(
            f"The directory {directory} cannot be made ({error.strerror})",
            "Run the command as root or as the service's user, or set service.state_dir and service.staging_dir",
        ) from None
