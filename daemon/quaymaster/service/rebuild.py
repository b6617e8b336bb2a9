"""``quaymaster rebuild``: the store after a loss (PRODUCT I5, Q6).

    damaged database ──► set aside, what can be read is carried over
    each watch       ──► its files that the store does not know: is a copy at each destination? ──► ledger
    each destination ──► its objects that no file accounts for, as far as they say whose they are ──► ledger

The service must be stopped. What is found is recorded; nothing is sent, removed or changed anywhere else. The jobs of
files that are here are queued: the service then sends what is missing, and sees to the sources. (Unfinished copies in
directories, of which only the lost store knew, are removed.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from quaymaster.config import Config, Watch
from quaymaster.destinations.base import Destination
from quaymaster.errors import QuaymasterError, SourceUnavailable, StoreDamaged, TransferError
from quaymaster.intake.scan import Found, Rules, walk
from quaymaster.model import Compression, FileVersion, Proof, State, Stored, shown
from quaymaster.pipeline.adopt import Shelf, copies, orphan
from quaymaster.service import build
from quaymaster.service.lock import Lock
from quaymaster.source import Root
from quaymaster.store import Filter, Store
from quaymaster.store.salvage import Salvaged, ended, interrupted, set_aside

_THREADS = 16
"""Objects asked about at once."""
_BATCH = 500


@dataclass(slots=True)
class Summary:
    """What a rebuild came to. Numbers are of files, or of objects."""

    loss: str = ""
    """What was wrong with the store; empty when nothing was."""
    salvaged: Salvaged | None = None
    files: int = 0
    """In the watches."""
    known: int = 0
    """Of these, the store knew already."""
    adopted: int = 0
    """Of these, copies were found at every destination or at some."""
    objects: int = 0
    """At the destinations."""
    orphans: int = 0
    """Copies recorded whose sources are not here any more."""
    problems: list[str] = field(default_factory=list)
    """Files and destinations that could not be looked at."""


def rebuild(config: Config, *, tell: Callable[[str], None], orphans: bool = True) -> Summary:
    """Raises StoreBusy while the service runs, StoreError and ConfigError. ``tell`` is given a line for each step."""
    summary = Summary()
    lock = Lock(config.service.state_dir)
    try:
        with closing(_opened(config, summary, tell)) as store:
            store.recover()
            with _destinations(config, store) as destinations:
                _Comparison(config, store, destinations, summary, tell).run(orphans)
            told = {"files": summary.files, "adopted": summary.adopted, "orphans": summary.orphans}
            store.note("rebuilt-end", told | {"problems": len(summary.problems)})
    finally:
        lock.release()
    return summary


def _opened(config: Config, summary: Summary, tell: Callable[[str], None]) -> Store:
    """The store, new if it must be; the first thing its log says is what was lost."""
    directory = config.service.state_dir
    folder, noted = interrupted(directory), None
    try:
        store = Store(directory, create=True, accept_loss=True)
        try:
            noted = store.noted_head()
            summary.loss = store.noted_fault()
            store.check()
        except BaseException:
            store.close(keep_head=False)
            raise
    except StoreDamaged as error:
        summary.loss = error.message
        folder = set_aside(directory, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
        tell(error.message)
        store = Store(directory, create=True, accept_loss=True)
    else:
        if folder:
            summary.loss = summary.loss or "The database was damaged"
            tell(f"A rebuild was interrupted before it had carried over what is in {folder}: it goes on")
    if folder:
        summary.salvaged = store.salvage(folder)
        tell(_told_of(summary.salvaged))
    details: dict[str, object] = {"loss": summary.loss, "noted_head": str(noted) if noted else ""}
    if salvaged := summary.salvaged:
        details |= {"kept_in": salvaged.folder, "rows": salvaged.rows, "custody_sha256": salvaged.sha256}
    store.note("rebuilt", details)
    if folder:
        ended(folder)
    return store


def _told_of(salvaged: Salvaged) -> str:
    jobs, ledger = salvaged.rows["jobs"], salvaged.rows["ledger"]
    kept = f"its files, and {salvaged.custody:,} entries of its custody log, are kept in {salvaged.folder}"
    return f"carried over: {jobs:,} jobs, {ledger:,} deliveries; {kept}"


@contextmanager
def _destinations(config: Config, store: Store) -> Iterator[dict[str, Destination]]:
    said = store.reports()
    found: dict[str, Destination] = {}
    try:
        for name in config.destinations:
            made = build.destination(config, name, lambda _: None, pins=said.get(f"pins:{name}", (0.0, {}))[1])
            if made is not None:
                found[name] = made
        yield found
    finally:
        for destination in found.values():
            destination.close()


@dataclass(slots=True)
class _Comparison:
    config: Config
    store: Store
    destinations: Mapping[str, Destination]
    summary: Summary
    tell: Callable[[str], None]
    _listings: dict[str, dict[str, Stored]] = field(default_factory=dict)
    _accounted: dict[str, set[str]] = field(default_factory=dict)

    def run(self, orphans: bool) -> None:
        for name, destination in self.destinations.items():
            try:
                self._listings[name] = {stored.key: stored for stored in destination.listing()}
                self.summary.objects += len(self._listings[name])
                self._accounted[name] = set()
                self.tell(f"destination {name}: {len(self._listings[name]):,} objects")
                if swept := destination.sweep(now=time.time(), older_than=0):
                    self.tell(f"destination {name}: {swept:,} unfinished copies of dead processes removed")
            except TransferError as error:
                self._problem(f"destination {name}: {error}")
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="rebuild") as pool:
            for watch in self.config.watches.values():
                try:
                    self._watch(watch, pool)
                except (OSError, TransferError) as error:
                    reason = error.strerror if isinstance(error, OSError) else str(error)
                    self._problem(f"watch {watch.name}: {watch.path} cannot be read ({reason})")
            if orphans:
                for name in self._listings:
                    self._orphans(name, pool)

    def _watch(self, watch: Watch, pool: ThreadPoolExecutor) -> None:
        before = self.summary.adopted
        root = Root(watch.path, hard_links=watch.hard_links)
        rules = Rules(watch.include, watch.exclude, watch.ignored)
        shelves = [shelf for name in watch.destinations if (shelf := self._shelf(watch, name)) is not None]
        batch: list[Found] = []
        for found in walk(root, rules):
            batch.append(found)
            if len(batch) == _BATCH:
                self._files(watch, root, shelves, batch, pool)
                batch = []
        self._files(watch, root, shelves, batch, pool)
        self.tell(f"watch {watch.name}: {self.summary.adopted - before:,} files recognised")

    def _shelf(self, watch: Watch, name: str) -> Shelf | None:
        if name in build.beside(self.config, watch):
            destination = build.next_to_sources(name, watch, lambda _: None)
            return Shelf(name, destination, destination.stat)
        if name not in self._listings:
            return None
        listing = self._listings[name]
        return Shelf(name, self.destinations[name], listing.get)

    def _files(
        self, watch: Watch, root: Root, shelves: list[Shelf], found: list[Found], pool: ThreadPoolExecutor
    ) -> None:
        known = self.store.known(watch.name, found)
        if self.summary.salvaged:
            known = [had and self._complete(watch, one) for one, had in zip(found, known, strict=True)]
        self.summary.files += len(found)
        self.summary.known += sum(known)
        fresh = [FileVersion(watch.name, *one) for one, had in zip(found, known, strict=True) if not had]
        for version, proofs, older in pool.map(lambda v: self._copies(watch, root, shelves, v), fresh):
            for proof in [*older, *proofs]:
                self._accounted.get(proof.destination, set()).add(proof.stored.key)
            for proof in older:
                self.store.adopt(proof.version, [proof], here=False)
            if proofs:
                self.store.adopt(version, proofs, here=True)
                self.summary.adopted += 1

    def _complete(self, watch: Watch, found: Found) -> bool:
        """Whether what was carried over of a file hangs together: of a job that is done, its deliveries may be lost."""
        version = FileVersion(watch.name, *found)
        jobs = self.store.jobs(Filter(watch=watch.name, path=found.path, states=(State.DONE,)))
        done = [job for job in jobs if job.version == version]
        shared = set(watch.destinations) - build.beside(self.config, watch)
        return all(shared <= {d.proof.destination for d in self.store.deliveries_of(job)} for job in done)

    def _copies(
        self, watch: Watch, root: Root, shelves: list[Shelf], version: FileVersion
    ) -> tuple[FileVersion, list[Proof], list[Proof]]:
        proofs: list[Proof] = []
        older: list[Proof] = []
        beside = build.beside(self.config, watch)
        for shelf in shelves:
            wanted = [c for c in Compression if c is not Compression.NONE or shelf.name not in beside]
            try:
                proof, before = copies(version, root, shelf, watch.key, self.config.service.host, wanted)
            except SourceUnavailable:
                raise
            except TransferError as error:
                self._problem(f"{root.shown(version.path)} at {shelf.name}: {error}")
                continue
            older += before
            proofs += [proof] if proof else []
        return version, proofs, older

    def _orphans(self, name: str, pool: ThreadPoolExecutor) -> None:
        """Objects that no file accounts for: recorded when they tell themselves what they are copies of."""
        listing, accounted = self._listings[name], self._accounted[name]
        left = [s for s in listing.values() if s.key not in accounted and self.store.current(name, s.key) is None]
        shelf = Shelf(name, self.destinations[name], listing.get)
        watches = [watch for watch in self.config.watches.values() if name in watch.destinations]
        for proof in pool.map(lambda stored: self._orphan(shelf, stored, watches), left):
            if proof is not None:
                self.store.adopt(proof.version, [proof], here=False)
                self.summary.orphans += 1

    def _orphan(self, shelf: Shelf, stored: Stored, watches: list[Watch]) -> Proof | None:
        try:
            for watch in watches:
                if proof := orphan(shelf, stored, watch.name, watch.key, self.config.service.host):
                    return proof
        except QuaymasterError as error:
            self._problem(f"{shown(stored.key.encode(errors='surrogateescape'))} at {shelf.name}: {error}")
        return None

    def _problem(self, text: str) -> None:
        self.summary.problems.append(text)
        self.tell(text)
