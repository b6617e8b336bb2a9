"""The copies that the ledger says are at destinations: which, when each was last verified, which of them to restore
(PRODUCT I6, I7)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from quaymaster.model import FileVersion
from quaymaster.store import jobs, ledger
from quaymaster.store.db import Transaction
from quaymaster.store.ledger import Delivery

_MARKS = 500
"""Values bound in one statement."""
_FROM = "FROM ledger JOIN watches ON watches.id = ledger.watch_id LEFT JOIN verified ON verified.ledger_id = ledger.id"
_SELECT = f"""SELECT ledger.*, watches.name AS watch, verified.good_at, verified.level, verified.read_at,
    verified.proven_at {_FROM}"""
_NOW = "ledger.replaced_by IS NULL"

Place = tuple[int, bytes]
"""A file in the ledger: the number of its watch, and its path. Their order is that of the ledger's index."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which deliveries: every given condition holds."""

    destination: str = ""
    watch: str = ""
    paths: tuple[tuple[str, bytes], ...] = ()
    """Any of these (watch, path): a file, a directory with all below it, b"" for the whole watch."""
    prefix: str = ""
    """What the key begins with."""
    until: float = 0.0
    """Delivered at this time or earlier (seconds since the epoch); 0: at any time."""

    @property
    def everything(self) -> bool:
        """Whether all that is at a destination is meant."""
        return not (self.watch or self.paths or self.prefix or self.until)


@dataclass(frozen=True, slots=True)
class Copy:
    """A delivery that nothing has replaced, with what is known of it since."""

    delivery: Delivery
    good_at: float
    """When it was last found as recorded (seconds since the epoch); at first the time of its delivery."""
    level: str
    """How: ``listing``, ``checksum``, ``readback``; empty when only its delivery proved it."""
    read_at: float | None
    """When its bytes were last read to verify them."""
    proven_at: float
    """When its bytes were last read and found right; at first the time of its delivery."""


def destinations(t: Transaction, which: Selection) -> dict[str, tuple[int, int]]:
    """Destination -> number and stored bytes of its copies."""
    where, values = _where(which)
    return {
        row[0]: (row[1], row[2])
        for row in t.execute(
            f"SELECT destination, count(*), sum(stored_size) {_FROM} WHERE {_NOW} AND {where} GROUP BY destination",
            values,
        )
    }


def last(t: Transaction) -> int:
    """The number of the newest delivery; 0 when there is none."""
    return int(t.execute("SELECT coalesce(max(id), 0) FROM ledger").fetchone()[0])


def page(t: Transaction, which: Selection, after: int, upto: int, limit: int) -> list[Copy]:
    """Up to ``limit`` copies with numbers above ``after`` and at most ``upto``, in their order."""
    where, values = _where(which)
    return _copies(
        t.execute(
            f"{_SELECT} WHERE {_NOW} AND ledger.id > ? AND ledger.id <= ? AND {where} ORDER BY ledger.id LIMIT ?",
            (after, upto, *values, limit),
        )
    )


def by_key(t: Transaction, destination: str, keys: Sequence[str]) -> dict[str, Copy]:
    """The copies under these keys (as many as the caller likes)."""
    found: dict[str, Copy] = {}
    for start in range(0, len(keys), _MARKS):
        some = keys[start : start + _MARKS]
        rows = t.execute(
            f"{_SELECT} WHERE {_NOW} AND destination = ? AND key IN ({_marks(some)})", (destination, *some)
        )
        found |= {copy.delivery.proof.stored.key: copy for copy in _copies(rows)}
    return found


def by_number(t: Transaction, numbers: Sequence[int]) -> list[Copy]:
    """Those of these (at most 500) that are still copies, in the order given."""
    rows = t.execute(f"{_SELECT} WHERE {_NOW} AND ledger.id IN ({_marks(numbers)})", tuple(numbers))
    found = {copy.delivery.id: copy for copy in _copies(rows)}
    return [found[number] for number in numbers if number in found]


def reading_order(t: Transaction, which: Selection, upto: int) -> array[int]:
    """The numbers of the copies, those first whose bytes were read the longest ago or never."""
    where, values = _where(which)
    rows = t.execute(
        f"SELECT ledger.id {_FROM} WHERE {_NOW} AND ledger.id <= ? AND {where}"
        " ORDER BY coalesce(verified.read_at, 0), ledger.id",
        (upto, *values),
    )
    return array("q", (row[0] for row in rows))


def mark(t: Transaction, good: Sequence[int], read: Sequence[int], level: str, now: float) -> None:
    """Remember which copies were found as recorded, and of which the bytes were read."""
    proven = set(good) & set(read)
    t.executemany(
        "INSERT INTO verified (ledger_id, good_at, level) SELECT id, ?, ? FROM ledger WHERE id = ?"
        " ON CONFLICT (ledger_id) DO UPDATE SET good_at = excluded.good_at, level = excluded.level",
        [(now, level, number) for number in good],
    )
    t.executemany(
        "INSERT INTO verified (ledger_id, read_at, proven_at) SELECT id, ?, ? FROM ledger WHERE id = ?"
        " ON CONFLICT (ledger_id) DO UPDATE SET read_at = excluded.read_at,"
        " proven_at = coalesce(excluded.proven_at, proven_at)",
        [(now, now if number in proven else None, number) for number in read],
    )


def under_way(t: Transaction, watch: str, path: bytes) -> bool:
    """Whether a job of this file has begun and is not at its end: it may have put another object there already."""
    row = t.execute(
        "SELECT EXISTS (SELECT 1 FROM jobs JOIN watches ON watches.id = jobs.watch_id WHERE watches.name = ?"
        " AND path = ? AND state IN ('queued', 'running', 'waiting') AND started_at IS NOT NULL)",
        (watch, path),
    ).fetchone()
    return bool(row[0])


def files(t: Transaction, which: Selection, after: Place | None, limit: int) -> list[tuple[Place, list[Delivery]]]:
    """Up to ``limit`` files behind ``after``, each with the deliveries of its newest version in the selection, the
    newest first. A version is as old as its first delivery: a slow destination gets it later."""
    where, values = _where(which)
    beyond = after or (0, b"")
    places = t.execute(
        f"SELECT DISTINCT ledger.watch_id, ledger.path {_FROM} WHERE (ledger.watch_id, ledger.path) > (?, ?)"
        f" AND {where} ORDER BY ledger.watch_id, ledger.path LIMIT ?",
        (*beyond, *values, limit),
    ).fetchall()
    found = []
    for number, path in places:
        rows = t.execute(
            f"{_SELECT} WHERE ledger.watch_id = ? AND ledger.path = ? AND {where} ORDER BY ledger.id DESC",
            (number, path, *values),
        )
        deliveries = ledger.from_rows(rows)
        first: dict[int, float] = {}
        for delivery in deliveries:
            proof = delivery.proof
            first[proof.job] = min(first.get(proof.job, proof.delivered_at), proof.delivered_at)
        newest = max(first, key=lambda job: (first[job], job))
        found.append(((number, path), [d for d in deliveries if d.proof.job == newest]))
    return found


def extent(t: Transaction, which: Selection) -> tuple[int, int]:
    """How many files :func:`files` tells of, and their bytes, a newer version's where there are several."""
    where, values = _where(which)
    # Beside max() stands the size of the row that has it (SQLite, "Bare columns in an aggregate query").
    newest = f"SELECT max(ledger.id), size {_FROM} WHERE {where} GROUP BY ledger.watch_id, ledger.path"
    found = t.execute(f"SELECT count(*), coalesce(sum(size), 0) FROM ({newest})", values).fetchone()
    return int(found[0]), int(found[1])


def expect(t: Transaction, version: FileVersion, now: float) -> int:
    """Let a file that is about to be brought back count as delivered, so that it is not taken again. The number of its
    job; a job that is open already stays as it is."""
    v = version.identity
    row = (jobs.watch_id(t, version.watch), version.path, jobs.signed(v.inode), v.size, v.mtime_ns)
    t.execute(
        "INSERT INTO jobs (watch_id, path, inode, size, mtime_ns, state, queued_at, ended_at)"
        " VALUES (?, ?, ?, ?, ?, 'done', ?, ?) ON CONFLICT (watch_id, path, inode, size, mtime_ns)"
        " DO UPDATE SET state = 'done', ended_at = excluded.ended_at WHERE state IN ('superseded', 'dropped')",
        (*row, now, now),
    )
    found = t.execute(
        "SELECT id FROM jobs WHERE watch_id = ? AND path = ? AND inode = ? AND size = ? AND mtime_ns = ?", row
    ).fetchone()
    return int(found[0])


def _copies(rows: Iterable[Any]) -> list[Copy]:
    kept = list(rows)
    return [
        Copy(
            delivery,
            row["good_at"] or delivery.proof.delivered_at,
            row["level"] or "",
            row["read_at"],
            row["proven_at"] or delivery.proof.delivered_at,
        )
        for row, delivery in zip(kept, ledger.from_rows(kept), strict=True)
    ]


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def _where(which: Selection) -> tuple[str, list[Any]]:
    parts: list[str] = ["1"]
    values: list[Any] = []
    for column, value in (("ledger.destination", which.destination), ("watches.name", which.watch)):
        if value:
            parts.append(f"{column} = ?")
            values.append(value)
    if which.prefix:
        parts.append("substr(ledger.key, 1, ?) = ?")
        values += [len(which.prefix), which.prefix]
    if which.until:
        parts.append("ledger.delivered_at <= ?")
        values.append(which.until)
    if which.paths:
        any_of = []
        for watch, path in which.paths:
            any_of.append("(watches.name = ?" + (" AND (path = ? OR (path > ? AND path < ?)))" if path else ")"))
            # Everything below a directory sorts between "dir/" and "dir0" ("0" follows "/").
            values += [watch, path, path + b"/", path + b"0"] if path else [watch]
        parts.append(f"({' OR '.join(any_of)})")
    return " AND ".join(parts), values
