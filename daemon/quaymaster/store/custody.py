"""The custody log: append-only, each entry chained to the one before by SHA-256 (PRODUCT I8).

An entry's digest is SHA-256 over the previous entry's digest in hex, a newline, the entry's body, a newline; the
first follows 64 zeros. The body is JSON with sorted keys and no spaces, so that the chain can be checked with
``sha256sum`` alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quaymaster.model import shown
from quaymaster.store.db import Transaction

GENESIS = "0" * 64


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
    return hashlib.sha256(f"{previous}\n{body}\n".encode()).hexdigest()


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
    last = t.execute("SELECT seq, sha256 FROM custody ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous = (last["seq"] + 1, last["sha256"]) if last else (1, GENESIS)
    fields: dict[str, Any] = {"seq": seq, "at": round(at, 6), "kind": kind}
    if job:
        fields["job"] = job
    if watch:
        fields["watch"] = watch
    if path:
        fields["path"] = shown(path)
        fields["path_hex"] = path.hex()
    fields.update(details or {})
    body = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    t.execute("INSERT INTO custody VALUES (?, ?, ?, ?)", (seq, job or None, body, link(previous, body)))


def of_job(t: Transaction, job: int) -> list[Entry]:
    rows = t.execute("SELECT seq, body, sha256 FROM custody WHERE job_id = ? ORDER BY seq", (job,))
    return [Entry(row["seq"], row["body"], row["sha256"]) for row in rows]


def entries(t: Transaction) -> Iterator[Entry]:
    for row in t.execute("SELECT seq, body, sha256 FROM custody ORDER BY seq"):
        yield Entry(row["seq"], row["body"], row["sha256"])


def entry(t: Transaction, seq: int = 0) -> Entry | None:
    """The entry of that number, or the last one."""
    where = "WHERE seq = ?" if seq else "ORDER BY seq DESC LIMIT 1"
    row = t.execute(f"SELECT seq, body, sha256 FROM custody {where}", (seq,) if seq else ()).fetchone()
    return Entry(row["seq"], row["body"], row["sha256"]) if row else None


def broken_at(t: Transaction) -> int | None:
    """The first sequence number at which the chain does not hold, or None. Edits, deletions inside and reordering
    are found; a cut-off end is not, without a head kept elsewhere."""
    previous, expected = GENESIS, 1
    for entry in entries(t):
        if entry.seq != expected or entry.sha256 != link(previous, entry.body) or entry.fields["seq"] != expected:
            return expected
        previous, expected = entry.sha256, expected + 1
    return None
