"""One file: what became of it or what it still waits for (``why``), and everything that proves it (``prove``)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quaymaster.errors import SourceRefused
from quaymaster.model import Identity, Job, State, plain, shown
from quaymaster.service.view.locate import PATIENCE, Place
from quaymaster.service.view.records import Record, delivery_record, entry_record, job_record, path_record

if TYPE_CHECKING:
    from quaymaster.intake.why import Evidence
    from quaymaster.store import Delivery, Entry, Store

Eyes = Callable[[], AbstractContextManager[None]]


@dataclass
class Findings:
    place: Place
    service_runs: bool
    there: bool = True
    """Something has this name on the disk."""
    jobs: list[Job] = field(default_factory=list)
    """Of this very path, oldest first."""
    job: Job | None = None
    """Of the version that is on the disk now; of the last one if there is none any more."""
    deliveries: list[Delivery] = field(default_factory=list)
    """By ``job``."""
    below: Counter[State] = field(default_factory=Counter)
    """Jobs of the files below, when the path is a directory."""
    evidence: Sequence[Evidence] = ()


def look(place: Place, store: Store, service: int | None, eyes: Eyes = nullcontext) -> Findings:
    """``service`` is the process that runs, if one does; ``eyes``: with whose permissions the file is looked at.
    Raises StoreError."""
    from quaymaster.config.disk import within
    from quaymaster.intake.why import Evidence, why
    from quaymaster.store import Filter

    watch, path = place.watch, place.path
    found = Findings(place, service is not None)
    if path:
        found.jobs = store.jobs(Filter(watch=watch.name, path=path, exact=True))
    found.below = Counter(store.states_below(watch.name, path))
    try:
        found.there, identity = within(PATIENCE, lambda: _on_disk(place))
    except TimeoutError:
        found.job = found.jobs[-1] if found.jobs else None
        text = f"{place.shown} does not answer within {PATIENCE:g} s; is its mount hung?"
        found.evidence = [Evidence(False, text)]
    else:
        matching = [job for job in found.jobs if job.version.identity == identity and job.state != State.SUPERSEDED]
        found.job = matching[-1] if matching else found.jobs[-1] if found.jobs and not found.there else None
        if path and found.job is None:
            with eyes():
                seen = why(watch, path, known=store.known)
            found.evidence = [*_trouble(store, watch.name, service), *seen, *_unit(place, store)]
    found.deliveries = store.deliveries_of(found.job) if found.job else []
    return found


def _trouble(store: Store, watch: str, service: int | None) -> list[Evidence]:
    """What the running service said of the whole watch."""
    from quaymaster.intake.why import Evidence

    _, said = store.reports().get(f"watch:{watch}", (0.0, {}))
    if service is None or not said.get("reason"):
        return []
    return [Evidence(None, f"the watch is {said['state']}: {said['reason']}")]


def _unit(place: Place, store: Store) -> list[Evidence]:
    """Whether it waits for the unit that it is in."""
    from quaymaster.intake.why import Evidence

    path = place.watch.unit_of(place.path) if place.watch.upload == "unit" else None
    if path is None:
        return []
    unit = store.units.get(place.watch.name, path)
    if unit is not None and unit.released:
        return [Evidence(True, f"its unit {shown(path)} is whole")]
    why = f": {unit.why}" if unit and unit.why else ""
    return [Evidence(False, f"its unit {shown(path)} is not whole yet{why}")]


def _on_disk(place: Place) -> tuple[bool, Identity | None]:
    """Whether anything is there, and which version of a file."""
    from quaymaster.source import Root, identity_of

    root = Root(os.path.realpath(place.watch.path), hard_links=True)
    try:
        descriptor = root.open(place.path)
    except (OSError, SourceRefused):
        return os.path.lexists(os.path.join(os.fsencode(root.path), place.path)), None
    try:
        return True, identity_of(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def why_record(found: Findings) -> Record:
    return {
        "watch": found.place.watch.name,
        "watch_path": found.place.watch.path,
        **path_record(found.place.path),
        "state": found.job.state.value if found.job else "not queued",
        "service_running": found.service_runs,
        "job": job_record(found.job) if found.job else None,
        "other_jobs": [job_record(job) for job in found.jobs if job is not found.job],
        "deliveries": [delivery_record(delivery) for delivery in found.deliveries],
        "jobs_below": {state.value: number for state, number in found.below.items()},
        "evidence": [{"ok": item.ok, "text": plain(item.text)} for item in found.evidence],
    }


# -- the proof --


@dataclass(frozen=True)
class Trail:
    """What is recorded of the deliveries of one file."""

    place: Place
    deliveries: list[Delivery]
    """Oldest first."""
    jobs: list[Job]
    custody: dict[int, list[Entry]]
    """Of each job."""
    fault: str
    """What contradicts the proof; empty for nothing."""
    chain: bool
    """Whether the whole custody log was checked too."""


def trail(place: Place, store: Store, *, chain: bool) -> Trail:
    """``chain``: check the whole custody log first, which takes some seconds for a million entries."""
    from quaymaster.store import Filter

    watch, path = place.watch.name, place.path
    deliveries = store.deliveries(watch, path) if path else []
    jobs = store.jobs(Filter(watch=watch, path=path, exact=True)) if path else []
    custody = {job.id: store.history(job) for job in jobs}
    return Trail(place, deliveries, jobs, custody, _fault(store, deliveries, custody, chain=chain), chain)


def prove_record(found: Trail) -> Record:
    return {
        "watch": found.place.watch.name,
        "watch_path": found.place.watch.path,
        **path_record(found.place.path),
        "deliveries": [delivery_record(delivery) for delivery in found.deliveries],
        "jobs": [job_record(job) for job in found.jobs],
        "custody": [entry_record(entry) for job in found.jobs for entry in found.custody[job.id]],
        "fault": found.fault,
        "chain_checked": found.chain,
    }


def _fault(store: Store, deliveries: list[Delivery], custody: dict[int, list[Entry]], *, chain: bool) -> str:
    from quaymaster.store import ledger

    broken = store.custody_broken_at() if chain else None
    if broken is not None:
        return f"The custody log is broken at entry {broken}"
    for delivery in deliveries:
        expected = ledger.details(delivery.proof).items()
        said = [entry.fields for entry in custody.get(delivery.proof.job, ())]
        logged = [fields for fields in said if fields.get("kind") in ("delivered", "adopted")]
        if not any(expected <= fields.items() for fields in logged):
            where = plain(delivery.proof.destination)
            return f"The ledger's delivery to {where} (job {delivery.proof.job}) is not what the custody log says"
    return ""
