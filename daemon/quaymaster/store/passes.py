"""What one pass over a whole tree asks: which of its files are new, and what has become of their jobs (PRODUCT I1-I3).

Functions here take a transaction; they are composed and committed by store.Store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from quaymaster.model import FileVersion, Identity, State
from quaymaster.store import jobs
from quaymaster.store.db import Transaction

AGAIN = "again"
"""The key of a job's checkpoint that says since when (seconds since the epoch) it is sent once more."""

Row = tuple[bytes, int, int, int]
"""path, inode, size, mtime_ns: a file as a directory lists it."""

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of one job."""

    job: int
    version: FileVersion
    state: State
    attempts: int
    retry_at: float | None
    error_code: str
    error: str
    stored: int
    """Bytes of the copies that were recorded since the moment asked about."""
    copies: int
    """How many those are."""
    earlier: int
    """Copies that had been recorded before."""


def unknown(t: Transaction, watch: str, rows: Sequence[Row], *, inodes: bool = True) -> list[Row]:
    """Those that the queue never had, in their order. Quickest when ``rows`` are near to each other in path order."""
    found = t.execute("SELECT id FROM watches WHERE name = ?", (watch,)).fetchone()
    if found is None or not rows:
        return list(rows)
    cursor = t.cursor()
    cursor.row_factory = None
    fresh = set(rows)
    # Of all rows between the first and the last path, those that are not asked about cost little, and no memory.
    # The first query is answered by the index alone; the few that were superseded are taken back.
    within = (found[0], min(rows)[0], max(rows)[0])
    columns, where = "SELECT path, inode, size, mtime_ns FROM jobs", "WHERE watch_id = ? AND path BETWEEN ? AND ?"
    fresh.difference_update(cursor.execute(f"{columns} {where}", within))
    superseded = "SELECT jobs FROM tallies WHERE watch_id = ? AND state = 'superseded'"
    if cursor.execute(superseded, within[:1]).fetchone() != (0,):  # else all rows need not be read for them
        taken_back = cursor.execute(f"{columns} NOT INDEXED {where} AND state = 'superseded'", within).fetchall()
        fresh.update(set(rows).intersection(taken_back))
    if not fresh:
        return []
    left = [row for row in rows if row in fresh]
    had = jobs.known(t, watch, [(path, Identity(*identity)) for path, *identity in left], inodes=inodes)
    return [row for row, was_had in zip(left, had, strict=True) if not was_had]


def numbers(t: Transaction, versions: Sequence[FileVersion]) -> list[int]:
    """The jobs of these versions, as far as there are any."""
    found: list[int] = []
    for watch in dict.fromkeys(version.watch for version in versions):
        wanted = {
            (v.path, jobs.signed(v.identity.inode), v.size, v.identity.mtime_ns) for v in versions if v.watch == watch
        }
        cursor = t.cursor()
        cursor.row_factory = None
        ordered = sorted(wanted)
        for start in range(0, len(ordered), _CHUNK):
            some = ordered[start : start + _CHUNK]
            marks = ",".join("?" * len(some))
            found += [
                row[0]
                for row in cursor.execute(
                    "SELECT id, path, inode, size, mtime_ns FROM jobs"
                    f" WHERE watch_id = (SELECT id FROM watches WHERE name = ?) AND path IN ({marks})",
                    (watch, *(row[0] for row in some)),
                )
                if row[1:] in wanted
            ]
    return found


def outcomes(t: Transaction, ids: Sequence[int], since: float) -> list[Outcome]:
    """What has become of these jobs, with the copies recorded since ``since`` (seconds since the epoch)."""
    found = []
    for start in range(0, len(ids), _CHUNK):
        some = ids[start : start + _CHUNK]
        for r in t.execute(
            "SELECT jobs.*, watches.name AS watch, count(ledger.id) AS copies, total(delivered_at >= ?) AS fresh,"
            " total(CASE WHEN delivered_at >= ? THEN stored_size END) AS stored"
            " FROM jobs JOIN watches ON watches.id = jobs.watch_id LEFT JOIN ledger ON ledger.job_id = jobs.id"
            f" WHERE jobs.id IN ({','.join('?' * len(some))}) GROUP BY jobs.id",
            (since, since, *some),
        ):
            identity = Identity(r["inode"] % 2**64, r["size"], r["mtime_ns"])
            found.append(
                Outcome(
                    job=r["id"],
                    version=FileVersion(r["watch"], r["path"], identity),
                    state=State(r["state"]),
                    attempts=r["attempts"],
                    retry_at=r["retry_at"],
                    error_code=r["error_code"] or "",
                    error=r["error"] or "",
                    stored=int(r["stored"]),
                    copies=int(r["fresh"]),
                    earlier=r["copies"] - int(r["fresh"]),
                )
            )
    return found


def open_of(t: Transaction, watch: str) -> list[tuple[int, State, bytes]]:
    """The watch's jobs that are not final: number, state and path."""
    # Each query in the words of a partial index. But for the plus, SQLite would rather look through all jobs of the
    # watch (https://www.sqlite.org/optoverview.html, "Disqualifying WHERE Clause Terms Using Unary '+'").
    queued, others = "state = 'queued' AND watch_id", ("state = 'waiting' AND +watch_id", f"{jobs.HELD} AND +watch_id")
    query = " UNION ALL ".join(
        f"SELECT id, state, path FROM jobs WHERE {where} = (SELECT id FROM watches WHERE name = ?)"
        for where in (queued, *others)
    )
    return [(row[0], State(row[1]), row[2]) for row in t.execute(query, [watch] * 3)]


def send_again(t: Transaction, versions: Sequence[FileVersion], now: float) -> int:
    """Queue once more what is done or given up, to be sent although it was; how many."""
    left = json.dumps({AGAIN: now})
    number = 0
    for version in versions:
        v = version.identity
        number += t.execute(
            "UPDATE jobs SET state = 'queued', queued_at = ?, ended_at = NULL, attempts = 0, strikes = 0,"
            " checkpoint = ? WHERE watch_id = (SELECT id FROM watches WHERE name = ?)"
            " AND (path, inode, size, mtime_ns) = (?, ?, ?, ?) AND state IN ('done', 'dropped')",
            (now, left, version.watch, version.path, jobs.signed(v.inode), v.size, v.mtime_ns),
        ).rowcount
    return number


def ratio(t: Transaction, watch: str) -> float | None:
    """How many times smaller the compressed copies of a watch are than their sources; None while there is none."""
    row = t.execute(
        "SELECT sum(size), sum(stored_size) FROM ledger WHERE compression <> 'none' AND replaced_by IS NULL"
        " AND watch_id = (SELECT id FROM watches WHERE name = ?)",
        (watch,),
    ).fetchone()
    return row[0] / row[1] if row[0] and row[1] else None
