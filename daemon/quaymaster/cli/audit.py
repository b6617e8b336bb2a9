"""``quaymaster audit``: check and export the custody log (PRODUCT I8)."""

from __future__ import annotations

import csv
import json
import re
import sys
from typing import Any

import click

from quaymaster.cli import show
from quaymaster.cli.session import Session, in_session, shared_options
from quaymaster.errors import IntegrityError, UsageError

_HEAD = re.compile(r"([0-9]+):([0-9a-f]{64})")
_COLUMNS = ("seq", "at", "kind", "job", "watch", "path")
"""Of CSV; every other field of an entry is in the last one but one, as JSON."""


@click.group("audit")
@shared_options
def command() -> None:
    """Check or export the custody log: every delivery, failure, disposal and change of configuration.

    \b
    Examples:
      quaymaster audit verify
      quaymaster audit verify --head 1042:9f86d081884c7d65...
      quaymaster audit export > custody.jsonl
    """


@command.command("verify")
@click.option("--head", metavar="SEQ:SHA256", help="An entry noted before, which must still be there as it was.")
@in_session
def verify(session: Session, head: str | None) -> int:
    """Check that no entry was edited, removed or put elsewhere.

    Each entry holds the SHA-256 of the one before. That an end was cut off shows only against an entry known from
    elsewhere: the service tells its last one when it starts and stops, in the journal. Give that as --head.
    """
    wanted = _parsed(head) if head else None
    config = session.config()
    with session.store(config) as store:
        broken = store.custody_broken_at()
        last = store.custody_entry()
        known = store.custody_entry(wanted[0]) if wanted else None
    fault = ""
    if broken is not None:
        fault = f"The custody log is broken at entry {broken}"
    elif wanted and (known is None or known.sha256 != wanted[1]):
        what = "is missing: the end of the log was cut off" if known is None else "is not what it was"
        fault = f"Entry {wanted[0]} of the custody log {what}"
    number, digest = (last.seq, last.sha256) if last else (0, "")
    if session.json:
        print(show.as_json({"entries": number, "head": digest, "broken_at": broken, "ok": not fault}))
    elif not fault:
        print(f"{show.count(number, 'entry', 'entries')}, unbroken" + (f"; head {number}:{digest}" if last else ""))
    if fault:
        raise IntegrityError(fault, "Keep a copy of the state directory as it is, and find out who wrote to it")
    return 0


@command.command("export")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", help="JSON Lines, or CSV.")
@in_session
def export(session: Session, form: str) -> int:
    """Print the whole log. JSON Lines hold each entry's body exactly as it is chained, and its SHA-256.

    \b
    Each digest is that of the one before (64 zeros for the first), a newline, the body and a newline:
      printf '%s\\n%s\\n' "$PREVIOUS" "$BODY" | sha256sum
    """
    config = session.config()
    with session.store(config) as store:
        table = csv.writer(sys.stdout, lineterminator="\n") if form == "csv" else None
        if table:
            table.writerow([*_COLUMNS, "details", "sha256"])
        for entry in store.custody():
            if table:
                fields = entry.fields
                known = [fields.pop(name, "") for name in _COLUMNS]
                table.writerow([*map(_cell, known), json.dumps(fields, sort_keys=True), entry.sha256])
            else:
                print(json.dumps({"seq": entry.seq, "sha256": entry.sha256, "body": entry.body}))
    return 0


def _cell(value: Any) -> Any:
    # A spreadsheet takes a cell that begins so for a formula.
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _parsed(head: str) -> tuple[int, str]:
    found = _HEAD.fullmatch(head)
    if not found:
        raise UsageError(f"--head {head} is not an entry", "Write its number, a colon and its SHA-256 in hex")
    return int(found.group(1)), found.group(2)
