"""What operators ask of the service, whether it runs or not: which watches are paused, which are to be scanned.

Kept as the report ``control``, so that it survives restarts; the running service looks at it every second. Functions
here take a transaction; store.Store composes and commits them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from quaymaster.store import custody
from quaymaster.store.db import Transaction

_NAME = "control"


@dataclass(frozen=True, slots=True)
class Pause:
    since: float
    """Seconds since the epoch."""
    by: str
    """Who asked for it, for people."""


@dataclass(frozen=True, slots=True)
class Control:
    paused: Mapping[str, Pause] = field(default_factory=dict)
    """Watches of which no job is begun."""
    scans: Mapping[str, int] = field(default_factory=dict)
    """How often a scan of each watch was asked for, ever."""


def read(t: Transaction) -> Control:
    row = t.execute("SELECT body FROM reports WHERE name = ?", (_NAME,)).fetchone()
    said = json.loads(row[0]) if row else {}
    paused = {name: Pause(float(body["since"]), str(body["by"])) for name, body in said.get("paused", {}).items()}
    return Control(paused, {name: int(number) for name, number in said.get("scans", {}).items()})


def pause(t: Transaction, watches: Iterable[str], by: str, now: float) -> list[str]:
    """Those that were not paused before."""
    before = read(t)
    new = [name for name in watches if name not in before.paused]
    if new:
        _write(t, Control({**before.paused, **{name: Pause(now, by) for name in new}}, before.scans), now)
        custody.append(t, "paused", now, details={"watches": new, "by": by})
    return new


def resume(t: Transaction, watches: Iterable[str], by: str, now: float) -> list[str]:
    """Those that were paused."""
    before = read(t)
    ended = [name for name in watches if name in before.paused]
    if ended:
        left = {name: said for name, said in before.paused.items() if name not in ended}
        _write(t, Control(left, before.scans), now)
        custody.append(t, "resumed", now, details={"watches": ended, "by": by})
    return ended


def rescan(t: Transaction, watches: Iterable[str], by: str, now: float) -> None:
    before, names = read(t), list(watches)
    _write(t, Control(before.paused, {**before.scans, **{n: before.scans.get(n, 0) + 1 for n in names}}), now)
    custody.append(t, "rescan", now, details={"watches": names, "by": by})


def _write(t: Transaction, control: Control, now: float) -> None:
    body = {"paused": {name: asdict(said) for name, said in control.paused.items()}, "scans": dict(control.scans)}
    t.execute("INSERT OR REPLACE INTO reports VALUES (?, ?, ?)", (_NAME, json.dumps(body), now))
