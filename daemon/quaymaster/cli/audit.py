"""``quaymaster audit``: check and export the custody log (PRODUCT I8)."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from quaymaster.cli import show
from quaymaster.cli.session import Session, in_session, shared_options
from quaymaster.errors import IntegrityError, QuaymasterError, TransferError, UsageError

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Head, Store

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
@click.option("--elsewhere", is_flag=True, help="Compare with the heads in the journal and at the destinations too.")
@in_session
def verify(session: Session, head: str | None, elsewhere: bool) -> int:
    """Check that no entry was edited, removed or put elsewhere.

    Each entry holds the SHA-256 of the one before. That an end was cut off, or the whole log written anew, shows only
    against an entry that was noted outside the database. The service notes its last one beside the database, in the
    journal and at each destination; --elsewhere compares with all of them, --head with one of your own.
    """
    wanted = _parsed(head) if head else None
    config = session.sound_config()
    with session.store(config) as store:
        broken = store.custody_broken_at()
        last = store.custody_entry()
        faults = [] if broken is None else [f"the custody log is broken at entry {broken}"]
        if wanted and (against := store.contradiction(wanted)):
            faults.append(against)
        if against := store.noted_fault():
            faults.append(f"{against} (noted beside the database)")
        compared, unasked = 0, list[str]()
        if elsewhere:
            compared, told, unasked = _compare_elsewhere(config, store)
            faults += told
    number, digest = (last.seq, last.sha256) if last else (0, "")
    if session.json:
        record = {"entries": number, "head": digest, "broken_at": broken, "ok": not faults, "faults": faults}
        print(show.as_json(record | {"heads_elsewhere": compared, "not_asked": unasked}))
    elif not faults:
        also = f"; {show.count(compared, 'head', 'heads')} noted elsewhere agree" if elsewhere else ""
        print(
            f"{show.count(number, 'entry', 'entries')}, unbroken" + (f"; head {number}:{digest}" if last else "") + also
        )
    if faults:
        text = "; ".join(dict.fromkeys(faults))
        advice = "Keep a copy of the state directory as it is, and find out who wrote to it"
        raise IntegrityError(text[:1].upper() + text[1:], advice)
    if unasked:
        raise QuaymasterError(f"Not everything could be compared: {'; '.join(unasked)}", "Try again when it answers")
    return 0


def _compare_elsewhere(config: Config, store: Store) -> tuple[int, list[str], list[str]]:
    """How many heads outside the database were compared, what contradicts them, and what could not be asked."""
    from quaymaster.service import build, heads, journal

    compared, faults, unasked = 0, list[str](), list[str]()
    log = heads.log_of(store)
    noted = [(head, "the journal") for head in journal.heads(log)]
    for name in config.destinations:
        destination = build.destination(config, name, lambda _: None)
        if destination is None:
            continue
        try:
            kept = heads.held(destination, config.service.host)
            noted += [(one.head, one.key) for one in kept if one.log == log]
        except TransferError as error:
            unasked.append(str(error))
        finally:
            destination.close()
    for head, where in noted:
        compared += 1
        if against := store.contradiction(head):
            faults.append(f"{against} (noted in {where})")
    return compared, faults, unasked


@command.command("export")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", help="JSON Lines, or CSV.")
@in_session
def export(session: Session, form: str) -> int:
    """Print the whole log. JSON Lines hold each entry's body exactly as it is chained, and its SHA-256.

    \b
    Each digest is that of the one before (64 zeros for the first), a newline, the body's SHA-256 and a newline:
      printf '%s\\n%s\\n' "$PREVIOUS" "$(printf %s "$BODY" | sha256sum | cut -c-64)" | sha256sum
    """
    config = session.sound_config()
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


def _parsed(text: str) -> Head:
    from quaymaster.store import Head

    found = Head.parsed(text)
    if found is None:
        raise UsageError(f"--head {text} is not an entry", "Write its number, a colon and its SHA-256 in hex")
    return found
