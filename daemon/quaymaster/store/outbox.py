"""The durable outbox: what is to be told to whom (PRODUCT O4).

Everything worth telling stands in the custody log already, in order, written with what it tells of. A hook is a cursor
over that log; of what lies behind the cursor at most :data:`WINDOW` events are in the outbox, the others stay where
they are. So transfers pay nothing for hooks, and a receiver that is down for a day costs no more than one that is not.

    custody log  -> feed ->  outbox  -> due, sent ->  settle: confirmed, to be tried again, or parked
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quaymaster.errors import IntegrityError
from quaymaster.model import watch_of
from quaymaster.store import custody
from quaymaster.store.db import Database, Transaction

WINDOW = 1000
"""Unconfirmed events of one hook that are in the outbox at most."""
LONGEST_WAIT = 15 * 60.0
"""Seconds until a next try at most."""
DOWN = 8
"""Failures in a row after which it is the receiver that fails, not this or that event."""
_STRIDE = 2000
"""Entries of the custody log that are looked at in one go."""
_IDLE_STRIDE = 5000
"""Entries that nobody wanted, after which the cursor is written down all the same."""

_EVENTS = {
    "delivered": "delivered",
    "parked": "parked",
    "quarantined": "parked",
    "unit-published": "unit-complete",
    "outage": "outage",
    "recovered": "recovered",
    "integrity-failure": "integrity-failure",
    "released": "released",
}
"""Kind of a custody entry -> event."""
EVENTS = tuple(dict.fromkeys(_EVENTS.values()))


@dataclass(frozen=True, slots=True)
class Wants:
    """What a hook is to be told."""

    on: Collection[str]
    watches: Collection[str] = ()
    """Only what has to do with these; empty: everything."""

    def events(self, fields: Mapping[str, Any]) -> list[str]:
        """Which of them a custody entry is: none, one, or for what is parked because its bytes differ two."""
        name, kind = str(fields.get("watch", "")), str(fields.get("kind"))
        if self.watches and watch_of(name) not in self.watches:
            return []
        if kind == "delivered" and name != watch_of(name):
            return []  # a list of a unit: "unit-complete" tells of it
        found = [_EVENTS[kind]] if kind in _EVENTS else []
        if kind in ("parked", "quarantined", "waiting") and fields.get("code") == IntegrityError.code:
            found.append("integrity-failure")
        return [event for event in found if event in self.on]

    def record(self) -> str:
        return json.dumps({"on": sorted(self.on), "watches": sorted(self.watches)})

    @classmethod
    def read(cls, text: str) -> Wants:
        said = json.loads(text)
        return cls(frozenset(said["on"]), frozenset(said["watches"]))


def subject(fields: Mapping[str, Any]) -> str:
    """What an entry is about: a file of a watch, a unit, a watch, a destination."""
    if unit := fields.get("unit"):
        return f"unit {fields.get('watch', '')} {unit}"
    if path := fields.get("path_hex"):
        return f"file {fields.get('watch', '')} {path}"
    return " ".join(["part", *(str(fields.get(name, "")) for name in ("watch", "destination", "mirror"))])


@dataclass(frozen=True, slots=True)
class Message:
    """One event on its way to one hook."""

    id: int
    hook: str
    entry: int
    """The number of the custody entry; 0 for a test."""
    event: str
    since: float
    """When it happened."""
    fields: Mapping[str, Any] = field(compare=False)
    """What the custody log says."""
    attempts: int = 0
    retry_at: float | None = None
    error: str = ""
    parked_at: float | None = None
    job: int | None = None

    @property
    def test(self) -> bool:
        return self.entry == 0


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of one try: an empty ``error`` confirms it. Else it is tried again at ``retry_at``, or parked when that
    is None."""

    message: Message
    at: float
    error: str = ""
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How one hook stands."""

    name: str
    wants: Wants
    waiting: int
    """Events in the outbox that are not parked."""
    parked: int
    behind: int
    """Entries of the custody log that wait until there is room for their events."""
    oldest: float | None
    """When the oldest event happened that is neither confirmed nor parked."""
    refused: int
    """Of ``waiting``, those that were tried without success."""
    refused_since: float | None
    """When the oldest of these happened."""
    next_try: float | None
    confirmed: int
    failures: int
    failing_since: float | None
    last_success: float | None
    last_error: str
    last_error_at: float | None


class Outbox:
    """Thread-safe; several processes may have it open, of which one sends."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._db, self._clock = database, clock

    def register(self, wanted: Mapping[str, Wants]) -> dict[str, int]:
        """These are the hooks from now on. A new one begins at the head of the custody log. Returns those that are no
        more, with the number of events that they were not told."""

        def act(t: Transaction) -> dict[str, int]:
            head = custody.head_seq(t)
            known = {row["name"]: row["wants"] for row in t.execute("SELECT name, wants FROM hooks")}
            for name, wants in wanted.items():
                if name not in known:
                    values = (name, wants.record(), head, head)
                    t.execute("INSERT INTO hooks (name, wants, since, cursor) VALUES (?, ?, ?, ?)", values)
                elif known[name] != wants.record():
                    t.execute("UPDATE hooks SET wants = ? WHERE name = ?", (wants.record(), name))
            return {name: self._remove(t, name) for name in known.keys() - wanted.keys()}

        with self._db.read() as t:
            known = {row["name"]: row["wants"] for row in t.execute("SELECT name, wants FROM hooks")}
        if known == {name: wants.record() for name, wants in wanted.items()}:
            return {}
        return self._db.write(act)

    def _remove(self, t: Transaction, name: str) -> int:
        lost = t.execute("DELETE FROM outbox WHERE hook = ? AND entry > 0", (name,)).rowcount
        t.execute("DELETE FROM outbox WHERE hook = ?", (name,))
        t.execute("DELETE FROM hooks WHERE name = ?", (name,))
        custody.append(t, "hook-removed", self._clock(), details={"hook": name, "untold": lost})
        return lost

    # -- from the log into the outbox --

    def feed(self, hook: str, after: int = 0) -> tuple[int, bool]:
        """Take what the hook is to be told from the custody log, behind its cursor or, if that is further, behind entry
        ``after``. Returns how far it has come, and whether there may be more that there is room for."""
        with self._db.read() as t:
            row = t.execute("SELECT wants, cursor FROM hooks WHERE name = ?", (hook,)).fetchone()
            if row is None:
                return after, False
            wants, cursor = Wants.read(row["wants"]), max(row["cursor"], after)
            if custody.head_seq(t) <= cursor:
                return cursor, False
            room = WINDOW - _waiting(t, hook)
            found, reached = _taken(t, wants, cursor, room)
        if found or reached - row["cursor"] >= _IDLE_STRIDE:
            self._db.write(lambda t: _put(t, hook, found, reached))
        return reached, len(found) < room and reached - cursor == _STRIDE

    # -- sending --

    def due(self, hook: str, limit: int, now: float, but: Collection[int] = ()) -> list[Message]:
        """Up to ``limit`` events that may be sent now, besides those with the numbers in ``but``: tests first, and of
        each subject only the oldest."""
        query = (
            # A try that is further off than any was set by a clock that has been set back since.
            f"{_SELECT} WHERE outbox.hook = ? AND parked_at IS NULL AND ifnull(retry_at, 0) NOT BETWEEN ? AND ?"
            " AND NOT EXISTS (SELECT 1 FROM outbox AS older WHERE older.hook = outbox.hook AND older.parked_at IS NULL"
            " AND older.subject = outbox.subject AND older.id < outbox.id)"
            f" AND outbox.id NOT IN ({','.join('?' * len(but))}) ORDER BY entry > 0, outbox.id LIMIT ?"
        )
        with self._db.read() as t:
            return [
                _message(row)
                for row in t.execute(query, (hook, math.nextafter(now, math.inf), now + LONGEST_WAIT, *but, limit))
            ]

    def failures(self, hook: str) -> int:
        """How often it failed since it last took something, or since an operator wanted it to be tried."""
        with self._db.read() as t:
            row = t.execute("SELECT failures FROM hooks WHERE name = ?", (hook,)).fetchone()
        return row["failures"] if row else 0

    def settle(self, hook: str, outcomes: Sequence[Settled]) -> None:
        """Record what came of these tries, in one commit."""

        def act(t: Transaction) -> None:
            for outcome in outcomes:
                _settle(t, hook, outcome)

        self._db.write(act)

    # -- whoever waits for it --

    def confirmed(self, job: int, hook: str) -> bool:
        """Whether everything that the hook is to be told of a job was told and confirmed. What does not concern it, or
        happened before it was there, counts as told; what is parked does not."""
        with self._db.read() as t:
            return confirmed(t, job, hook)

    # -- operators --

    def standing(self) -> list[Standing]:
        """Each hook of the running service, or of the one that ran last."""
        with self._db.read() as t:
            head = custody.head_seq(t)
            return [_standing(t, row, head) for row in t.execute("SELECT * FROM hooks ORDER BY name").fetchall()]

    def messages(self, hook: str, limit: int = 100) -> list[Message]:
        """What it was not told yet, as far as that is in the outbox; what is parked or failed first."""
        query = f"{_SELECT} WHERE outbox.hook = ? AND entry > 0 ORDER BY parked_at IS NULL, attempts = 0, outbox.id"
        with self._db.read() as t:
            return [_message(row) for row in t.execute(f"{query} LIMIT ?", (hook, limit))]

    def retry(self, hook: str, by: str) -> int:
        """Try everything that failed again now, parked events too; how many."""

        def act(t: Transaction) -> int:
            number = t.execute(
                "UPDATE outbox SET retry_at = NULL, parked_at = NULL WHERE hook = ? AND entry > 0"
                " AND (retry_at IS NOT NULL OR parked_at IS NOT NULL)",
                (hook,),
            ).rowcount
            t.execute("UPDATE hooks SET failures = 0 WHERE name = ?", (hook,))
            if number:
                custody.append(t, "hook-retried", self._clock(), details={"hook": hook, "events": number, "by": by})
            return number

        return self._db.write(act)

    def skip(self, hook: str, ids: Sequence[int], by: str) -> list[int]:
        """Never tell it these; the numbers of those that there were. Counts as confirmed for whoever waits for it."""

        def act(t: Transaction) -> list[int]:
            done = []
            for number in ids:
                query = f"{_SELECT} WHERE outbox.id = ? AND outbox.hook = ? AND entry > 0"
                row = t.execute(query, (number, hook)).fetchone()
                if row is not None:
                    message = _message(row)
                    t.execute("DELETE FROM outbox WHERE id = ?", (number,))
                    said = {"hook": hook, "event": message.event, "entry": message.entry, "by": by}
                    custody.append(t, "hook-skipped", self._clock(), job=message.job or 0, details=said)
                    _wake_for(t, message)
                    done.append(number)
            return done

        return self._db.write(act)

    def test(self, hook: str, event: str, fields: Mapping[str, Any]) -> int:
        """Have a test sent at once by the service; its number, by which :meth:`tested` tells what came of it."""

        def act(t: Transaction) -> int:
            values = (hook, event, self._clock(), json.dumps(fields))
            row = t.execute(
                "INSERT INTO outbox (hook, entry, event, subject, since, body)"
                " VALUES (?, 0, ?, 'test ' || hex(randomblob(8)), ?, ?) RETURNING id",
                values,
            )
            number = int(row.fetchone()[0])
            # Numbers come again once nothing has them: what an earlier test came to is not the answer to this one.
            earlier = "UPDATE hooks SET tested = '{}' WHERE name = ? AND json_extract(tested, '$.id') = ?"
            t.execute(earlier, (hook, number))
            return number

        return self._db.write(act)

    def tested(self, hook: str, number: int) -> str | None:
        """The error of that test, empty for none; None while nothing came of it."""
        with self._db.read() as t:
            row = t.execute("SELECT tested FROM hooks WHERE name = ?", (hook,)).fetchone()
        said = json.loads(row["tested"]) if row else {}
        return str(said["error"]) if said.get("id") == number else None

    def withdraw_test(self, number: int) -> None:
        self._db.write(lambda t: t.execute("DELETE FROM outbox WHERE id = ? AND entry = 0", (number,)))


_SELECT = (
    "SELECT outbox.*, coalesce(outbox.body, custody.body) AS said FROM outbox"
    " LEFT JOIN custody ON custody.seq = outbox.entry"
)


def _message(row: Any) -> Message:
    return Message(
        row["id"], row["hook"], row["entry"], row["event"], row["since"], json.loads(row["said"] or "{}"),
        row["attempts"], row["retry_at"], row["error"], row["parked_at"], row["job_id"],
    )  # fmt: skip


def _waiting(t: Transaction, hook: str) -> int:
    row = t.execute("SELECT count(*) FROM outbox WHERE hook = ? AND parked_at IS NULL AND entry > 0", (hook,))
    return int(row.fetchone()[0])


_Row = tuple[int, str, str, int | None, float]
"""entry, event, subject, job, when"""


def _taken(t: Transaction, wants: Wants, after: int, room: int) -> tuple[list[_Row], int]:
    """What follows entry ``after`` and is wanted, and how far was looked: until there is no room for more, or
    _STRIDE entries."""
    found: list[_Row] = []
    reached = after
    for entry in custody.entries(t, after + 1, after + _STRIDE):
        fields = entry.fields
        events = wants.events(fields)
        if len(found) + len(events) > room:
            break
        about = subject(fields) if events else ""
        found += [(entry.seq, event, about, fields.get("job"), fields["at"]) for event in events]
        reached = entry.seq
    return found, reached


def _put(t: Transaction, hook: str, rows: Iterable[_Row], cursor: int) -> None:
    """Into the outbox, with the cursor behind them; nothing when the hook is no more, or has come as far already."""
    moved = t.execute("UPDATE hooks SET cursor = ? WHERE name = ? AND cursor < ?", (cursor, hook, cursor))
    if moved.rowcount:
        t.executemany(
            "INSERT INTO outbox (hook, entry, event, subject, job_id, since) VALUES (?, ?, ?, ?, ?, ?)",
            [(hook, *row) for row in rows],
        )


def _settle(t: Transaction, hook: str, outcome: Settled) -> None:
    message, at = outcome.message, outcome.at
    if message.test:
        t.execute("DELETE FROM outbox WHERE id = ?", (message.id,))
        said = json.dumps({"id": message.id, "at": at, "error": outcome.error})
        t.execute("UPDATE hooks SET tested = ? WHERE name = ?", (said, hook))
    elif not outcome.error:
        t.execute("DELETE FROM outbox WHERE id = ?", (message.id,))
        if t.execute("SELECT 1 FROM hooks WHERE name = ? AND failures >= ?", (hook, DOWN)).fetchone():
            # The receiver is back: what waits for a later try need not.
            t.execute("UPDATE outbox SET retry_at = NULL WHERE hook = ? AND parked_at IS NULL", (hook,))
        t.execute(
            "UPDATE hooks SET confirmed = confirmed + 1, failures = 0, failing_since = NULL, last_success = ?"
            " WHERE name = ?",
            (at, hook),
        )
        _wake_for(t, message)
    else:
        t.execute(
            "UPDATE outbox SET attempts = attempts + 1, error = ?, retry_at = ?, parked_at = ? WHERE id = ?",
            (outcome.error, outcome.retry_at, at if outcome.retry_at is None else None, message.id),
        )
        t.execute(
            "UPDATE hooks SET failures = failures + 1, failing_since = coalesce(failing_since, ?), last_error = ?,"
            " last_error_at = ? WHERE name = ?",
            (at, outcome.error, at, hook),
        )
        if outcome.retry_at is None:
            given_up = {"hook": hook, "event": message.event, "entry": message.entry, "error": outcome.error}
            custody.append(t, "hook-given-up", at, job=message.job or 0, details=given_up)


def _wake(t: Transaction, job: int | None) -> None:
    """A job that waits for no failure may wait for this."""
    if job:
        t.execute("UPDATE jobs SET retry_at = 0 WHERE id = ? AND state = 'waiting' AND error_code IS NULL", (job,))


def _wake_for(t: Transaction, message: Message) -> None:
    """Of a unit that was told: its files."""
    _wake(t, message.job)
    if message.event == "unit-complete" and (path := bytes.fromhex(str(message.fields.get("path_hex", "")))):
        t.execute(
            "UPDATE jobs SET retry_at = 0 WHERE watch_id = (SELECT id FROM watches WHERE name = ?) AND path > ?"
            " AND path < ? AND state = 'waiting' AND error_code IS NULL",
            (message.fields.get("watch"), path + b"/", path + b"0"),
        )


def confirmed(t: Transaction, job: int, hook: str) -> bool:
    return _confirmed(t, custody.of_job(t, job), hook)


def awaited(t: Transaction, job: int, hooks: Iterable[str], also: int = 0) -> str:
    """The first of these hooks that has not confirmed everything of the job, and custody entry ``also``; empty when all
    have."""
    entries = custody.of_job(t, job)
    if also and (entry := custody.entry(t, also)):
        entries.append(entry)
    return next((hook for hook in hooks if not _confirmed(t, entries, hook)), "")


def _confirmed(t: Transaction, entries: Sequence[custody.Entry], hook: str) -> bool:
    row = t.execute("SELECT wants, cursor, since FROM hooks WHERE name = ?", (hook,)).fetchone()
    if row is None:
        return False
    wants, looked = Wants.read(row["wants"]), max(row["since"], row["cursor"])
    if any(looked < entry.seq and wants.events(entry.fields) for entry in entries):
        return False
    marks = ",".join("?" * len(entries))
    query = f"SELECT 1 FROM outbox WHERE entry IN ({marks}) AND hook = ? AND entry > 0 LIMIT 1"
    return t.execute(query, (*(entry.seq for entry in entries), hook)).fetchone() is None


def _standing(t: Transaction, row: Any, head: int) -> Standing:
    name = row["name"]
    counts = t.execute(
        "SELECT total(parked_at IS NULL) AS waiting, total(parked_at IS NOT NULL) AS parked,"
        " total(parked_at IS NULL AND attempts > 0) AS refused,"
        " min(CASE WHEN parked_at IS NULL THEN since END) AS oldest,"
        " min(CASE WHEN parked_at IS NULL AND attempts > 0 THEN since END) AS refused_since,"
        " min(CASE WHEN parked_at IS NULL THEN ifnull(retry_at, 0) END) AS next FROM outbox"
        " WHERE hook = ? AND entry > 0",
        (name,),
    ).fetchone()
    waiting = int(counts["waiting"])
    behind = max(0, head - row["cursor"]) if waiting >= WINDOW else 0
    return Standing(
        name, Wants.read(row["wants"]), waiting, int(counts["parked"]), behind, counts["oldest"],
        int(counts["refused"]), counts["refused_since"], counts["next"] or None, row["confirmed"], row["failures"],
        row["failing_since"], row["last_success"], row["last_error"], row["last_error_at"],
    )  # fmt: skip
