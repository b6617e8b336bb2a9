"""The durable queue: enqueue, claim, checkpoint, retry, park, recover (PRODUCT Q1-Q5).

    queued -> running -> done
       ^         |-----> waiting   until retry_at, then queued
       |         |-----> parked    until an operator retries or drops it
       |         `-----> superseded by a newer version of the file
       `--- every start of the service puts what was running back

Functions here take a transaction; they are composed and committed by store.Store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quaymaster.model import FileVersion, Identity, Job, Stage, State
from quaymaster.store.db import Transaction
from quaymaster.store.turns import Queue, choose

HELD = "state IN ('running', 'parked')"
"""In the words of the index jobs_held."""

_COLUMNS = """path, inode, size, mtime_ns, state, stage, attempts, strikes, retry_at, error_code, error, queued_at,
    started_at, ended_at, checkpoint"""
_SELECT = f"SELECT jobs.id, watches.name, {_COLUMNS} FROM jobs JOIN watches ON watches.id = jobs.watch_id"
_STATES = {state.value: state for state in State}
_STAGES = {stage.value: stage for stage in Stage}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs: every given condition holds. ``path`` is relative to the watch; a directory means all below it."""

    states: tuple[State, ...] = ()
    watch: str = ""
    path: bytes = b""
    exact: bool = False
    """``path`` alone, with nothing below it."""
    error_code: str = ""
    ids: tuple[int, ...] = ()
    limit: int = 0
    """At most so many, newest first; 0: all."""
    before: int = 0
    """Only jobs with smaller numbers: the next page of a limited list; 0: all."""


@dataclass(frozen=True, slots=True)
class Held:
    """Waiting or parked jobs that have the same error."""

    state: State
    error_code: str
    """Empty: they failed at nothing, but wait out the time between proof and disposal."""
    jobs: int
    bytes: int
    next_retry: float | None
    """When the first of them is tried again."""
    newest: Job


def watch_id(t: Transaction, name: str) -> int:
    """The number of a watch, given to it the first time it is named."""
    row = t.execute("SELECT id FROM watches WHERE name = ?", (name,)).fetchone()
    if row is None:
        return int(t.execute("INSERT INTO watches (name) VALUES (?) RETURNING id", (name,)).fetchone()[0])
    return int(row[0])


def known(t: Transaction, watch: str, versions: Sequence[tuple[bytes, Identity]], *, inodes: bool = True) -> list[bool]:
    """Which of these versions the queue has already had. A superseded one that is back counts as new. Without
    ``inodes`` (the filesystem does not keep their numbers) a version is told by size and mtime alone."""
    row = t.execute("SELECT id FROM watches WHERE name = ?", (watch,)).fetchone()
    if row is None:
        return [False] * len(versions)
    had = _had(t, row[0], {path for path, _ in versions})
    return [
        any(
            state != "superseded"
            and (size, mtime_ns) == (v.size, v.mtime_ns)
            and (inode == signed(v.inode) or not inodes)
            for _, state, inode, size, mtime_ns, _ in had.get(path, ())
        )
        for path, v in versions
    ]


def enqueue(t: Transaction, versions: Iterable[FileVersion], now: float) -> int:
    """Add the versions that are new; returns how many. An older version of the same file that is not running is
    superseded; a running one finds out by itself, because its source is no longer what it read."""
    by_watch: dict[str, dict[tuple[Any, ...], None]] = {}
    for version in versions:
        v = version.identity
        by_watch.setdefault(version.watch, {})[(version.path, signed(v.inode), v.size, v.mtime_ns)] = None
    return sum(_enqueue(t, watch_id(t, name), list(rows), now) for name, rows in by_watch.items())


def _enqueue(t: Transaction, watch: int, rows: list[tuple[Any, ...]], now: float) -> int:
    had = _had(t, watch, {row[0] for row in rows})
    new, back, older = [], [], []
    for row in rows:
        if row[0] not in had:
            new.append((watch, *row, now))
            continue
        same, others = None, []
        for number, state, *version, disposing in had[row[0]]:
            if tuple(version) == row[1:]:
                same = (number, state)
            elif state in ("queued", "waiting", "parked") and not disposing:
                others.append((now, number))
        if same is None:
            new.append((watch, *row, now))
        elif same[1] == "superseded":
            back.append((now, same[0]))
        else:
            continue
        older += others
    t.executemany("INSERT INTO jobs (watch_id, path, inode, size, mtime_ns, queued_at) VALUES (?, ?, ?, ?, ?, ?)", new)
    t.executemany(
        "UPDATE jobs SET state = 'queued', queued_at = ?, ended_at = NULL, attempts = 0, strikes = 0 WHERE id = ?", back
    )
    t.executemany(
        "UPDATE jobs SET state = 'superseded', retry_at = NULL, stage = NULL, ended_at = ? WHERE id = ?", older
    )
    return len(new) + len(back)


def number_of(t: Transaction, version: FileVersion, now: float) -> int:
    """The job of a version, queued now if there was none."""
    v = version.identity
    key = (watch_id(t, version.watch), version.path, signed(v.inode), v.size, v.mtime_ns)
    t.execute(
        "INSERT OR IGNORE INTO jobs (watch_id, path, inode, size, mtime_ns, queued_at) VALUES (?, ?, ?, ?, ?, ?)",
        (*key, now),
    )
    row = t.execute(
        "SELECT id FROM jobs WHERE (watch_id, path, inode, size, mtime_ns) = (?, ?, ?, ?, ?)", key
    ).fetchone()
    return int(row["id"])


def unrecorded(t: Transaction, version: FileVersion) -> list[Job]:
    rows = t.execute(
        f"{_SELECT} WHERE watches.name = ? AND path = ? AND (state IN ('superseded', 'dropped')"
        # … or older than the one that runs: it failed when that was queued already.
        " OR state IN ('queued', 'waiting', 'parked') AND jobs.id < (SELECT max(id) FROM jobs AS mine"
        " WHERE mine.watch_id = jobs.watch_id AND mine.path = jobs.path AND mine.state = 'running'))"
        " AND checkpoint LIKE '%\"publishing\"%'"
        # One that disposes of its source has recorded all, and must come to its end: it may have set the source aside.
        " AND checkpoint NOT LIKE '%\"disposing\"%' ORDER BY jobs.id",
        (version.watch, version.path),
    )
    return _jobs(rows)


def forget_checkpoint(t: Transaction, job: int) -> None:
    """A job that failed while a newer version was queued already still waits, or is parked: it is superseded now."""
    t.execute(
        "UPDATE jobs SET checkpoint = NULL, retry_at = NULL, ended_at = coalesce(ended_at, started_at),"
        " state = CASE state WHEN 'dropped' THEN 'dropped' ELSE 'superseded' END"
        " WHERE id = ? AND state NOT IN ('running', 'done')",
        (job,),
    )


def _had(t: Transaction, watch: int, paths: set[bytes]) -> dict[bytes, list[tuple[Any, ...]]]:
    """path -> (id, state, inode, size, mtime_ns, disposing) of every job that the watch has had for it. One that is
    disposing of its source may have set it aside under a hidden name, and must come to its end."""
    found: dict[bytes, list[tuple[Any, ...]]] = {}
    ordered = sorted(paths)  # the index is walked in its own order
    for start in range(0, len(ordered), 500):
        some = ordered[start : start + 500]
        marks = ",".join("?" * len(some))
        for path, *rest in t.execute(
            "SELECT path, id, state, inode, size, mtime_ns, ifnull(checkpoint LIKE '%\"disposing\"%', 0) FROM jobs"
            f" WHERE watch_id = ? AND path IN ({marks})",
            (watch, *some),
        ):
            found.setdefault(path, []).append(tuple(rest))
    return found


def claim(t: Transaction, limit: int, now: float, queues: Sequence[Queue] = ()) -> list[Job]:
    """Take up to ``limit`` jobs in the order of their turns (turns.py), of the watches in ``queues`` or of all."""
    t.execute("UPDATE jobs SET state = 'queued', retry_at = NULL WHERE state = 'waiting' AND retry_at <= ?", (now,))
    return take(t, choose(t, limit, queues), now)


def take(t: Transaction, taken: Sequence[int], now: float) -> list[Job]:
    """Let these queued jobs run."""
    if not taken:
        return []
    marks = ",".join("?" * len(taken))
    # Two statements cost less than one with RETURNING, which keeps its rows in a table of its own.
    t.execute(
        f"UPDATE jobs SET state = 'running', started_at = ?, stage = 'transfer' WHERE id IN ({marks})", (now, *taken)
    )
    rows = t.execute(f"{_SELECT} WHERE jobs.id IN ({marks})", tuple(taken))
    found = {job.id: job for job in _jobs(rows)}
    return [found[number] for number in taken]


def ready(t: Transaction, now: float) -> bool:
    """Whether there is a job to claim."""
    row = t.execute(
        "SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 'queued')"
        " OR EXISTS (SELECT 1 FROM jobs WHERE state = 'waiting' AND retry_at <= ?)",
        (now,),
    ).fetchone()
    return bool(row[0])


def wake_from_future(t: Transaction, now: float) -> None:
    """After the clock was set back: jobs that began in what is the future now would wait until that time is back.
    Looks at every job that waits."""
    t.execute("UPDATE jobs SET state = 'queued', retry_at = NULL WHERE state = 'waiting' AND started_at > ?", (now,))


def next_retry(t: Transaction) -> float | None:
    """When the first waiting job is due (seconds since the epoch)."""
    row = t.execute("SELECT min(retry_at) FROM jobs WHERE state = 'waiting'").fetchone()
    return None if row[0] is None else float(row[0])


def checkpoint(t: Transaction, job: int, stage: Stage, left: Mapping[str, Any] | None) -> None:
    """Note what a running job does now and, when ``left`` is given, what its finished steps left behind."""
    if left is None:
        t.execute("UPDATE jobs SET stage = ? WHERE id = ?", (stage.value, job))
    else:
        t.execute("UPDATE jobs SET stage = ?, checkpoint = ? WHERE id = ?", (stage.value, json.dumps(left), job))


def reopen(t: Transaction, job: int, now: float) -> None:
    """Queue a job that is done once more."""
    t.execute(
        "UPDATE jobs SET state = 'queued', queued_at = ?, ended_at = NULL WHERE id = ? AND state = 'done'", (now, job)
    )


def finish(t: Transaction, jobs: Sequence[int], now: float) -> None:
    t.execute(
        "UPDATE jobs SET state = 'done', stage = NULL, ended_at = ?, error = NULL, error_code = NULL,"
        f" checkpoint = NULL WHERE id IN ({','.join('?' * len(jobs))})",
        (now, *jobs),
    )


def fail(
    t: Transaction,
    job: int,
    state: State,
    code: str,
    error: str,
    now: float,
    *,
    retry_at: float | None = None,
    strike: bool = False,
) -> None:
    """End a run without success: ``state`` is WAITING (with ``retry_at``), PARKED or SUPERSEDED."""
    t.execute(
        "UPDATE jobs SET state = ?, stage = NULL, attempts = attempts + 1, strikes = strikes + ?, retry_at = ?,"
        " error_code = ?, error = ?, ended_at = ? WHERE id = ?",
        (state.value, int(strike), retry_at, code, error, now if state.final else None, job),
    )


def postpone(t: Transaction, job: int, until: float, reason: str = "") -> None:
    """Not a failure: ``reason`` is what is waited for."""
    t.execute(
        "UPDATE jobs SET state = 'waiting', stage = NULL, retry_at = ?, error_code = NULL, error = ? WHERE id = ?",
        (until, reason or None, job),
    )


def renamed(t: Transaction, job: Job) -> bytes | None:
    """The path of a newer job of the same watch, inode, size and mtime: the file was given another name."""
    v = job.version.identity
    row = t.execute(
        "SELECT newer.path FROM jobs AS older JOIN jobs AS newer ON newer.watch_id = older.watch_id"
        " WHERE older.id = ? AND newer.id > older.id AND newer.path <> older.path"
        " AND newer.inode = ? AND newer.size = ? AND newer.mtime_ns = ? LIMIT 1",
        (job.id, signed(v.inode), v.size, v.mtime_ns),
    ).fetchone()
    return None if row is None else bytes(row[0])


def release(t: Transaction, jobs: Iterable[int]) -> None:
    """Put running jobs back in the queue without counting a failure (shutdown, restart)."""
    t.executemany(
        "UPDATE jobs SET state = 'queued', stage = NULL WHERE id = ? AND state = 'running'", [(j,) for j in jobs]
    )


def recover(t: Transaction) -> int:
    """After a crash: what was running is queued again, with its checkpoints. Returns how many."""
    return t.execute("UPDATE jobs SET state = 'queued', stage = NULL WHERE state = 'running'").rowcount


def retry(t: Transaction, which: Filter) -> list[int]:
    """An operator's word: run these waiting, parked or dropped jobs now, with their failures forgotten."""
    ids = [j.id for j in find(t, which) if j.state in (State.WAITING, State.PARKED, State.DROPPED)]
    t.executemany(
        "UPDATE jobs SET state = 'queued', retry_at = NULL, strikes = 0, attempts = 0, ended_at = NULL WHERE id = ?",
        [(number,) for number in ids],
    )
    return ids


def drop(t: Transaction, which: Filter, now: float) -> list[int]:
    """An operator's word: give these jobs up. The source stays; the same version is not taken again."""
    ids = [j.id for j in find(t, which) if j.state in (State.QUEUED, State.WAITING, State.PARKED)]
    t.executemany(
        "UPDATE jobs SET state = 'dropped', retry_at = NULL, ended_at = ? WHERE id = ?", [(now, n) for n in ids]
    )
    return ids


def find(t: Transaction, which: Filter) -> list[Job]:
    conditions, values = _where(which)
    tail = f" ORDER BY jobs.id DESC LIMIT {int(which.limit)}" if which.limit else " ORDER BY jobs.id"
    return _jobs(t.execute(f"{_SELECT} WHERE {conditions}{tail}", values))


def find_versions(t: Transaction, versions: Sequence[FileVersion]) -> list[Job]:
    """The jobs of these versions (at most 500 at a time), as far as there are any."""
    wanted = {(v.watch, v.path, v.identity) for v in versions}
    marks = ",".join("?" * len(versions))
    found: list[Job] = []
    for watch in {version.watch for version in versions}:
        rows = t.execute(
            f"{_SELECT} WHERE watches.name = ? AND path IN ({marks})", (watch, *(v.path for v in versions))
        )
        found += _jobs(rows)
    return [job for job in found if (job.version.watch, job.version.path, job.version.identity) in wanted]


def held(t: Transaction) -> list[Held]:
    """What waits or is parked, by its error; the most frequent first. From an index, and one job of each group."""
    rows = t.execute(
        "SELECT state, error_code, count(*), sum(size), min(retry_at), max(id) FROM jobs"
        " WHERE state IN ('waiting', 'parked') GROUP BY state, error_code ORDER BY count(*) DESC, state, error_code"
    ).fetchall()
    newest = {row[5]: find(t, Filter(ids=(row[5],)))[0] for row in rows}
    return [Held(_STATES[row[0]], row[1] or "", row[2], row[3], row[4], newest[row[5]]) for row in rows]


def first_queued(t: Transaction) -> dict[str, float]:
    """For each watch that has queued jobs: when the one that stands first was queued."""
    rows = t.execute(
        "SELECT name, (SELECT queued_at FROM jobs WHERE watch_id = watches.id AND state = 'queued'"
        " ORDER BY id LIMIT 1) AS since FROM watches"
    )
    return {name: since for name, since in rows if since is not None}


def count_below(t: Transaction, watch: str, path: bytes) -> dict[State, int]:
    """How many jobs of the files below a directory of a watch are in each state."""
    rows = t.execute(
        "SELECT state, count(*) FROM jobs JOIN watches ON watches.id = watch_id"
        " WHERE watches.name = ? AND path > ? AND path < ? GROUP BY state",
        (watch, path + b"/", path + b"0"),
    )
    return {State(row[0]): row[1] for row in rows}


def count(t: Transaction) -> dict[str, dict[State, tuple[int, int]]]:
    """For each watch and state: how many jobs, and their bytes; kept by triggers, so quick whatever the number."""
    counts: dict[str, dict[State, tuple[int, int]]] = {}
    for name, state, number, size in t.execute(
        "SELECT watches.name, state, jobs, bytes FROM tallies JOIN watches ON watches.id = watch_id WHERE jobs > 0"
    ):
        counts.setdefault(name, {})[State(state)] = (number, size)
    return counts


def count_open(t: Transaction) -> dict[State, int]:
    """How many jobs are in each state that is not final."""
    found = {State(row[0]): int(row[1]) for row in t.execute("SELECT state, sum(jobs) FROM tallies GROUP BY state")}
    return {state: found.get(state, 0) for state in State if not state.final}


def oldest_open(t: Transaction) -> float | None:
    """When the oldest job that is neither done nor given up was queued."""
    row = t.execute("SELECT min(queued_at) FROM jobs WHERE ended_at IS NULL").fetchone()
    return None if row[0] is None else float(row[0])


def begin_upload(t: Transaction, job: int, destination: str, token: str, now: float) -> None:
    t.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?)", (job, destination, token, now))


def end_upload(t: Transaction, job: int, destination: str, token: str) -> None:
    t.execute("DELETE FROM uploads WHERE job_id = ? AND destination = ? AND token = ?", (job, destination, token))


def uploads(t: Transaction, job: int | None = None) -> list[tuple[int, str, str]]:
    """(job, destination, token) of uploads that began and did not end."""
    where, values = ("WHERE job_id = ?", (job,)) if job is not None else ("", ())
    return [tuple(r) for r in t.execute(f"SELECT job_id, destination, token FROM uploads {where}", values)]


def signed(inode: int) -> int:
    """SQLite's integers are signed; some filesystems use all 64 bits of an inode number."""
    return inode - 2**64 if inode >= 2**63 else inode


def _where(which: Filter) -> tuple[str, list[Any]]:
    parts: list[str] = ["1"]
    values: list[Any] = []
    if which.states:
        parts.append(f"state IN ({','.join('?' * len(which.states))})")
        values += [state.value for state in which.states]
        # The conditions of partial indexes, which SQLite uses only where it finds them again in these words.
        if set(which.states) <= {State.RUNNING, State.PARKED}:
            parts.append(HELD)
        elif set(which.states) <= {State.WAITING, State.PARKED}:
            parts.append("state IN ('waiting', 'parked')")
    if which.watch:
        parts.append("watches.name = ?")
        values.append(which.watch)
    if which.path and which.exact:
        parts.append("path = ?")
        values.append(which.path)
    elif which.path:
        # Everything below a directory sorts between "dir/" and "dir0" ("0" follows "/").
        parts.append("(path = ? OR (path > ? AND path < ?))")
        values += [which.path, which.path + b"/", which.path + b"0"]
    if which.error_code:
        parts.append("error_code = ?")
        values.append(which.error_code)
    if which.ids:
        parts.append(f"jobs.id IN ({','.join('?' * len(which.ids))})")
        values += which.ids
    if which.before:
        parts.append("jobs.id < ?")
        values.append(which.before)
    return " AND ".join(parts), values


def _jobs(rows: Iterable[Any]) -> list[Job]:
    # One tuple a row, by position: claiming a hundred jobs spends its time here.
    return [
        Job(
            number,
            FileVersion(watch, path, Identity(inode % 2**64, size, mtime_ns)),
            _STATES[state],
            _STAGES.get(stage),
            attempts,
            strikes,
            retry_at,
            error_code or "",
            error or "",
            queued_at,
            started_at,
            ended_at,
            json.loads(left) if left else {},
        )
        for (
            number,
            watch,
            path,
            inode,
            size,
            mtime_ns,
            state,
            stage,
            attempts,
            strikes,
            retry_at,
            error_code,
            error,
            queued_at,
            started_at,
            ended_at,
            left,
        ) in rows
    ]
