"""``quaymaster units``: the directories that are delivered as one (PRODUCT W5)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from quaymaster.cli import complete as offer
from quaymaster.cli import show
from quaymaster.cli.pause import operator
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import QuaymasterError
from quaymaster.model import State

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Store, Unit

_MOST_MISSING = 20
"""Files that are not delivered, and are named."""
_STATES = ("open", "complete", "published", "abandoned")


@click.group("units", invoke_without_command=True)
@click.option("--watch", metavar="NAME", default="", shell_complete=offer.watches, help="Only units of this watch.")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only in this state; repeatable.")
@in_session
@click.pass_context
def command(context: click.Context, session: Session, watch: str, states: tuple[str, ...]) -> int | None:
    """List the directories that count as delivered only when they are whole, and what each waits for.

    \b
    Examples:
      quaymaster units --state open
      quaymaster units show /srv/sequencer/240722_A00291_0576
      quaymaster units complete /srv/sequencer/240722_A00291_0576
    """
    if context.invoked_subcommand is not None:
        return None
    from quaymaster.service.view.units import chosen_units, unit_record
    from quaymaster.store import UnitState

    config, now = session.config(), time.time()
    with session.store(config) as store:
        units = chosen_units(config, store, watch=watch, states=[UnitState(state) for state in states])
        found = [unit_record(config, unit, now) for unit in units]
    if session.json:
        print(show.as_json({"units": found}))
        return 0
    if not found:
        print("there is no such unit")
        return 0
    rows = [
        (
            show.cut(unit["watch"], 20),
            unit["state"] + (" OVERDUE" if unit["overdue"] else ""),
            str(unit["generation"]),
            show.count(unit["files"]) if unit["files"] else "-",
            show.when(unit["published_at"] or unit["opened_at"]),
            show.plain(unit["path"]) + (f"  ({show.plain(unit['why'])})" if unit["why"] else ""),
        )
        for unit in found
    ]
    print("\n".join(show.table(("WATCH", "STATE", ">GENERATION", ">FILES", "SINCE", "UNIT"), rows)))
    return 0


@command.command("show")
@click.argument("path", metavar="PATH", shell_complete=offer.units())
@in_session
def show_one(session: Session, path: str) -> int:
    """Show one unit: how it stands, what it waits for, and its files that are not delivered."""
    from quaymaster.service.view.units import unit_at, unit_record

    config, now = session.config(), time.time()
    with session.store(config) as store:
        unit = unit_at(config, store, path)
        record = unit_record(config, unit, now)
        missing, number = _undelivered(config, store, unit)
    record |= {"undelivered": [{"path": p, "state": s.value, "error": e} for p, s, e in missing]}
    record["undelivered_count"] = number
    if session.json:
        print(show.as_json(record))
        return 0
    print(f"{show.plain(record['path'])} of watch {unit.watch}: {unit.state}, generation {unit.generation}")
    contents = f"{show.count(unit.files, 'file')}, {show.size(unit.bytes)}" if unit.digest else ""
    lines = show.facts(
        [
            ("waits for", show.plain(unit.why)),
            ("overdue", "yes" if record["overdue"] else ""),
            ("opened", show.when(unit.opened_at)),
            ("last new file", show.when(unit.changed_at)),
            ("complete", f"{show.when(unit.completed_at)} by {unit.complete_by}" if unit.completed_at else ""),
            ("published", show.when(unit.published_at)),
            ("contents", contents),
            ("missing", show.count(unit.missing) if unit.missing else ""),
            ("digest", f"sha256:{unit.digest}" if unit.digest else ""),
        ]
    )
    print("\n".join(lines))
    if number:
        print(f"not delivered: {show.count(number, 'file')}")
        for name, state, error in missing:
            print(show.plain(f"  {name}: {state.value}" + (f", {error}" if error else "")))
        if number > len(missing):
            print(f"  ... and {number - len(missing):,} more: quaymaster jobs")
    return 0


def _undelivered(config: Config, store: Store, unit: Unit) -> tuple[list[tuple[str, State, str]], int]:
    from quaymaster.model import shown

    watch = config.watches.get(unit.watch)
    found, number = [], 0
    for path, state, error in store.units.undelivered(unit, len(watch.destinations) if watch else 1):
        number += 1
        if number <= _MOST_MISSING:
            found.append((shown(path), state, error))
    return found, number


@command.command("complete")
@click.argument("path", metavar="PATH", shell_complete=offer.units("open", "complete", "abandoned"))
@in_session
def complete(session: Session, path: str) -> int:
    """Publish what there is of a unit, although something is missing: its manifest says so, and by whom. What is
    delivered later makes the next generation. The service does it as soon as it runs."""
    return _act(session, path, "complete")


@command.command("abandon")
@click.argument("path", metavar="PATH", shell_complete=offer.units("open", "complete"))
@in_session
def abandon(session: Session, path: str) -> int:
    """Close a unit without a manifest. Its files travel on; with after = "delete" or "move" they stay where they are.
    quaymaster units complete opens it again."""
    return _act(session, path, "abandon")


def _act(session: Session, path: str, action: str) -> int:
    from quaymaster.service.view.units import unit_at, unit_record

    config, by = session.config(), operator(os.environ)
    with session.store(config) as store:
        unit = unit_at(config, store, path)
        if unit.state == "published":
            raise QuaymasterError(
                f"{show.plain(path)} is published already (generation {unit.generation})",
                "Whatever lands in it makes the next generation",
            )
        if action == "complete":
            store.units.force(unit, by)
        else:
            store.units.abandon(unit, by)
        now = store.units.get(unit.watch, unit.path)
        assert now is not None
        record = unit_record(config, now, time.time())
    if session.json:
        print(show.as_json(record))
    elif action == "complete":
        print(f"{show.plain(path)}: what there is of it is published; follow it with: quaymaster units show")
    else:
        print(f"{show.plain(path)} is abandoned")
    return 0
