"""What the service does at this moment, in one record: ``status --json``, and what everything else shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from quaymaster import __version__
from quaymaster.model import Job, State
from quaymaster.service.view.records import Record, path_record

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Store

FRESH = 5.0
"""Seconds for which the service's word on progress counts; it gives one every second."""

PARKED_LOOKED_AT = 10_000
"""The newest parked jobs are grouped by their error; more would only make the command slow."""

_Reports = Mapping[str, tuple[float, Mapping[str, Any]]]


def snapshot(config: Config, store: Store, pid: int | None, now: float) -> Record:
    reports, counts = store.reports(), store.counts()
    return {
        "version": __version__,
        "at": now,
        "service": _service(reports, pid),
        "totals": _tally(counts.values()),
        "next_retry": store.next_retry(),
        "oldest_open": store.oldest_open(),
        "verify": _verify(config, reports),
        "watches": _watches(config, reports, counts, running=pid is not None),
        "destinations": _destinations(config, reports, running=pid is not None),
        "running": _running(store.jobs(_states(State.RUNNING)), reports, pid, now),
        "parked": _parked(store.jobs(_states(State.PARKED, limit=PARKED_LOOKED_AT))),
    }


def _states(state: State, limit: int = 0) -> Any:
    from quaymaster.store import Filter

    return Filter(states=(state,), limit=limit)


def _service(reports: _Reports, pid: int | None) -> Record:
    _, said = reports.get("service", (0.0, {}))
    if pid is None:
        return {"state": "stopped", "pid": None, "version": None, "started_at": None}
    if said.get("pid") != pid:  # it has the lock and has not said yet that it is ready
        return {"state": "starting", "pid": pid, "version": None, "started_at": None}
    return {key: said.get(key) for key in ("state", "pid", "version", "started_at")}


def _verify(config: Config, reports: _Reports) -> Record:
    """The last run of the schedule, as service/scrubber.py reports it."""
    _, said = reports.get("verify", (0.0, {}))
    names = (
        "level",
        "started_at",
        "seconds",
        "complete",
        "copies",
        "good",
        "missing",
        "changed",
        "damaged",
        "unreachable",
    )
    return {"interval": config.verify.interval, "last": {name: said.get(name) for name in names} if said else None}


def _tally(of_watches: Iterable[Mapping[State, tuple[int, int]]]) -> dict[str, dict[str, int]]:
    totals = {state.value: {"jobs": 0, "bytes": 0} for state in State}
    for states in of_watches:
        for state, (jobs, size) in states.items():
            totals[state.value]["jobs"] += jobs
            totals[state.value]["bytes"] += size
    return totals


def _watches(
    config: Config, reports: _Reports, counts: Mapping[str, Mapping[State, tuple[int, int]]], *, running: bool
) -> list[Record]:
    found = []
    for name in [*config.watches, *(name for name in sorted(counts) if name not in config.watches)]:
        configured = config.watches.get(name)
        said = dict(reports.get(f"watch:{name}", (0.0, {}))[1]) if running and configured else {}
        state = said.pop("state", "starting") if running else "stopped"
        found.append(
            {
                "name": name,
                "path": configured.path if configured else None,
                "mode": said.pop("mode", None) or (configured.mode if configured else None),
                "state": state if configured else "not configured",
                "reason": said.pop("reason", "") or "",
                "since": said.pop("since", None) or None,
                "jobs": _tally([counts.get(name, {})]),
                "seen": {key: value for key, value in said.items() if key != "name"},
            }
        )
    return found


def _destinations(config: Config, reports: _Reports, *, running: bool) -> list[Record]:
    found = []
    for name, destination in config.destinations.items():
        said = reports.get(f"destination:{name}", (0.0, {}))[1] if running else {}
        found.append(
            {
                "name": name,
                "type": destination.type,
                "state": said.get("state", "unused") if running else "stopped",
                "error": said.get("error", "") or "",
                "since": said.get("since"),
            }
        )
    return found


def _running(jobs: Iterable[Job], reports: _Reports, pid: int | None, now: float) -> list[Record]:
    at, said = reports.get("progress", (0.0, {}))
    fresh = pid is not None and now - at <= FRESH
    progress = said.get("jobs", {}) if fresh else {}
    found = []
    for job in jobs:
        moved = progress.get(str(job.id), {})
        found.append(
            {
                "id": job.id,
                "watch": job.version.watch,
                **path_record(job.version.path),
                "size": job.version.size,
                "stage": moved.get("stage") or (job.stage.value if job.stage else None),
                "source_bytes": moved.get("source_bytes"),
                "stored_bytes": moved.get("stored_bytes"),
                "since": moved.get("since") or job.started_at,
            }
        )
    return found


def _parked(jobs: Iterable[Job]) -> list[Record]:
    """Grouped by error code, the most frequent first, each with its newest job."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.error_code, []).append(job)
    return [
        {
            "error_code": code,
            "jobs": len(of_code),
            "bytes": sum(job.version.size for job in of_code),
            "newest": {"id": of_code[0].id, "watch": of_code[0].version.watch, **path_record(of_code[0].version.path)},
            "error": of_code[0].error,
            "retry": f"quaymaster jobs retry --error {code}" if code else f"quaymaster jobs retry {of_code[0].id}",
        }
        for code, of_code in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
