"""What a mirror has downloaded and released (PRODUCT M). Its downloads are jobs like all others (jobs.py).

Functions here take a transaction; they are composed and committed by store.Store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from quaymaster.errors import StoreError
from quaymaster.model import FileVersion, Job, State
from quaymaster.store import jobs, passes
from quaymaster.store.db import Transaction

_OBJECT = "path, tag, job_id, target, size, sha256, evidence, file_inode, file_mtime"
_UNIT = "path, state, fingerprint, objects, at, old, checked, gone_since, refused, error"


@dataclass(frozen=True, slots=True)
class Downloaded:
    """An object that was downloaded and verified."""

    path: bytes
    tag: int
    """The inode of its job's version: stands for its ETag."""
    job: int
    target: bytes
    """Where its file belongs, below the mirror."""
    size: int
    """Of the file (bytes)."""
    sha256: str
    evidence: str
    """What proved the content; empty for nothing but its size."""
    file_inode: int
    file_mtime: int


@dataclass(frozen=True, slots=True)
class MirrorUnit:
    """A version's directory, or a single file, as it stands on the disk."""

    path: bytes
    state: str
    """``none``, ``releasing`` or ``released``."""
    fingerprint: str = ""
    """Of the objects that it was made of; empty for one that was put back."""
    objects: Mapping[bytes, int] = field(default_factory=dict)
    """Their paths and tags."""
    at: float = 0.0
    old: str = ""
    """The hidden name of what it replaced, as long as that may be put back."""
    checked: bool = False
    """Whether the model server and the command were told of it."""
    gone_since: float | None = None
    """When it was first missing upstream (seconds since the epoch)."""
    refused: str = ""
    """The fingerprint of what was not taken, and is not tried again."""
    error: str = ""
    """Why it was not taken."""


def declare(t: Transaction, mirrors: Iterable[str], watches: Iterable[str]) -> None:
    """Names that stand for mirrors and for watches from now on. Raises StoreError for one that was the other before:
    the jobs that are remembered under it would be taken for its own."""
    kinds = {row[0]: (row[1], bool(row[2])) for row in t.execute(
        "SELECT name, kind, EXISTS (SELECT 1 FROM jobs WHERE watch_id = watches.id) FROM watches"
    )}  # fmt: skip
    for kind, other, names in (("mirror", "watch", mirrors), ("watch", "mirror", watches)):
        for name in names:
            had, used = kinds.get(name, (kind, False))
            if had == other and used:
                raise StoreError(
                    f"{name} was the name of a {other}, whose jobs are remembered", f"Give the {kind} another name"
                )
            if had == other or (name not in kinds and kind == "mirror"):
                t.execute("UPDATE watches SET kind = ? WHERE id = ?", (kind, jobs.watch_id(t, name)))


def names(t: Transaction) -> set[str]:
    return {row[0] for row in t.execute("SELECT name FROM watches WHERE kind = 'mirror'")}


def downloaded(t: Transaction, mirror: str) -> dict[tuple[bytes, int], Downloaded]:
    cursor = t.cursor()
    cursor.row_factory = None
    rows = cursor.execute(f"SELECT {_OBJECT} FROM mirror_objects WHERE watch_id = {_ID}", (mirror,))
    return {(row[0], row[1]): Downloaded(*row) for row in rows}


def numbers(t: Transaction, mirror: str) -> dict[tuple[bytes, int], int]:
    cursor = t.cursor()
    cursor.row_factory = None
    rows = cursor.execute(f"SELECT path, tag, job_id FROM mirror_objects WHERE watch_id = {_ID}", (mirror,))
    return {(path, tag): job for path, tag, job in rows}


def record(t: Transaction, mirror: str, done: Downloaded) -> None:
    t.execute(
        f"INSERT OR REPLACE INTO mirror_objects (watch_id, {_OBJECT}) VALUES ({_ID}, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (mirror, done.path, done.tag, done.job, done.target, done.size, done.sha256, done.evidence,
         jobs.signed(done.file_inode), done.file_mtime),
    )  # fmt: skip


def units(t: Transaction, mirror: str) -> dict[bytes, MirrorUnit]:
    found = {}
    for path, state, fingerprint, objects, at, old, checked, gone_since, refused, error in t.execute(
        f"SELECT {_UNIT} FROM mirror_units WHERE watch_id = {_ID}", (mirror,)
    ):
        made_of = {bytes.fromhex(name): tag for name, tag in json.loads(objects).items()}
        found[path] = MirrorUnit(path, state, fingerprint, made_of, at, old, bool(checked), gone_since, refused, error)
    return found


def put_unit(t: Transaction, mirror: str, unit: MirrorUnit) -> None:
    objects = json.dumps({path.hex(): tag for path, tag in unit.objects.items()})
    t.execute(
        f"INSERT OR REPLACE INTO mirror_units (watch_id, {_UNIT}) VALUES ({_ID}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (mirror, unit.path, unit.state, unit.fingerprint, objects, unit.at, unit.old, unit.checked, unit.gone_since,
         unit.refused, unit.error),
    )  # fmt: skip


def forget(t: Transaction, mirror: str, unit: bytes, objects: Iterable[tuple[bytes, int]]) -> None:
    """Objects that nothing uses any more, and a unit that is gone (b"": none)."""
    t.executemany(
        f"DELETE FROM mirror_objects WHERE watch_id = {_ID} AND path = ? AND tag = ?",
        [(mirror, path, tag) for path, tag in objects],
    )
    if unit:
        t.execute(f"DELETE FROM mirror_units WHERE watch_id = {_ID} AND path = ?", (mirror, unit))


def wanted(
    t: Transaction, mirror: str, versions: Sequence[FileVersion], lost: Iterable[Downloaded], now: float
) -> dict[bytes, Job]:
    """Queue what is to be downloaded: new objects, and those of which the file was ``lost``; but none that was
    downloaded since the caller looked. Path -> the job of each that is given up or waits for a retry or an operator."""
    t.executemany(
        f"DELETE FROM mirror_objects WHERE watch_id = {_ID} AND path = ? AND tag = ? AND file_inode = ?"
        " AND file_mtime = ?",
        [(mirror, each.path, each.tag, jobs.signed(each.file_inode), each.file_mtime) for each in lost],
    )
    jobs.enqueue(t, versions, now)
    held: dict[bytes, Job] = {}
    for start in range(0, len(versions), 500):
        some = versions[start : start + 500]
        found = jobs.find_versions(t, some)
        again = [(now, job.id) for job in found if job.state is State.DONE]
        t.executemany(
            "UPDATE jobs SET state = 'queued', queued_at = ?, ended_at = NULL WHERE id = ? AND NOT EXISTS"
            " (SELECT 1 FROM mirror_objects AS m WHERE (m.watch_id, m.path, m.tag) = (jobs.watch_id, path, inode))",
            again,
        )
        held |= {j.version.path: j for j in found if j.state in (State.PARKED, State.DROPPED, State.WAITING)}
    return held


def left_over(t: Transaction, mirror: str, paths: set[bytes], now: float) -> int:
    """Supersede what is open of objects that are not listed any more, and does not run; how many."""
    found = passes.open_of(t, mirror)
    gone = [(now, job) for job, state, path in found if state is not State.RUNNING and path not in paths]
    t.executemany(
        "UPDATE jobs SET state = 'superseded', retry_at = NULL, stage = NULL, ended_at = ? WHERE id = ?", gone
    )
    return len(gone)


_ID = "(SELECT id FROM watches WHERE name = ?)"
