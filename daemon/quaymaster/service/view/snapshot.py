"""What the service does at this moment, in one record: ``status --json``, and what everything else shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quaymaster import __version__
from quaymaster.model import Job, State, watch_of
from quaymaster.service.view.hooks import hook_records
from quaymaster.service.view.mirrors import mirrors
from quaymaster.service.view.records import Record, job_record, path_record
from quaymaster.service.view.units import units_of_watches

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Control, Held, Store

FRESH = 5.0
"""Seconds for which the service's word on progress counts; it gives one every second."""

_LATE = 12.0
"""Seconds that a report of what moves may be old and still be of now."""
_AMOUNTS = ("files", "source_bytes", "stored_bytes")
"""In the order in which the service reports them."""

_Reports = Mapping[str, tuple[float, Mapping[str, Any]]]


def snapshot(config: Config, store: Store, pid: int | None, now: float) -> Record:
    """``pid``: the process of the running service, if there is one. Takes no longer with a longer queue or history.
    Raises StoreError."""
    reports, counts, control = store.reports(), store.counts(), store.control()
    of_rates = reports.get("rates", (0.0, {}))[1] if pid is not None else {}
    totals = _tally(counts.values())
    running = _running(store.jobs(_states(State.RUNNING)), reports, pid, now)
    rates = throughput(reports.get("rates", (0.0, {})), now)
    held = store.held()
    return {
        "version": __version__,
        "at": now,
        "service": _service(reports, pid),
        "totals": totals,
        "next_retry": store.next_retry(),
        "oldest_open": store.oldest_open(),
        "verify": _verify(config, reports),
        "rates": rates,
        "eta_seconds": _eta(counts, control, running, rates) if pid is not None else None,
        "ceilings": reports.get("ceilings", (0.0, {}))[1] if pid is not None else {},
        "watches": _watches(config, store, reports, counts, control, now, running=pid is not None),
        "mirrors": [
            {**each, "jobs": _tally([counts.get(each["name"], {})])}
            for each in mirrors(config, reports, control, running=pid is not None)
        ],
        "destinations": _destinations(config, reports, of_rates, running=pid is not None),
        "hooks": hook_records(config, store, now),
        "running": running,
        "waiting": [_group(group) for group in held if group.state is State.WAITING],
        "parked": [_group(group) for group in held if group.state is State.PARKED],
        "failures": list(of_rates.get("failures", ())),
        "stalled": list(reports.get("hung", (0.0, {}))[1].get("jobs", {}).values()) if pid is not None else [],
    }


def progress(store: Store, number: int, pid: int | None, now: float) -> Record | None:
    """How far one job is; None when there is no job of that number. Raises StoreError."""
    from quaymaster.store import Filter

    found = store.jobs(Filter(ids=(number,)))
    if not found:
        return None
    job = found[0]
    moved = _running([job], store.reports(), pid, now)[0] if job.state is State.RUNNING else {}
    return {**job_record(job), **moved, "at": now}


def _states(state: State) -> Any:
    from quaymaster.store import Filter

    return Filter(states=(state,))


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
    config: Config,
    store: Store,
    reports: _Reports,
    counts: Mapping[str, Mapping[State, tuple[int, int]]],
    control: Control,
    now: float,
    *,
    running: bool,
) -> list[Record]:
    found, first, units = [], store.first_queued(), units_of_watches(config, store, now)
    known = {*config.watches, *store.mirrors()}
    others = (name for name in sorted(counts) if name not in known and name == watch_of(name))
    for name in [*config.watches, *others]:
        configured = config.watches.get(name)
        said = dict(reports.get(f"watch:{name}", (0.0, {}))[1]) if running and configured else {}
        state = said.pop("state", "starting") if running else "stopped"
        paused = control.paused.get(name)
        found.append(
            {
                "name": name,
                "path": configured.path if configured else None,
                "mode": said.pop("mode", None) or (configured.mode if configured else None),
                "state": state if configured else "not configured",
                "reason": said.pop("reason", "") or "",
                "since": said.pop("since", None) or None,
                "paused": {"since": paused.since, "by": paused.by} if paused else None,
                "oldest_queued": first.get(name),
                "jobs": _tally([counts.get(name, {})]),
                "units": units.get(name),
                "seen": {key: value for key, value in said.items() if key != "name"},
            }
        )
    return found


def _destinations(config: Config, reports: _Reports, rates: Mapping[str, Any], *, running: bool) -> list[Record]:
    found = []
    for name, destination in config.destinations.items():
        said = reports.get(f"destination:{name}", (0.0, {}))[1] if running else {}
        moved = [pair for pair in rates.get("delivered", ()) if pair["destination"] == name]
        found.append(
            {
                "name": name,
                "type": destination.type,
                "state": said.get("state", "unused") if running else "stopped",
                "error": said.get("error", "") or "",
                "since": said.get("since"),
                "delivered": [{key: pair[key] for key in ("watch", *_AMOUNTS)} for pair in moved],
            }
        )
    return found


def _running(jobs: Iterable[Job], reports: _Reports, pid: int | None, now: float) -> list[Record]:
    at, said = reports.get("progress", (0.0, {}))
    fresh = pid is not None and now - at <= FRESH
    known = said.get("jobs", {}) if fresh else {}
    found = []
    for job in jobs:
        moved = known.get(str(job.id), {})
        done, stored, rate = moved.get("source_bytes"), moved.get("stored_bytes"), moved.get("rate")
        found.append(
            {
                "id": job.id,
                "watch": job.version.watch,
                **path_record(job.version.path),
                "size": job.version.size,
                "stage": moved.get("stage") or (job.stage.value if job.stage else None),
                "source_bytes": done,
                "stored_bytes": stored,
                "since": moved.get("since") or job.started_at,
                "ratio": done / stored if done and stored else None,
                "rate": rate,
                "eta_seconds": (job.version.size - done) / rate if rate and done is not None else None,
            }
        )
    return found


def _group(held: Held) -> Record:
    """Jobs with the same error, with their newest one."""
    newest, code = held.newest, held.error_code
    return {
        "error_code": code,
        "jobs": held.jobs,
        "bytes": held.bytes,
        "next_retry": held.next_retry,
        "newest": {"id": newest.id, "watch": newest.version.watch, **path_record(newest.version.path)},
        "error": newest.error,
        "retry": f"quaymaster jobs retry --error {code}" if code else f"quaymaster jobs retry {newest.id}",
    }


# -- what moves, and how long it will take --


def throughput(report: tuple[float, Mapping[str, Any]], now: float) -> Record:
    """Means over the last minute and the last 15 (over the time since the start, if that is shorter), and what moved
    in each minute of the last hour. The service reports up to ten seconds late while something moves."""
    at, said = report
    since = float(said.get("since", now))
    end = at if 0 <= now - at <= _LATE else now
    minutes = {int(m[0]): list(m[1:]) for m in said.get("minutes", ()) if now - m[0] < 61 * 60}
    slots = [s for s in said.get("slots", ()) if s[0] > end - 60]
    recent = [[m, *amounts] for m, amounts in minutes.items() if m > end - 15 * 60]
    found: Record = {"since": said.get("since")}
    for index, name in enumerate(_AMOUNTS, start=1):
        found[f"{name}_per_second"] = {
            "1m": sum(slot[index] for slot in slots) / _span(slots, since, end, 60.0),
            "15m": sum(minute[index] for minute in recent) / _span(recent, since, end, 900.0),
        }
    source, stored = (sum(amounts[index] for amounts in minutes.values()) for index in (1, 2))
    found["ratio"] = source / stored if source and stored else None
    last = int(now) // 60 * 60
    found["minutes"] = [
        {"at": m, **dict(zip(_AMOUNTS, minutes.get(m, [0, 0, 0]), strict=True))}
        for m in range(last - 59 * 60, last + 1, 60)
    ]
    return found


def _span(slots: Sequence[Sequence[float]], since: float, end: float, most: float) -> float:
    """The seconds that these slots are of: shorter than ``most`` soon after the first start."""
    return max(1.0, min(most, end - min([since, *(slot[0] for slot in slots)])))


def _eta(
    counts: Mapping[str, Mapping[State, tuple[int, int]]], control: Control, running: list[Record], rates: Record
) -> float | None:
    """Seconds until the queue is empty, as it goes now; None when nothing moves. Paused watches do not count, nor what
    waits for a retry."""
    queued = [states.get(State.QUEUED, (0, 0)) for name, states in counts.items() if name not in control.paused]
    size = sum(bytes_of for _, bytes_of in queued) + sum(r["size"] - (r["source_bytes"] or 0) for r in running)
    files = sum(number for number, _ in queued) + len(running)
    if not files:
        return 0.0
    for window in ("1m", "15m"):
        by_size, by_number = rates["source_bytes_per_second"][window], rates["files_per_second"][window]
        if size and by_size:
            return float(size / by_size)
        if by_number:
            return float(files / by_number)
    return None
