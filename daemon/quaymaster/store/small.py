"""Many jobs of small files at once, in one statement or one commit for all of them (PRODUCT Q1, promise 5).

Functions here take a transaction; they are composed and committed by store.Store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quaymaster.model import Job, Proof, Stage
from quaymaster.store import custody, jobs, ledger, turns
from quaymaster.store.db import Transaction

_MARKS = 500
"""Values bound in one statement."""
_LOOKED_AT = 1000
"""Queued jobs of a watch, the oldest first, of which the small ones are taken."""


def claim(t: Transaction, watch: str, limit: int, largest: int, now: float) -> list[Job]:
    """Take up to ``limit`` more queued jobs of a watch, of files of at most ``largest`` bytes, the oldest first."""
    found = t.execute(
        "SELECT id FROM (SELECT id, watch_id, path, size FROM jobs WHERE state = 'queued'"
        " AND watch_id = (SELECT id FROM watches WHERE name = ?) ORDER BY id LIMIT ?) AS mine WHERE size <= ?"
        " AND NOT EXISTS (SELECT 1 FROM jobs AS older WHERE older.watch_id = mine.watch_id AND older.path = mine.path"
        " AND (older.state = 'running' OR (older.state = 'queued' AND older.id < mine.id))) LIMIT ?",
        (watch, _LOOKED_AT, largest, limit),
    )
    taken = jobs.take(t, [row[0] for row in found], now)
    turns.charge(t, watch, len(taken), sum(job.version.size for job in taken))
    return taken


def first_times(t: Transaction, destination: str, wanted: Sequence[tuple[Job, str]]) -> set[int]:
    """Which of these jobs (all of one watch, each with its key) are the first of their file and of their key: nothing
    was delivered, nothing was begun, no other version was ever queued."""
    watch = jobs.watch_id(t, wanted[0][0].version.watch) if wanted else 0
    had: set[bytes] = set()
    taken: set[str] = set()
    begun: set[int] = set()
    for start in range(0, len(wanted), _MARKS):
        some = wanted[start : start + _MARKS]
        paths, marks = [job.version.path for job, _ in some], ",".join("?" * len(some))
        of_watch = (watch, *paths)
        had |= _column(t, f"SELECT path FROM ledger WHERE watch_id = ? AND path IN ({marks})", of_watch)
        others = f"SELECT path FROM jobs WHERE watch_id = ? AND path IN ({marks}) GROUP BY path HAVING count(*) > 1"
        had |= _column(t, others, of_watch)
        current = f"SELECT key FROM ledger WHERE destination = ? AND replaced_by IS NULL AND key IN ({marks})"
        taken |= _column(t, current, (destination, *(key for _, key in some)))
        begun |= _column(t, f"SELECT job_id FROM uploads WHERE job_id IN ({marks})", [job.id for job, _ in some])
    return {job.id for job, key in wanted if job.version.path not in had and key not in taken and job.id not in begun}


def note(t: Transaction, stage: Stage, left: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    """What these running jobs (by number) do now, and what their finished steps left behind."""
    t.executemany(
        "UPDATE jobs SET stage = ?, checkpoint = ? WHERE id = ?",
        [(stage.value, json.dumps(what), number) for number, what in left],
    )


def deliver(t: Transaction, proofs: Sequence[Proof], now: float, *, disposal: str) -> None:
    """Record deliveries. With a ``disposal`` their jobs are done as well."""
    for proof in proofs:
        ledger.record(t, proof)
    custody.append_all(
        t,
        (("delivered", p.job, p.version.watch, p.version.path, ledger.details(p)) for p in proofs),
        now,
    )
    if disposal:
        t.executemany(
            "UPDATE ledger SET disposal = ?, disposed_at = ? WHERE job_id = ?",
            [(disposal, now, proof.job) for proof in proofs],
        )
        jobs.finish(t, [proof.job for proof in proofs], now)


def _column(t: Transaction, query: str, values: Sequence[Any]) -> set[Any]:
    return {row[0] for row in t.execute(query, values)}
