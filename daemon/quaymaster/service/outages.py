"""Outages of watches, destinations and mirrors, noted in the custody log when they begin and end (PRODUCT W6, O4).

Which are open is kept in the store with it, so that an outage that a restart falls into is noted once, and its end too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from quaymaster.intake.intake import WatchStatus
from quaymaster.store import Store

REPORT = "outages"
_LASTING = 10.0
"""Seconds for which a destination or mirror must have failed: a full disk may fail large files only, a listing once."""


class Outages:
    """To be called in one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: dict[str, float] = store.reports().get(REPORT, (0.0, {}))[1].get("open", {})
        """"watch NAME", "destination NAME" or "mirror NAME" -> since when."""

    def look(self, watches: Iterable[WatchStatus], destinations: _Reports, mirrors: _Reports, now: float) -> None:
        """How the parts stand now; ``destinations`` and ``mirrors`` as the service reports them. Raises StoreError, and
        has noted nothing then."""
        entries: list[tuple[str, Mapping[str, Any]]] = []
        still = dict(self._open)
        states = [("watch", w.name, w.state, w.reason, w.since) for w in watches]
        states += [("destination", n, d["state"], d["error"], d["since"]) for n, d in destinations.items()]
        states += [("mirror", n, m["state"], m["reason"], m["since"]) for n, m in mirrors.items()]
        for kind, name, state, reason, since in states:
            part = f"{kind} {name}"
            away = state in _AWAY and (kind == "watch" or now - since >= _LASTING)
            about = {"watch": name, "mirror": name} if kind == "mirror" else {kind: name}
            if away and part not in still:
                still[part] = since or now
                entries.append(("outage", {**about, "error": reason, "since": round(still[part], 3)}))
            elif part in still and state in _WELL:
                lasted = max(0.0, now - still.pop(part))
                entries.append(("recovered", {**about, "seconds": round(lasted, 1)}))
        known = {f"{kind} {name}" for kind, name, *_ in states}
        still = {part: since for part, since in still.items() if part in known}
        if still != self._open or entries:
            self._store.note_outages(entries, still)
            self._open = still


_Reports = Mapping[str, Mapping[str, Any]]
_AWAY = frozenset({"outage", "failing"})
_WELL = frozenset({"ok", "watching", "degraded"})
"""Not those in which nothing is known yet: "starting", "unused"."""
