"""Units for commands and the API: how each stands, and which are overdue (PRODUCT W5)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from quaymaster.errors import QuaymasterError, UsageError
from quaymaster.model import plain, shown
from quaymaster.service.view.locate import locate
from quaymaster.service.view.records import Record, path_record

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Store, Unit, UnitState


def unit_record(config: Config, unit: Unit, now: float) -> Record:
    """As ``--json`` and the API have it; times in seconds since the epoch."""
    return {
        "watch": unit.watch,
        **path_record(unit.path),
        "state": unit.state.value,
        "generation": unit.generation,
        "why": unit.why,
        "overdue": is_overdue(config, unit, now),
        "opened_at": unit.opened_at,
        "changed_at": unit.changed_at,
        "completed_at": unit.completed_at,
        "published_at": unit.published_at,
        "complete_by": unit.complete_by,
        "forced_by": unit.forced_by,
        "files": unit.files,
        "bytes": unit.bytes,
        "missing": unit.missing,
        "digest": unit.digest,
    }


def is_overdue(config: Config, unit: Unit, now: float) -> bool:
    """Whether it is not published after the time that its watch gives it."""
    watch = config.watches.get(unit.watch)
    if watch is None or not watch.unit or watch.unit_open_max is None or unit.state in ("published", "abandoned"):
        return False
    return now - unit.opened_at > watch.unit_open_max


def units_of_watches(config: Config, store: Store, now: float) -> dict[str, Record]:
    """For each watch that has units: how many are in each state, since when the oldest of those that are not published
    is open, and those that are overdue (three at most by name)."""
    from quaymaster.store import UnitState

    counts = store.units.counts()
    found: dict[str, Record] = {}
    for name, watch in config.watches.items():
        if watch.unit:
            tally = counts.get(name, {})
            unpublished: list[Unit] = []
            if tally.get(UnitState.OPEN) or tally.get(UnitState.COMPLETE):
                unpublished = store.units.find(name, (UnitState.OPEN, UnitState.COMPLETE))
            late = [unit for unit in unpublished if is_overdue(config, unit, now)]
            found[name] = {
                **{state.value: tally.get(state, 0) for state in UnitState},
                "oldest_open": min((unit.opened_at for unit in unpublished), default=None),
                "overdue": len(late),
                "examples": [{**path_record(unit.path), "why": unit.why or unit.state.value} for unit in late[:3]],
            }
    return found


def overdue_text(watch: str, units: Record) -> str:
    """An alarm, for people; empty when there is none."""
    if not units["overdue"]:
        return ""
    first = units["examples"][0]
    more = f" and {units['overdue'] - 1:,} more" if units["overdue"] > 1 else ""
    return f"unit {first['path']}{more} of watch {watch} is overdue: {first['why']}"


def chosen_units(config: Config, store: Store, *, watch: str = "", states: Sequence[UnitState] = ()) -> Iterable[Unit]:
    """Raises UsageError for a watch that the configuration does not have."""
    if watch and watch not in config.watches:
        raise UsageError(f"There is no watch {plain(watch)}", f"The watches are: {', '.join(config.watches)}")
    return store.units.find(watch, states)


def unit_at(config: Config, store: Store, path: str) -> Unit:
    """The unit that is the directory PATH, or that a file or directory PATH is in. Raises QuaymasterError."""
    place = locate(config, os.fsencode(path))
    unit = place.watch.unit_of(os.path.join(place.path, b"x")) if place.path else None
    found = store.units.get(place.watch.name, unit) if unit is not None else None
    if found is None:
        advice = "List those that are known: quaymaster units"
        if not place.watch.unit:
            advice = f'Watch {place.watch.name} has none; write unit = "directory" into its table'
        raise QuaymasterError(f"{shown(place.full)} is no unit, and in none", advice)
    return found
