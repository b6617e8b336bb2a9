"""Whose job is next (PRODUCT Q4): fair between the watches by bytes, higher priorities first, and within a watch the
oldest or the smallest.

Each watch has a place in a common order: the bytes that it was served. The one that is furthest behind goes first; one
that had nothing to do starts where the others are, so that it has saved nothing up (start-time fair queueing). Nothing
here takes longer when the queue is longer: each watch's next job comes from an index, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from quaymaster.store.db import Transaction

Order = Literal["oldest", "smallest"]

PER_FILE = 256 << 10
"""Bytes that a file counts beyond its content: what its requests and commits cost. So files without content count."""
LOWER_EVERY = 8
"""Of so many turns one is of a lower priority, if any waits: nothing starves."""

_ORDERS = {"oldest": "id", "smallest": "size, id"}


@dataclass(frozen=True, slots=True)
class Queue:
    """The jobs of one watch, as its configuration wants them served."""

    watch: str
    priority: int = 0
    """The higher goes first."""
    order: Order = "oldest"


@dataclass(slots=True)
class _Line:
    """One watch that has work."""

    watch_id: int
    priority: int
    served: int
    jobs: Iterator[tuple[int, int]]
    head: tuple[int, int] | None = None
    """(id, size) of its next job."""
    moved: bool = False


def choose(t: Transaction, limit: int, queues: Sequence[Queue]) -> list[int]:
    """The numbers of up to ``limit`` queued jobs in the order of their turns; without ``queues``, of every watch."""
    lines = [line for line in _lines(t, limit, queues) if line.head is not None]
    if len(lines) < 2:  # nobody to be fair to
        return [number for line in lines if line.head for number, _ in (line.head, *line.jobs)]
    clock, past = t.execute("SELECT clock, past FROM turns").fetchone()
    before, taken = (clock, past), list[int]()
    while len(taken) < limit and (waiting := [line for line in lines if line.head is not None]):
        highest = max(line.priority for line in waiting)
        lower = [line for line in waiting if line.priority < highest]
        theirs = bool(lower) and past >= LOWER_EVERY - 1
        past = 0 if theirs else past + bool(lower)
        among = lower if theirs else [line for line in waiting if line.priority == highest]
        # Who is ahead of the clock is where it stands; all others stand at the clock, the least served of them first.
        line = min(among, key=lambda each: (max(clock, each.served), each.served, each.watch_id))
        assert line.head is not None
        number, size = line.head
        clock = max(clock, line.served)
        line.served, line.moved = clock + size + PER_FILE, True
        line.head = next(line.jobs, None)
        taken.append(number)
    t.executemany("UPDATE watches SET served = ? WHERE id = ?", [(e.served, e.watch_id) for e in lines if e.moved])
    if (clock, past) != before:
        t.execute("UPDATE turns SET clock = ?, past = ?", (clock, past))
    return taken


def charge(t: Transaction, watch: str, files: int, size: int) -> None:
    """So many files of a watch, of ``size`` bytes together, were taken beside their turn."""
    others = "SELECT 1 FROM tallies JOIN watches ON id = watch_id WHERE state = 'queued' AND jobs > 0 AND name <> ?"
    if t.execute(others, (watch,)).fetchone():
        t.execute("UPDATE watches SET served = served + ? WHERE name = ?", (size + files * PER_FILE, watch))


def _lines(t: Transaction, limit: int, queues: Sequence[Queue]) -> Iterator[_Line]:
    wanted = {queue.watch: queue for queue in queues}
    marks = ",".join("?" * len(wanted))
    named = f" WHERE name IN ({marks})" if wanted else ""
    for number, name, served in t.execute(f"SELECT id, name, served FROM watches{named}", tuple(wanted)).fetchall():
        queue = wanted.get(name, Queue(name))
        # A newer version of a file waits until the older one has run: which copy it replaces is known only then.
        jobs = t.execute(
            "SELECT id, size FROM jobs WHERE watch_id = ? AND state = 'queued' AND NOT EXISTS ("
            "SELECT 1 FROM jobs AS older WHERE older.watch_id = jobs.watch_id AND older.path = jobs.path"
            " AND (older.state = 'running' OR (older.state = 'queued' AND older.id < jobs.id)))"
            f" ORDER BY {_ORDERS[queue.order]} LIMIT ?",
            (number, limit),
        )
        rows = ((int(row[0]), int(row[1])) for row in jobs)
        yield _Line(number, queue.priority, served, rows, next(rows, None))
