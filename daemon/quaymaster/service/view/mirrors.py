"""How the mirrors stand, as the service last reported it, and what is wrong with one (PRODUCT M5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quaymaster.service.view.records import Record

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Control

_LATE_LISTINGS, _LATE = 10, 15.0
"""So many intervals, and seconds, without a listing: then a mirror is not well."""


def mirrors(
    config: Config, reports: Mapping[str, tuple[float, Mapping[str, Any]]], control: Control, *, running: bool
) -> list[Record]:
    found = []
    for name, mirror in config.mirrors.items():
        said = dict(reports.get(f"mirror:{name}", (0.0, {}))[1])
        paused = control.paused.get(name)
        empty: Record = {"reason": "", "since": None, "last_good": None, "listed": 0, "bytes": 0, "released": 0}
        empty |= {"waiting": {}, "quarantined": {}, "refused": {}, "server": ""}
        found.append(
            {
                **empty,
                **said,
                "name": name,
                "path": mirror.path,
                "source": mirror.source,
                "state": said.get("state", "starting") if running else "stopped",
                "paused": {"since": paused.since, "by": paused.by} if paused else None,
            }
        )
    return found


def wrong_with(mirror: Record, now: float, interval: float) -> list[str]:
    """What is wrong with a mirror."""
    name = f"mirror {mirror['name']}"
    why = [f"{name} fails: {mirror['reason']}"] if mirror["state"] == "outage" else []
    late = now - mirror["last_good"] if mirror["last_good"] and not mirror["paused"] else 0.0
    if late > interval * _LATE_LISTINGS + _LATE and not why:
        why.append(f"{name} has not listed its bucket for {late:.0f} s")
    if mirror["server"]:
        why.append(f"{name}: {mirror['server']}")
    if mirror["quarantined"]:
        why.append(f"{name} has versions that were not taken: {', '.join(mirror['quarantined'])}")
    return why
