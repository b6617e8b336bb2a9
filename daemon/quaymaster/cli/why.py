"""``quaymaster why``: what became of a file, or what it is still waiting for (PRODUCT W4)."""

from __future__ import annotations

import os
import pwd
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from quaymaster.cli import records, show
from quaymaster.cli.locate import PATIENCE, Place, locate
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import SourceRefused
from quaymaster.model import Identity, Job, State, shown

if TYPE_CHECKING:
    from quaymaster.intake.why import Evidence
    from quaymaster.store import Delivery, Store


@dataclass
class _Findings:
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


@click.command("why")
@click.argument("path")
@in_session
def command(session: Session, path: str) -> int:
    """Say what became of a file: delivered, queued, waiting or parked and why, or what keeps it from being taken.

    Marks: [ok] in order, [missing] this keeps it back, [?] cannot be told from here.

    \b
    Examples:
      quaymaster why /srv/sequencer/run7/reads.fastq
      quaymaster why reads.fastq --json
    """
    config = session.config()
    from quaymaster.service.lock import holder

    place = locate(config, os.fsencode(path))
    with session.store(config) as store:
        found = _look(place, store, holder(config.service.state_dir))
    print(show.as_json(_record(found)) if session.json else "\n".join(_lines(found)))
    return 0


def _look(place: Place, store: Store, service: int | None) -> _Findings:
    """``service`` is the process that runs, if one does."""
    from quaymaster.config.disk import within
    from quaymaster.intake.why import Evidence, why
    from quaymaster.store import Filter

    watch, path = place.watch, place.path
    found = _Findings(place, service is not None)
    for job in store.jobs(Filter(watch=watch.name, path=path)):
        if path and job.version.path == path:
            found.jobs.append(job)
        else:
            found.below[job.state] += 1
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
            with _eyes_of(service, store.path):
                found.evidence = [*_trouble(store, watch.name, service), *why(watch, path, known=store.known)]
    found.deliveries = store.deliveries_of(found.job) if found.job else []
    return found


def _trouble(store: Store, watch: str, service: int | None) -> list[Evidence]:
    """What the running service said of the whole watch."""
    from quaymaster.intake.why import Evidence

    _, said = store.reports().get(f"watch:{watch}", (0.0, {}))
    if service is None or not said.get("reason"):
        return []
    return [Evidence(None, f"the watch is {said['state']}: {said['reason']}")]


@contextmanager
def _eyes_of(service: int | None, database: str) -> Iterator[None]:
    """Look with the permissions of the service when root asks: what root can read says nothing about it."""
    owner = os.stat(database)
    if os.geteuid() != 0 or not owner.st_uid:
        yield
        return
    mine = os.getgroups()
    os.setgroups(_groups(service, owner))
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(mine)


def _groups(service: int | None, owner: os.stat_result) -> list[int]:
    """Supplementary groups: those of the process, which the unit may have given more; else of its user."""
    try:
        with open(f"/proc/{service}/status") as file:
            told = next(line for line in file if line.startswith("Groups:"))
        return [int(group) for group in told.split()[1:]]
    except (OSError, StopIteration):
        pass
    try:
        return os.getgrouplist(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
    except KeyError:
        return [owner.st_gid]


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


def _record(found: _Findings) -> records.Record:
    return {
        "watch": found.place.watch.name,
        "watch_path": found.place.watch.path,
        **records.path_record(found.place.path),
        "state": found.job.state.value if found.job else "not queued",
        "service_running": found.service_runs,
        "job": records.job_record(found.job) if found.job else None,
        "other_jobs": [records.job_record(job) for job in found.jobs if job is not found.job],
        "deliveries": [records.delivery_record(delivery) for delivery in found.deliveries],
        "jobs_below": {state.value: number for state, number in found.below.items()},
        "evidence": [{"ok": item.ok, "text": show.plain(item.text)} for item in found.evidence],
    }


def _lines(found: _Findings) -> list[str]:
    lines = [f"{found.place.shown} (watch {found.place.watch.name})"]
    for delivery in found.deliveries:
        stored = delivery.proof.stored
        lines.append(
            f"delivered to {show.plain(delivery.proof.destination)} as {show.plain(stored.key)},"
            f" {show.when(delivery.proof.delivered_at)}, proven by {show.plain(stored.evidence) or 'the destination'}"
        )
    if found.job:
        lines += _of_job(found.job, found)
    elif found.jobs:
        last = found.jobs[-1]
        lines.append(f"this version is not in the queue; the last one was {records.state_sentence(last)}")
    elif not found.below:
        lines.append("not in the queue")
    if found.job and not found.there:
        lines.append("there is no file of that name now")
    if found.below:
        states = ", ".join(f"{show.count(number)} {state.value}" for state, number in sorted(found.below.items()))
        lines.append(f"files below it in the queue: {states}")
        if found.place.path:
            lines.append(f"list them: quaymaster jobs --watch {found.place.watch.name} --path PATH")
    marks = {True: "[ok]", False: "[missing]", None: "[?]"}
    lines += [f"  {marks[item.ok]:<9} {show.plain(item.text)}" for item in found.evidence]
    if not found.service_runs and not (found.job and found.job.state.final):
        lines.append("the service is not running; start it with: systemctl start quaymaster")
    return lines


def _of_job(job: Job, found: _Findings) -> list[str]:
    lines = []
    if job.state is not State.DONE or not found.deliveries:
        lines.append(records.state_sentence(job))
    if job.state is State.DONE and not found.deliveries:
        lines.append(f"there was nothing to send: it was restored, or stays as it is; see: quaymaster jobs {job.id}")
    if job.state in (State.PARKED, State.DROPPED):
        lines.append(f"when the cause is mended: quaymaster jobs retry {job.id}")
    disposals = {delivery.disposal for delivery in found.deliveries if delivery.disposal not in ("", "kept")}
    lines += [f"the source was {shown(os.fsencode(what)).replace(':', ' to ', 1)}" for what in sorted(disposals)]
    return lines
