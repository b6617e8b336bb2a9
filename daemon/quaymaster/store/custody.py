"""The custody log: append-only, each entry chained to the one before by SHA-256 (PRODUCT I8).

An entry's digest is SHA-256 over the previous entry's digest in hex, a newline, the SHA-256 of the entry's body in
hex, a newline; the first follows 64 zeros. The body is JSON with sorted keys and no spaces. So the chain can be checked
with ``sha256sum`` alone, and what lies between two entries by its digests, without telling anybody what it says.

An edit of an entry or a cut-off end that is followed by a calculation of the whole chain anew shows only against a head
that is kept elsewhere: in the file beside the database, in the journal, and at the destinations (Head).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from quaymaster.model import shown
from quaymaster.store.db import Transaction

GENESIS = "0" * 64
_AT_ONCE = 1_000  # entries


@dataclass(frozen=True, slots=True)
class Entry:
    seq: int
    body: str
    sha256: str

    @property
    def fields(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


def link(previous: str, body: str) -> str:
    """The digest of an entry that follows ``previous``."""
    return link_of_digests(previous, hashlib.sha256(body.encode()).hexdigest())


def link_of_digests(previous: str, body_sha256: str) -> str:
    return hashlib.sha256(f"{previous}\n{body_sha256}\n".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """An entry of a custody log as somebody noted it outside the database."""

    seq: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.sha256}"

    @classmethod
    def parsed(cls, text: str) -> Head | None:
        """From "SEQ:SHA256"; None when it is not one."""
        found = re.fullmatch(r"([1-9][0-9]{0,15}):([0-9a-f]{64})", text.strip())
        return cls(int(found.group(1)), found.group(2)) if found else None


def contradiction(t: Transaction, head: Head) -> str:
    """What the log says against a head that was once its own; an empty string when it bears it out."""
    found = entry(t, head.seq)
    if found is None:
        return f"entry {head.seq} of the custody log is missing: its end was cut off"
    return "" if found.sha256 == head.sha256 else f"entry {head.seq} of the custody log is not what it was"


def append(
    t: Transaction,
    kind: str,
    at: float,
    *,
    job: int = 0,
    watch: str = "",
    path: bytes = b"",
    details: Mapping[str, Any] | None = None,
) -> None:
    """Add one entry in the caller's transaction: it stands if and only if what it tells of does."""
    _chain(t, _head(t), kind, at, job, watch, path, details or {})


def append_all(t: Transaction, entries: Iterable[tuple[str, int, str, bytes, Mapping[str, Any]]], at: float) -> None:
    """Several entries, as by :func:`append`: of each its kind, job, watch, path and details."""
    head = _head(t)
    for kind, job, watch, path, details in entries:
        head = _chain(t, head, kind, at, job, watch, path, details)


def _head(t: Transaction) -> tuple[int, str]:
    last = t.execute("SELECT seq, sha256 FROM custody ORDER BY seq DESC LIMIT 1").fetchone()
    return (last["seq"], last["sha256"]) if last else (0, GENESIS)


def head_seq(t: Transaction) -> int:
    """The number of the newest entry; 0 while there is none."""
    return _head(t)[0]


def _chain(
    t: Transaction,
    head: tuple[int, str],
    kind: str,
    at: float,
    job: int,
    watch: str,
    path: bytes,
    details: Mapping[str, Any],
) -> tuple[int, str]:
    """Add an entry behind ``head``; the new head."""
    seq, previous = head[0] + 1, head[1]
    fields: dict[str, Any] = {"seq": seq, "at": round(at, 6), "kind": kind}
    if job:
        fields["job"] = job
    if watch:
        fields["watch"] = watch
    if path:
        fields["path"] = shown(path)
        fields["path_hex"] = path.hex()
    fields.update(details)
    body = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    digest = link(previous, body)
    t.execute("INSERT INTO custody VALUES (?, ?, ?, ?)", (seq, job or None, body, digest))
    return seq, digest


def of_job(t: Transaction, job: int) -> list[Entry]:
    rows = t.execute("SELECT seq, body, sha256 FROM custody WHERE job_id = ? ORDER BY seq", (job,))
    return [Entry(row["seq"], row["body"], row["sha256"]) for row in rows]


def of_paths(t: Transaction, watch: str, paths: Iterable[bytes]) -> list[Entry]:
    """Entries about these paths that belong to no job, oldest first."""
    names = {path.hex() for path in paths if path}
    if not names:
        return []
    like = " OR ".join(["body LIKE ?"] * len(names))
    rows = t.execute(
        f"SELECT seq, body, sha256 FROM custody WHERE job_id IS NULL AND ({like}) ORDER BY seq",
        [f'%"path_hex":"{name}"%' for name in sorted(names)],
    )
    found = [Entry(row["seq"], row["body"], row["sha256"]) for row in rows]
    return [e for e in found if e.fields.get("watch") == watch and e.fields.get("path_hex") in names]


def entries(t: Transaction, first: int = 1, last: int = 1 << 62, limit: int = -1) -> Iterator[Entry]:
    """In order; ``first`` and ``last`` included, ``limit`` at most, unless it is negative."""
    rows = t.execute(
        "SELECT seq, body, sha256 FROM custody WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?", (first, last, limit)
    )
    for row in rows:
        yield Entry(row["seq"], row["body"], row["sha256"])


def paged(read: Callable[[], AbstractContextManager[Transaction]], first: int, last: int) -> Iterator[Entry]:
    """As :func:`entries`, some in each transaction that ``read`` begins: who reads slowly, a pager for instance, must
    not keep the write-ahead log from its end. What is appended meanwhile is left out."""
    with read() as t:
        newest = entry(t)
    last = min(last, newest.seq if newest else 0)
    while first <= last:
        with read() as t:
            some = list(entries(t, first, last, _AT_ONCE))
        if not some:
            return
        yield from some
        first = some[-1].seq + 1


def entry(t: Transaction, seq: int = 0) -> Entry | None:
    """The entry of that number, or the last one."""
    where = "WHERE seq = ?" if seq else "ORDER BY seq DESC LIMIT 1"
    row = t.execute(f"SELECT seq, body, sha256 FROM custody {where}", (seq,) if seq else ()).fetchone()
    return Entry(row["seq"], row["body"], row["sha256"]) if row else None


def last_of_job(t: Transaction) -> int:
    """The number of the newest entry that belongs to any job; 0 when there is none."""
    row = t.execute("SELECT seq FROM custody WHERE job_id IS NOT NULL ORDER BY seq DESC LIMIT 1").fetchone()
    return int(row["seq"]) if row else 0


def broken_at(t: Transaction) -> int | None:
    """The first sequence number at which the chain does not hold, or None. Edits, deletions inside and reordering
    are found; a cut-off end is not, without a head kept elsewhere."""
    previous, expected = GENESIS, 1
    for entry in entries(t):
        if entry.seq != expected or entry.sha256 != link(previous, entry.body) or entry.fields["seq"] != expected:
            return expected
        previous, expected = entry.sha256, expected + 1
    return None
