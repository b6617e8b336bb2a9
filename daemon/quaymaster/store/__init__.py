"""What quaymaster remembers: the queue, the ledger, the custody log, behind one small interface.

SQL stays in this room. Everything that returns from a writing method is durable.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from quaymaster.errors import StoreDamaged, StoreError, StoreLost
from quaymaster.model import FileVersion, Identity, Job, Proof, Stage, State
from quaymaster.store import copies, custody, jobs, ledger, outbox, passes, small, units
from quaymaster.store.control import Control, Pause
from quaymaster.store.copies import Copy, Place, Selection
from quaymaster.store.custody import Entry, Head
from quaymaster.store.db import DAMAGED, FILE_NAME, Database, Transaction
from quaymaster.store.head import HEAD_FILE, HeadFile
from quaymaster.store.jobs import Filter, Held
from quaymaster.store.ledger import Delivery
from quaymaster.store.mirrored import Mirrored
from quaymaster.store.mirrors import Downloaded, MirrorUnit
from quaymaster.store.operators import Operators
from quaymaster.store.outbox import Outbox
from quaymaster.store.passes import Outcome, Row
from quaymaster.store.salvage import Salvaged, salvage, unfinished
from quaymaster.store.turns import Queue
from quaymaster.store.units import Contents, Unit, Units, UnitState

__all__ = [
    "HEAD_FILE",
    "Contents",
    "Control",
    "Copy",
    "Delivery",
    "Downloaded",
    "Entry",
    "Filter",
    "Head",
    "Held",
    "MirrorUnit",
    "Outcome",
    "Pause",
    "Place",
    "Queue",
    "Row",
    "Selection",
    "Store",
    "Unit",
    "UnitState",
    "Units",
]

_SET_BACK = 1.0
"""Seconds by which the wall clock falls behind the monotonic one when it is said to have been set back."""


class Store(Operators, Mirrored):
    """The store of one state directory. Thread-safe; several processes may have it open."""

    def __init__(
        self,
        directory: str,
        *,
        create: bool = False,
        accept_loss: bool = False,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises StoreError. ``create`` is for the service; commands open only what is there. The service does not go
        on with a database that is gone or older than it was (StoreLost), unless ``accept_loss``."""
        self.path = os.path.join(directory, FILE_NAME)
        self._head = HeadFile(directory)
        noted = self.noted_head()
        if create and not accept_loss and noted and not os.path.exists(self.path):
            raise _lost(f"The database {self.path} is gone; it held {noted.seq:,} entries of the custody log")
        if create and not accept_loss and (left := unfinished(directory)):
            raise _lost(f"A rebuild was interrupted before it had carried over what is in {left[0]}")
        self._db = Database(directory, create=create)
        self._clock, self._monotonic = clock, monotonic
        self.outbox = Outbox(self._db, clock)
        self.units = Units(self._db, clock)
        self._ahead = float("inf")  # unknown: it may have been set back while nobody looked
        self._keeps_head = create
        if create and not accept_loss and (fault := self.noted_fault()):
            self._db.close()
            raise _lost(f"The database {self.path} is not what it was: {fault}")

    def close(self, *, keep_head: bool = True) -> None:
        if self._keeps_head and keep_head:
            with suppress(StoreError):
                self.keep_head()
        self._db.close()

    # -- the head of the custody log, beside the database --

    def noted_head(self) -> Head | None:
        """The head that the service last noted in a file of its own."""
        return self._head.noted()

    def noted_fault(self) -> str:
        """How the database contradicts that head; an empty string when it does not."""
        noted = self.noted_head()
        return self.contradiction(noted) if noted else ""

    def contradiction(self, head: Head) -> str:
        """What the custody log says against a head that was once its own; an empty string when it bears it out."""
        with self._db.read() as t:
            return custody.contradiction(t, head)

    def keep_head(self) -> None:
        """Note the head of the custody log beside the database."""
        last = self.custody_entry()
        self._head.keep(Head(last.seq, last.sha256) if last else None)

    # -- intake --

    def known(self, watch: str, versions: Sequence[tuple[bytes, Identity]], *, inodes: bool = True) -> list[bool]:
        """Which of these versions of a watch's files are queued, delivered or given up already."""
        with self._db.read() as t:
            return jobs.known(t, watch, versions, inodes=inodes)

    def enqueue(self, versions: Sequence[FileVersion]) -> int:
        """Make jobs of the versions that have none; how many were made."""
        return self._db.write(lambda t: jobs.enqueue(t, versions, self._clock()))

    # -- pipeline --

    def claim(self, limit: int, queues: Sequence[Queue] = ()) -> list[Job]:
        """Take up to ``limit`` jobs to run, fairly between the watches (only of those in ``queues``, if any)."""
        self._heed_clock()
        with self._db.read() as t:
            idle = not jobs.ready(t, self._clock())
        return [] if idle else self._db.write(lambda t: jobs.claim(t, limit, self._clock(), queues))

    def _heed_clock(self) -> None:
        """Nobody waits for a time that a wall clock has come from."""
        ahead = self._clock() - self._monotonic()
        if ahead < self._ahead - _SET_BACK:
            self._db.write(lambda t: jobs.wake_from_future(t, self._clock()))
            self._ahead = ahead
        self._ahead = max(self._ahead, ahead)

    def claim_small(self, watch: str, limit: int, largest: int) -> list[Job]:
        """Take up to ``limit`` more jobs of a watch, of files of at most ``largest`` bytes, to run beside another."""
        return self._db.write(lambda t: small.claim(t, watch, limit, largest, self._clock()))

    def first_times(self, destination: str, wanted: Sequence[tuple[Job, str]]) -> set[int]:
        """Numbers of those jobs (of one watch, each with its key) before which there was nothing of their file or under
        their key."""
        with self._db.read() as t:
            return small.first_times(t, destination, wanted)

    def note_all(self, stage: Stage, left: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """:meth:`checkpoint` for many jobs, by number, in one commit."""
        self._db.write(lambda t: small.note(t, stage, left))

    def deliver_all(self, proofs: Sequence[Proof], *, disposal: str = "") -> None:
        """:meth:`deliver` for many jobs in one commit, and with a ``disposal`` :meth:`finish`."""
        self._db.write(lambda t: small.deliver(t, proofs, self._clock(), disposal=disposal))

    def checkpoint(self, job: Job, stage: Stage, left: Mapping[str, Any] | None = None) -> None:
        self._db.write(lambda t: jobs.checkpoint(t, job.id, stage, left))

    def begin_upload(self, job: Job, destination: str, token: str, *, instead_of: str = "") -> None:
        """Remember an upload that begins, so that it can be aborted whatever happens to this process; ``instead_of``
        is the token that it had before."""

        def act(t: Any) -> None:
            jobs.end_upload(t, job.id, destination, instead_of)
            jobs.begin_upload(t, job.id, destination, token, self._clock())

        self._db.write(act)

    def unrecorded(self, version: FileVersion) -> list[Job]:
        """Jobs of other versions of the file that were superseded or dropped while they made a copy visible."""
        with self._db.read() as t:
            return jobs.unrecorded(t, version)

    def forget_publication(self, job: Job) -> None:
        """That copy has been looked for: it is recorded, or was never there."""
        self._db.write(lambda t: jobs.forget_checkpoint(t, job.id))

    def end_upload(self, job_id: int, destination: str, token: str) -> None:
        """Nothing of this upload is left to abort."""
        self._db.write(lambda t: jobs.end_upload(t, job_id, destination, token))

    def uploads(self, job: Job | None = None) -> list[tuple[int, str, str]]:
        """(job number, destination, token) of uploads that began and did not end."""
        with self._db.read() as t:
            return jobs.uploads(t, job.id if job else None)

    def deliver(self, proof: Proof, token: str = "") -> None:
        """Record one delivery with its proof: ledger, custody log and the end of its upload, in one commit."""

        def act(t: Any) -> None:
            ledger.record(t, proof)
            jobs.end_upload(t, proof.job, proof.destination, token)
            version = proof.version
            custody.append(
                t,
                "delivered",
                self._clock(),
                job=proof.job,
                watch=version.watch,
                path=version.path,
                details=ledger.details(proof),
            )

        self._db.write(act)

    def adopt(self, version: FileVersion, proofs: Sequence[Proof], *, here: bool) -> None:
        """Record copies of a version that an earlier life of this host made. ``here``: its source is there as well, so
        its job is queued, to send it where it is missing and to see to the source; else it counts as done."""
        self.adopt_all([(version, proofs, here)])

    def adopt_all(self, found: Sequence[tuple[FileVersion, Sequence[Proof], bool]]) -> None:
        """The same for many in one commit: (version, proofs, here)."""

        def act(t: Any) -> None:
            now = self._clock()
            for version, proofs, here in found:
                number = jobs.number_of(t, version, now)
                for proof in (replace(proof, job=number) for proof in proofs):
                    ledger.record(t, proof)
                    said = ledger.details(proof)
                    custody.append(t, "adopted", now, job=number, watch=version.watch, path=version.path, details=said)
                if here:
                    jobs.reopen(t, number, now)
                else:
                    jobs.finish(t, [number], now)

        self._db.write(act)

    def salvage(self, folder: str) -> Salvaged:
        """Carry over what can be read of a damaged database that was set aside in ``folder``."""
        return salvage(folder, self._db)

    def check(self) -> None:
        """Raises StoreDamaged unless the database is sound."""
        if damage := self._db.damage():
            raise StoreDamaged(f"The database {self.path} is damaged ({damage})", DAMAGED)

    def left(self, job: Job, reason: str) -> None:
        """Note that a file was not sent to the directory that it is in, because it is not compressed."""
        self._db.write(lambda t: self._note(t, "left", job, {"reason": reason}))

    def finish(self, job: Job, disposal: str = "") -> None:
        """The job is done; ``disposal`` says what became of the source ("kept", "deleted", "moved:PATH")."""

        def act(t: Any) -> None:
            now = self._clock()
            if disposal:
                ledger.disposed(t, job.id, disposal, now)
                if disposal != "kept":
                    self._note(t, "disposed", job, {"disposal": disposal})
            jobs.finish(t, [job.id], now)

        self._db.write(act)

    def fail(
        self, job: Job, state: State, code: str, error: str, *, retry_at: float | None = None, strike: bool = False
    ) -> None:
        """A run ended without success: WAITING until ``retry_at``, PARKED or SUPERSEDED. ``strike`` counts it against
        the few that some kinds of failure have."""

        def act(t: Any) -> None:
            jobs.fail(t, job.id, state, code, error, self._clock(), retry_at=retry_at, strike=strike)
            self._note(t, state.value, job, {"code": code, "error": error})

        self._db.write(act)

    def postpone(self, job: Job, until: float) -> None:
        """Run the job again at ``until``, without counting a failure (a grace period)."""
        self._db.write(lambda t: jobs.postpone(t, job.id, until))

    def confirmed(self, job: Job, hook: str) -> bool:
        """Whether a hook has confirmed everything that it is to be told of a job."""
        return self.outbox.confirmed(job.id, hook)

    def await_hooks(self, job: Job, hooks: Sequence[str], until: float, unit: bytes | None = None) -> str:
        """The first of these hooks that has not confirmed what became of the job, and of the unit that it is in; empty
        when all have. The job then runs again as soon as one has, at ``until`` at the latest, without counting a
        failure."""

        def act(t: Transaction) -> str:
            of_unit = units.entry_of(t, job.version.watch, unit) if unit is not None else 0
            hook = outbox.awaited(t, job.id, hooks, of_unit)
            if hook:
                jobs.postpone(t, job.id, until, f"its source waits until hook {hook} has confirmed")
            return hook

        return self._db.write(act) if hooks else ""

    def renamed(self, job: Job) -> bytes | None:
        """The path of a newer job for the very same file under another name, if there is one."""
        with self._db.read() as t:
            return jobs.renamed(t, job)

    def release(self, running: Iterable[Job]) -> None:
        """Put running jobs back, with their checkpoints, uncounted."""
        ids = [job.id for job in running]
        self._db.write(lambda t: jobs.release(t, ids))

    def recover(self) -> int:
        """At start: queue again what a crash left running. How many."""
        return self._db.write(jobs.recover)

    def next_retry(self) -> float | None:
        with self._db.read() as t:
            return jobs.next_retry(t)

    def note(self, kind: str, details: Mapping[str, Any]) -> None:
        """Add an entry to the custody log that belongs to no job (service start, config change)."""
        self._db.write(lambda t: custody.append(t, kind, self._clock(), details=details))

    def note_outages(self, entries: Sequence[tuple[str, Mapping[str, Any]]], still: Mapping[str, float]) -> None:
        """Note what went away or is back (kind and details), and with it which outages are open since when."""

        def act(t: Transaction) -> None:
            now = self._clock()
            custody.append_all(t, [(kind, 0, "", b"", details) for kind, details in entries], now)
            body = json.dumps({"open": dict(still)})
            t.execute("INSERT OR REPLACE INTO reports VALUES ('outages', ?, ?)", (body, now))

        self._db.write(act)

    # -- what was delivered --

    def current(self, destination: str, key: str) -> Delivery | None:
        """What we last put under this key, or None when we never did."""
        with self._db.read() as t:
            return ledger.current(t, destination, key)

    def put_there_by_us(self, destination: str, objects: Sequence[tuple[str, str]]) -> list[bool]:
        """Which of these (key, ETag) are copies of ours, still as we left them."""
        with self._db.read() as t:
            return ledger.ours(t, destination, objects)

    def deliveries(self, watch: str, path: bytes) -> list[Delivery]:
        """Every delivery of every version of a file, oldest first."""
        with self._db.read() as t:
            return ledger.of_path(t, watch, path)

    def deliveries_of(self, job: Job) -> list[Delivery]:
        with self._db.read() as t:
            return ledger.of_job(t, job.id)

    def history(self, job: Job) -> list[Entry]:
        """The custody log's entries of one job, oldest first."""
        with self._db.read() as t:
            return custody.of_job(t, job.id)

    def custody(self, first: int = 1, last: int = 1 << 62) -> Iterator[Entry]:
        """The custody log from entry ``first`` to ``last``, as it stood when the first one was asked for."""
        return custody.paged(self._db.read, first, last)

    def last_job_entry(self) -> int:
        """The number of the custody log's newest entry that belongs to a job; 0 for none."""
        with self._db.read() as t:
            return custody.last_of_job(t)

    def custody_entry(self, seq: int = 0) -> Entry | None:
        """One entry of the custody log, the last one by default."""
        with self._db.read() as t:
            return custody.entry(t, seq)

    def custody_broken_at(self) -> int | None:
        with self._db.read() as t:
            return custody.broken_at(t)

    def damage(self) -> str:
        """What SQLite finds wrong with the file, or an empty string; reads all of it."""
        return self._db.damage()

    # -- verifying and restoring --

    def destinations(self, which: Selection) -> dict[str, tuple[int, int]]:
        """Destination -> number and stored bytes of the copies there."""
        with self._db.read() as t:
            return copies.destinations(t, which)

    def last_delivery(self) -> int:
        """The number of the newest delivery; 0 when there is none."""
        with self._db.read() as t:
            return copies.last(t)

    def copies(self, which: Selection, *, after: int = 0, upto: int = 1 << 62, limit: int = 500) -> list[Copy]:
        """Copies in the order of their deliveries' numbers, ``limit`` at a time."""
        with self._db.read() as t:
            return copies.page(t, which, after, upto, limit)

    def copies_by_key(self, destination: str, keys: Sequence[str]) -> dict[str, Copy]:
        with self._db.read() as t:
            return copies.by_key(t, destination, keys)

    def copies_by_number(self, numbers: Sequence[int]) -> list[Copy]:
        """Those of these deliveries (at most 500) that nothing has replaced."""
        with self._db.read() as t:
            return copies.by_number(t, numbers)

    def reading_order(self, which: Selection, upto: int) -> Sequence[int]:
        """Numbers of the copies, those first whose bytes were verified the longest ago or never."""
        with self._db.read() as t:
            return copies.reading_order(t, which, upto)

    def verified(self, good: Iterable[int], read: Iterable[int], level: str) -> None:
        """Remember which copies were found as recorded, and of which the bytes were read."""
        good, read = list(good), list(read)
        if good or read:
            self._db.write(lambda t: copies.mark(t, good, read, level, self._clock()))

    def under_way(self, watch: str, path: bytes) -> bool:
        """Whether a job of this file may be changing its copies just now."""
        with self._db.read() as t:
            return copies.under_way(t, watch, path)

    def note_fault(self, proof: Proof, details: Mapping[str, Any]) -> None:
        """Note in the custody log that a copy is not what it was."""
        v = proof.version
        where = {"destination": proof.destination, "key": proof.stored.key, **details}
        self._db.write(
            lambda t: custody.append(
                t, "integrity-failure", self._clock(), job=proof.job, watch=v.watch, path=v.path, details=where
            )
        )

    def files(
        self, which: Selection, after: Place | None = None, limit: int = 500
    ) -> list[tuple[Place, list[Delivery]]]:
        """Up to ``limit`` files behind ``after``, each with the deliveries of its newest version in the selection."""
        with self._db.read() as t:
            return copies.files(t, which, after, limit)

    def extent(self, which: Selection) -> tuple[int, int]:
        """How many files :meth:`files` tells of, and their bytes."""
        with self._db.read() as t:
            return copies.extent(t, which)

    def expect(self, versions: Sequence[FileVersion]) -> list[int]:
        """Files are about to be brought back to their own places: these versions count as delivered from now on. The
        numbers of their jobs."""
        return self._db.write(lambda t: [copies.expect(t, version, self._clock()) for version in versions])

    def restored(self, files: Sequence[tuple[str, bytes, int, Mapping[str, Any]]]) -> None:
        """Note in the custody log that files were brought back: watch, path, what :meth:`expect` returned, details."""

        def note(t: Transaction) -> None:
            for watch, path, job, details in files:
                custody.append(t, "restored", self._clock(), job=job, watch=watch, path=path, details=details)

        self._db.write(note)

    # -- one pass over a tree --

    def unknown(self, watch: str, rows: Sequence[Row], *, inodes: bool = True) -> list[Row]:
        """Which of these files of a watch the queue never had. For many at once: see :meth:`known` for a few."""
        with self._db.read() as t:
            return passes.unknown(t, watch, rows, inodes=inodes)

    def numbers(self, versions: Sequence[FileVersion]) -> list[int]:
        """The jobs of these versions, as far as there are any."""
        with self._db.read() as t:
            return passes.numbers(t, versions)

    def outcomes(self, ids: Sequence[int], since: float) -> list[Outcome]:
        with self._db.read() as t:
            return passes.outcomes(t, ids, since)

    def open_of(self, watch: str) -> dict[int, State]:
        """The watch's jobs that are not final."""
        with self._db.read() as t:
            return {job: state for job, state, _ in passes.open_of(t, watch)}

    def send_again(self, versions: Sequence[FileVersion]) -> int:
        """Queue what is done or given up once more, to be sent although it was; how many."""
        return self._db.write(lambda t: passes.send_again(t, versions, self._clock()))

    def ratio(self, watch: str) -> float | None:
        """How many times smaller the compressed copies of a watch are than their sources; None while there is none."""
        with self._db.read() as t:
            return passes.ratio(t, watch)


def _lost(what: str) -> StoreLost:
    return StoreLost(
        what, "Restore a backup of it, or run quaymaster rebuild, which fills the gap from what the destinations hold"
    )
