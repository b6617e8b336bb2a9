"""What quaymaster remembers: the queue, the ledger, the custody log, behind one small interface.

SQL stays in this room. Everything that returns from a writing method is durable.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from quaymaster.model import FileVersion, Identity, Job, Proof, Stage, State
from quaymaster.store import custody, jobs, ledger
from quaymaster.store.custody import Entry
from quaymaster.store.db import Database
from quaymaster.store.jobs import Filter
from quaymaster.store.ledger import Delivery

__all__ = ["Delivery", "Entry", "Filter", "Store"]


class Store:
    """The store of one state directory. Thread-safe; several processes may have it open."""

    def __init__(self, directory: str, *, create: bool = False, clock: Callable[[], float] = time.time) -> None:
        """Raises StoreError. ``create`` is for the service; commands open only what is there."""
        self._db = Database(directory, create=create)
        self._clock = clock
        self.path = self._db.path

    def close(self) -> None:
        self._db.close()

    # -- intake --

    def known(self, watch: str, versions: Sequence[tuple[bytes, Identity]], *, inodes: bool = True) -> list[bool]:
        """Which of these versions of a watch's files are queued, delivered or given up already."""
        with self._db.read() as t:
            return jobs.known(t, watch, versions, inodes=inodes)

    def enqueue(self, versions: Sequence[FileVersion]) -> int:
        """Make jobs of the versions that have none; how many were made."""
        return self._db.write(lambda t: jobs.enqueue(t, versions, self._clock()))

    # -- pipeline --

    def claim(self, limit: int, watches: Sequence[str] = ()) -> list[Job]:
        """Take up to ``limit`` jobs to run, fairly between the watches (only the named ones, when any is)."""
        with self._db.read() as t:
            idle = not jobs.ready(t, self._clock())
        return [] if idle else self._db.write(lambda t: jobs.claim(t, limit, self._clock(), watches=watches))

    def checkpoint(self, job: Job, stage: Stage, left: Mapping[str, Any] | None = None) -> None:
        self._db.write(lambda t: jobs.checkpoint(t, job.id, stage, left))

    def begin_upload(self, job: Job, destination: str, token: str, *, instead_of: str = "") -> None:
        """Remember an upload that begins, so that it can be aborted whatever happens to this process; ``instead_of``
        is the token that it had before."""

        def act(t: Any) -> None:
            jobs.end_upload(t, job.id, destination, instead_of)
            jobs.begin_upload(t, job.id, destination, token, self._clock())

        self._db.write(act)

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

    def is_open(self, job: int) -> bool:
        """Whether the job of that number exists and is not final."""
        found = self.jobs(Filter(ids=(job,)))
        return bool(found) and not found[0].state.final

    def note(self, kind: str, details: Mapping[str, Any]) -> None:
        """Add an entry to the custody log that belongs to no job (service start, config change)."""
        self._db.write(lambda t: custody.append(t, kind, self._clock(), details=details))

    def _note(self, t: Any, kind: str, job: Job, details: Mapping[str, Any]) -> None:
        v = job.version
        custody.append(t, kind, self._clock(), job=job.id, watch=v.watch, path=v.path, details=details)

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

    def custody(self) -> Iterator[Entry]:
        """The whole custody log, oldest first, as it stood when the first entry was asked for."""
        with self._db.read() as t:
            yield from custody.entries(t)

    def custody_entry(self, seq: int = 0) -> Entry | None:
        """One entry of the custody log, the last one by default."""
        with self._db.read() as t:
            return custody.entry(t, seq)

    def custody_broken_at(self) -> int | None:
        with self._db.read() as t:
            return custody.broken_at(t)

    # -- operators --

    def jobs(self, which: Filter) -> list[Job]:
        with self._db.read() as t:
            return jobs.find(t, which)

    def counts(self) -> dict[str, dict[State, tuple[int, int]]]:
        """For each watch and state: how many jobs, and the bytes of their sources."""
        with self._db.read() as t:
            return jobs.count(t)

    def oldest_open(self) -> float | None:
        with self._db.read() as t:
            return jobs.oldest_open(t)

    def retry(self, which: Filter) -> list[int]:
        """Run waiting, parked or dropped jobs now; their numbers."""

        def act(t: Any) -> list[int]:
            chosen = jobs.find(t, which)
            ids = jobs.retry(t, which)
            affected = set(ids)
            for job in chosen:
                if job.id in affected:
                    self._note(t, "retried", job, {"by": "operator"})
            return ids

        return self._db.write(act)

    def drop(self, which: Filter) -> list[int]:
        """Give queued, waiting or parked jobs up; their numbers. Sources stay where they are."""

        def act(t: Any) -> list[int]:
            chosen = jobs.find(t, which)
            ids = jobs.drop(t, which, self._clock())
            affected = set(ids)
            for job in chosen:
                if job.id in affected:
                    self._note(t, "dropped", job, {"by": "operator", "code": job.error_code})
            return ids

        return self._db.write(act)

    # -- what the service says of itself --

    def report(self, name: str, body: Mapping[str, Any]) -> None:
        """Leave a word for commands in other processes (a watch's state, progress)."""
        text = json.dumps(body)
        self._db.write(
            lambda t: t.execute("INSERT OR REPLACE INTO reports VALUES (?, ?, ?)", (name, text, self._clock()))
        )

    def reports(self) -> dict[str, tuple[float, dict[str, Any]]]:
        """name -> (when, what was said)."""
        with self._db.read() as t:
            return {r["name"]: (r["at"], json.loads(r["body"])) for r in t.execute("SELECT * FROM reports")}
