"""What can still be read of a damaged database goes into a new one (PRODUCT Q6).

The damaged files are moved aside as they are and never changed. The queue, the ledger and what the service knows of
filesystems and endpoints are carried over row by row. The custody log's rows are not: a chain with holes proves
nothing. They go into a file beside the damaged database, and the new log says what that file's SHA-256 is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from quaymaster.store.db import FILE_NAME, Database, Transaction

_FILES = (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm")
_TABLES = ("watches", "jobs", "uploads", "ledger", "reports", "mirror_objects", "mirror_units")
_OF_WATCHES = ("jobs", "ledger", "mirror_objects", "mirror_units")
_JOIN = (
    *(f"DELETE FROM {table} WHERE watch_id NOT IN (SELECT id FROM watches)" for table in _OF_WATCHES),
    """
    INSERT OR IGNORE INTO jobs (id, watch_id, path, inode, size, mtime_ns, state, queued_at, ended_at)
    SELECT job_id, watch_id, path, inode, size, mtime_ns, 'done', min(delivered_at), max(delivered_at)
    FROM ledger WHERE job_id NOT IN (SELECT id FROM jobs) GROUP BY job_id
    """,
    """
    DELETE FROM ledger WHERE NOT EXISTS (
        SELECT 1 FROM jobs WHERE jobs.id = ledger.job_id AND jobs.watch_id = ledger.watch_id AND jobs.path = ledger.path
        AND jobs.inode = ledger.inode AND jobs.size = ledger.size AND jobs.mtime_ns = ledger.mtime_ns
    )
    """,
    # By one that is lost: it still is not the current one, which is what the number stands for.
    "UPDATE ledger SET replaced_by = id WHERE replaced_by NOT IN (SELECT id FROM ledger)",
    "DELETE FROM uploads WHERE job_id NOT IN (SELECT id FROM jobs)",
)
CUSTODY_FILE = "custody-salvaged.jsonl"
_UNFINISHED = ".unfinished"


@dataclass(frozen=True, slots=True)
class Salvaged:
    """``rows``: carried over, by table. ``custody``: entries in :data:`CUSTODY_FILE`, whose digest is ``sha256``."""

    folder: str
    rows: dict[str, int]
    custody: int
    sha256: str


def set_aside(directory: str, stamp: str) -> str:
    """Move the database's files into a folder of their own; its path. The folder says in its name that what can be
    read there is still to be carried over, until :func:`ended`."""
    folder = os.path.join(directory, f"damaged-{stamp}{_UNFINISHED}")
    os.mkdir(folder, 0o700)
    _move(directory, folder)
    return folder


def unfinished(directory: str) -> list[str]:
    """Folders out of which something may still have to be carried over."""
    with suppress(FileNotFoundError):
        return sorted(
            os.path.join(directory, name)
            for name in os.listdir(directory)
            if name.startswith("damaged-") and name.endswith(_UNFINISHED)
        )
    return []


def interrupted(directory: str) -> str:
    """The folder of an earlier run that was killed before it had carried everything over, with all of the damaged
    database in it; empty when there is none."""
    for folder in unfinished(directory):
        if not os.path.exists(os.path.join(directory, FILE_NAME)):
            _move(directory, folder)  # it was killed in the midst of that; SQLite would take the rest for a new one's
        elif not os.path.exists(os.path.join(folder, FILE_NAME)):
            os.rmdir(folder)  # before that
            continue
        return folder
    return ""


def ended(folder: str) -> str:
    """What can be read there is carried over; the folder's path from now on."""
    kept = folder.removesuffix(_UNFINISHED)
    os.rename(folder, kept)
    return kept


def _move(directory: str, folder: str) -> None:
    for name in _FILES:
        with suppress(FileNotFoundError):
            os.rename(os.path.join(directory, name), os.path.join(folder, name))
    for place in (folder, directory):
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def salvage(folder: str, into: Database) -> Salvaged:
    """Carry over what can be read of the database in ``folder``; once more, if a run before was killed."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for name in _FILES:  # SQLite would write into the original: its log is played back when it is opened
            with suppress(FileNotFoundError):
                shutil.copyfile(os.path.join(folder, name), os.path.join(work, name))
        with closing(sqlite3.connect(os.path.join(work, FILE_NAME))) as damaged:
            rows = into.write(lambda t: _carry_all_over(damaged, t))
            custody, sha256 = _keep_custody(damaged, os.path.join(folder, CUSTODY_FILE))
    return Salvaged(folder.removesuffix(_UNFINISHED), rows, custody, sha256)


def _carry_all_over(damaged: sqlite3.Connection, into: Transaction) -> dict[str, int]:
    into.execute("PRAGMA defer_foreign_keys = ON")  # a delivery is replaced by a later one
    rows = {table: _carry_over(damaged, into, table) for table in _TABLES}
    _join(into)
    return rows


def _carry_over(damaged: sqlite3.Connection, into: Transaction, table: str) -> int:
    carried = 0
    for columns, row in _readable(damaged, table):
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        with suppress(sqlite3.IntegrityError):  # a row that makes no sense any more
            carried += into.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", row).rowcount
    return carried


def _join(into: Transaction) -> None:
    """Make whole what hangs together. Numbers of lost jobs must not be given out again while deliveries bear them:
    another file's would count as the new one's."""
    for statement in _JOIN:
        into.execute(statement)


def _readable(damaged: sqlite3.Connection, table: str) -> Iterator[tuple[list[str], tuple[Any, ...]]]:
    """The rows from the first on until a damaged page, then from the last back to it."""
    seen: set[Any] = set()
    for order in ("", " ORDER BY 1 DESC"):
        try:
            cursor = damaged.execute(f"SELECT * FROM {table}{order}")
            columns = [column[0] for column in cursor.description]
            while (row := cursor.fetchone()) is not None:
                if row[0] in seen and table not in ("uploads",):
                    break
                seen.add(row[0])
                yield columns, row
            else:
                return
        except (sqlite3.Error, OverflowError, ValueError):
            continue


def _keep_custody(damaged: sqlite3.Connection, path: str) -> tuple[int, str]:
    digest, number = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for columns, row in _readable(damaged, "custody"):
            named = dict(zip(columns, row, strict=True))
            entry = {name: named.get(name) for name in ("seq", "sha256", "body")}
            line = json.dumps(entry, default=repr).encode() + b"\n"
            file.write(line)
            digest.update(line)
            number += 1
        file.flush()
        os.fsync(file.fileno())
    return number, digest.hexdigest()
