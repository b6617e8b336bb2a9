"""Units: directories that count as delivered only when they are whole (PRODUCT W5).

    open -> complete -> published      an operator may close one: abandoned
      ^________|___________|           by something new in it: a higher generation, once a manifest may be visible

A unit's files have no rows of their own here: they are the jobs and deliveries whose path lies below it. Its manifests
are files of the watch's own (:func:`~quaymaster.model.published_as`), with jobs like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from quaymaster.model import FileVersion, Job, State, published_as
from quaymaster.store import custody, jobs, ledger
from quaymaster.store.db import Database, Transaction
from quaymaster.store.ledger import Delivery

_SELECT = "SELECT units.*, watches.name AS watch FROM units JOIN watches ON watches.id = units.watch_id"
_BELOW = "watch_id = (SELECT id FROM watches WHERE name = ?) AND path > ? AND path < ?"
_PAGE = 2000
"""Files of a unit in memory at once."""


class UnitState(StrEnum):
    """The same words are in the CHECK constraint of the units table."""

    OPEN = "open"
    COMPLETE = "complete"
    """Everything that belongs to it was seen; its files or manifests are still on their way."""
    PUBLISHED = "published"
    ABANDONED = "abandoned"
    """Given up by an operator: its files travel, but there is no manifest."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One row, as it stood when it was read. Times are seconds since the epoch."""

    id: int
    watch: str
    path: bytes
    generation: int
    state: UnitState
    changes: int
    released: bool
    publishing: bool
    opened_at: float
    changed_at: float
    completed_at: float | None
    published_at: float | None
    complete_by: str
    forced_by: str
    files: int
    bytes: int
    missing: int
    digest: str
    why: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a manifest says of a whole unit."""

    files: int
    bytes: int
    missing: int
    digest: str


class Units:
    """The units of one store. Every writing method is durable when it returns. Thread-safe."""

    def __init__(self, db: Database, clock: Callable[[], float]) -> None:
        self._db, self._clock = db, clock

    # -- what there is --

    def find(self, watch: str = "", states: Sequence[UnitState] = ()) -> list[Unit]:
        """In the order of their paths."""
        where, values = ["1"], list[Any]()
        if watch:
            where.append("watches.name = ?")
            values.append(watch)
        if states:
            where.append(f"units.state IN ({','.join('?' * len(states))})")
            values += [state.value for state in states]
        with self._db.read() as t:
            rows = t.execute(f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY watches.name, units.path", values)
            return [_unit(row) for row in rows]

    def unfinished(self, watch: str) -> list[Unit]:
        """Those of a watch that are not at their end, or were published without some of their files."""
        with self._db.read() as t:
            rows = t.execute(
                f"{_SELECT} WHERE watches.name = ? AND (units.state IN ('open', 'complete')"
                " OR units.state = 'published' AND units.missing > 0) ORDER BY units.path",
                (watch,),
            )
            return [_unit(row) for row in rows]

    def counts(self) -> dict[str, dict[UnitState, int]]:
        """For each watch and state: how many."""
        found: dict[str, dict[UnitState, int]] = {}
        with self._db.read() as t:
            for name, state, number in t.execute(
                "SELECT watches.name, units.state, count(*) FROM units JOIN watches ON watches.id = units.watch_id"
                " GROUP BY units.watch_id, units.state"
            ):
                found.setdefault(name, {})[UnitState(state)] = number
        return found

    def get(self, watch: str, path: bytes) -> Unit | None:
        with self._db.read() as t:
            return _get(t, watch, path)

    def delivered(self, unit: Unit, destination: str) -> Iterator[Delivery]:
        """The newest copy of each of its files at a destination, in the order of their paths as bytes."""
        query = (
            "SELECT ledger.*, watches.name AS watch FROM ledger INDEXED BY ledger_path"
            f" JOIN watches ON watches.id = ledger.watch_id WHERE ledger.{_BELOW} AND destination = ?"
            " AND replaced_by IS NULL ORDER BY path, ledger.id DESC"
        )
        last = None
        for row in self._rows(unit, query, destination):
            if row["path"] != last:
                yield from ledger.from_rows([row])
            last = row["path"]

    def undelivered(self, unit: Unit, destinations: int) -> Iterator[tuple[bytes, State, str]]:
        """Path, state and error of each of its jobs that is not at so many destinations yet, nor superseded, in the
        order of their paths. One that only waits for what becomes of its source is none of them."""
        query = (
            f"SELECT path, state, error FROM jobs WHERE {_BELOW} AND state NOT IN ('done', 'superseded')"
            " AND (SELECT count(*) FROM ledger WHERE job_id = jobs.id) < ? ORDER BY path"
        )
        for row in self._rows(unit, query, destinations):
            yield bytes(row["path"]), State(row["state"]), row["error"] or ""

    def gone(self, unit: Unit) -> Iterator[bytes]:
        """Paths of its files whose sources the service removed or moved away after their delivery."""
        query = f"SELECT DISTINCT path FROM ledger WHERE {_BELOW} AND disposal NOT IN ('', 'kept') ORDER BY path"
        for row in self._rows(unit, query):
            yield bytes(row["path"])

    def _rows(self, unit: Unit, query: str, *values: object) -> Iterator[Any]:
        """Rows of a query by path, a page at a time, so that no transaction lasts and nothing is held in memory. Of one
        path there are fewer than a page."""
        after = unit.path + b"/"
        while True:
            with self._db.read() as t:
                rows = t.execute(f"{query} LIMIT {_PAGE}", (unit.watch, after, unit.path + b"0", *values)).fetchall()
            yield from rows
            if len(rows) < _PAGE:
                return
            after = rows[-1]["path"]

    # -- what becomes of them --

    def opened(self, watch: str, path: bytes) -> Unit:
        """A directory of it is there: the unit, begun now if it was not known."""
        known = self.get(watch, path)
        if known is not None:
            return known
        now = self._clock()

        def act(t: Transaction) -> Unit:
            _insert(t, watch, path, now)
            found = _get(t, watch, path)
            assert found is not None
            return found

        return self._db.write(act)

    def enqueue(self, versions: Sequence[FileVersion], unit_of: Callable[[FileVersion], bytes | None]) -> int:
        """Make jobs of the versions that have none, as Store.enqueue does; a unit that gets something new is open
        again. How many were made."""

        def act(t: Transaction) -> int:
            now, made = self._clock(), 0
            of_units: dict[tuple[str, bytes | None], list[FileVersion]] = {}
            for version in versions:
                of_units.setdefault((version.watch, unit_of(version)), []).append(version)
            for (watch, path), some in of_units.items():
                new = jobs.enqueue(t, some, now)
                made += new
                if path is not None and new:
                    touch(t, watch, path, now, f"{new:,} new")
            return made

        return self._db.write(act)

    def touch(self, watch: str, path: bytes, why: str) -> None:
        """Something of it changed that no new job tells of."""
        self._db.write(lambda t: touch(t, watch, path, self._clock(), why))

    def wait(self, unit: Unit, why: str) -> None:
        """Say what it waits for."""
        if why != unit.why:
            self._db.write(lambda t: t.execute("UPDATE units SET why = ? WHERE id = ?", (why, unit.id)))

    def release(self, unit: Unit) -> None:
        """Its files may travel."""
        self._db.write(lambda t: t.execute("UPDATE units SET released = 1 WHERE id = ?", (unit.id,)))

    def complete(self, unit: Unit, by: str) -> bool:
        """Everything that belongs to it was seen. False when something came meanwhile."""

        def act(t: Transaction) -> bool:
            now = self._clock()
            done = t.execute(
                "UPDATE units SET state = 'complete', completed_at = ?, complete_by = ?, released = 1, why = ''"
                " WHERE id = ? AND state = 'open' AND changes = ?",
                (now, by, unit.id, unit.changes),
            )
            if done.rowcount:
                _note(t, "unit-complete", now, unit, {"complete_by": by, "forced_by": unit.forced_by})
            return bool(done.rowcount)

        return self._db.write(act)

    def follow(self, unit: Unit, generation: int) -> None:
        """It was published before, in a life that this store knows nothing of: its next generation is this one."""
        self._db.write(
            lambda t: t.execute("UPDATE units SET generation = max(generation, ?) WHERE id = ?", (generation, unit.id))
        )

    def publish(self, unit: Unit, versions: Sequence[FileVersion]) -> bool:
        """Its manifests are about to become visible: queue ``versions``. False when something came meanwhile."""

        def act(t: Transaction) -> bool:
            done = t.execute(
                "UPDATE units SET publishing = 1, why = '' WHERE id = ? AND state = 'complete' AND changes = ?",
                (unit.id, unit.changes),
            )
            if done.rowcount:
                jobs.enqueue(t, versions, self._clock())
            return bool(done.rowcount)

        return self._db.write(act)

    def published(self, unit: Unit, what: Contents, manifests: Mapping[str, Mapping[str, Any]]) -> bool:
        """Its manifests are at every destination: of each ``manifests`` says key, size and SHA-256."""

        def act(t: Transaction) -> bool:
            now = self._clock()
            done = t.execute(
                "UPDATE units SET state = 'published', published_at = ?, files = ?, bytes = ?, missing = ?, digest = ?,"
                " why = '' WHERE id = ? AND state = 'complete' AND changes = ?",
                (now, what.files, what.bytes, what.missing, what.digest, unit.id, unit.changes),
            )
            if done.rowcount:
                said = {"files": what.files, "bytes": what.bytes, "missing": what.missing, "digest": what.digest}
                _note(t, "unit-published", now, unit, {**said, "forced_by": unit.forced_by, "manifests": manifests})
                t.execute("UPDATE units SET published_entry = ? WHERE id = ?", (custody.head_seq(t), unit.id))
                # Those that waited for it (await_published).
                t.execute(
                    f"UPDATE jobs SET retry_at = ? WHERE {_BELOW} AND state = 'waiting' AND error_code IS NULL",
                    (now, unit.watch, unit.path + b"/", unit.path + b"0"),
                )
            return bool(done.rowcount)

        return self._db.write(act)

    def await_published(self, job: Job, path: bytes, until: float) -> bool:
        """Whether a delivered job must wait, since the unit that it is in is not published. It then runs again when
        that is, at ``until`` at the latest, without counting a failure."""

        def act(t: Transaction) -> bool:
            unit = _get(t, job.version.watch, path)
            if unit is not None and unit.state is UnitState.PUBLISHED:
                return False
            t.execute(
                "UPDATE jobs SET state = 'waiting', stage = NULL, retry_at = ?, error_code = NULL, error = ?"
                " WHERE id = ?",
                (until, "its source waits until its unit is published", job.id),
            )
            return True

        return self._db.write(act)

    # -- operators --

    def force(self, unit: Unit, by: str) -> None:
        """Publish what there is of it."""

        def act(t: Transaction) -> None:
            now = self._clock()
            t.execute(
                "UPDATE units SET forced_by = ?, changed_at = ?,"
                " state = CASE state WHEN 'abandoned' THEN 'open' ELSE state END WHERE id = ?",
                (by, now, unit.id),
            )
            _note(t, "unit-forced", now, unit, {"by": by})

        self._db.write(act)

    def abandon(self, unit: Unit, by: str, why: str = "") -> None:
        """Close it without a manifest."""

        def act(t: Transaction) -> None:
            now = self._clock()
            t.execute(
                "UPDATE units SET state = 'abandoned', forced_by = '', why = ?, generation = generation + publishing,"
                " publishing = 0, changes = changes + 1 WHERE id = ?",
                (why, unit.id),
            )
            _withdraw(t, unit, now)
            _note(t, "unit-abandoned", now, unit, {"by": by, "why": why})

        self._db.write(act)


def entry_of(t: Transaction, watch: str, path: bytes) -> int:
    """The custody entry that says that a unit was published, in whatever generation last; 0 when none does."""
    query = (
        "SELECT published_entry FROM units JOIN watches ON watches.id = watch_id WHERE watches.name = ? AND path = ?"
    )
    row = t.execute(query, (watch, path)).fetchone()
    return int(row[0]) if row else 0


def touch(t: Transaction, watch: str, path: bytes, now: float, why: str) -> None:
    """Something new came into a unit: it is begun, or open again."""
    unit = _get(t, watch, path)
    if unit is None:
        _insert(t, watch, path, now)
        return
    t.execute("UPDATE units SET changes = changes + 1, changed_at = ? WHERE id = ?", (now, unit.id))
    if unit.state not in (UnitState.COMPLETE, UnitState.PUBLISHED):
        return
    t.execute(
        "UPDATE units SET state = 'open', generation = generation + publishing, publishing = 0, forced_by = '',"
        " completed_at = NULL, published_at = NULL, opened_at = ?, why = '' WHERE id = ?",
        (now, unit.id),
    )
    _withdraw(t, unit, now)
    _note(t, "unit-reopened", now, unit, {"next_generation": unit.generation + unit.publishing, "why": why})


def _withdraw(t: Transaction, unit: Unit, now: float) -> None:
    """Its manifests that are not on their way yet stay where they are."""
    lanes, end = published_as(unit.watch, ""), published_as(unit.watch, "\U0010ffff")
    t.execute(
        "UPDATE jobs SET state = 'superseded', retry_at = NULL, stage = NULL, ended_at = ? WHERE path > ? AND path < ?"
        " AND state IN ('queued', 'waiting', 'parked') AND watch_id IN"
        " (SELECT id FROM watches WHERE name >= ? AND name < ?)",
        (now, unit.path + b"/", unit.path + b"0", lanes, end),
    )


def _insert(t: Transaction, watch: str, path: bytes, now: float) -> None:
    t.execute(
        "INSERT OR IGNORE INTO units (watch_id, path, opened_at, changed_at) VALUES (?, ?, ?, ?)",
        (jobs.watch_id(t, watch), path, now, now),
    )


def _get(t: Transaction, watch: str, path: bytes) -> Unit | None:
    row = t.execute(f"{_SELECT} WHERE watches.name = ? AND units.path = ?", (watch, path)).fetchone()
    return None if row is None else _unit(row)


def _unit(row: Any) -> Unit:
    return Unit(
        **{name: row[name] for name in Unit.__slots__ if name not in ("state", "released", "publishing")},
        state=UnitState(row["state"]),
        released=bool(row["released"]),
        publishing=bool(row["publishing"]),
    )


def _note(t: Transaction, kind: str, now: float, unit: Unit, details: Mapping[str, Any]) -> None:
    said = {"generation": unit.generation, **{name: value for name, value in details.items() if value != ""}}
    custody.append(t, kind, now, watch=unit.watch, path=unit.path, details=said)
