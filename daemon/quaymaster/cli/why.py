"""``quaymaster why``: what became of a file, or what it is still waiting for (PRODUCT W4)."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import click

from quaymaster.cli import complete, records, show
from quaymaster.cli.session import Session, in_session
from quaymaster.model import Job, State, shown
from quaymaster.service.view.file import Findings, look, why_record
from quaymaster.service.view.locate import locate


@click.command("why")
@click.argument("path", shell_complete=complete.files)
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
        service = holder(config.service.state_dir)
        found = look(place, store, service, partial(_eyes_of, service, store.path))
    print(show.as_json(why_record(found)) if session.json else "\n".join(lines(found)))
    return 0


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


def lines(found: Findings) -> list[str]:
    said = [f"{found.place.shown} (watch {found.place.watch.name})"]
    for delivery in found.deliveries:
        stored = delivery.proof.stored
        said.append(
            f"delivered to {show.plain(delivery.proof.destination)} as {show.plain(stored.key)},"
            f" {show.when(delivery.proof.delivered_at)}, proven by {show.plain(stored.evidence) or 'the destination'}"
        )
    if found.job:
        said += _of_job(found.job, found)
    elif found.jobs:
        last = found.jobs[-1]
        said.append(f"this version is not in the queue; the last one was {records.state_sentence(last)}")
    elif not found.below:
        said.append("not in the queue")
    if found.job and not found.there:
        said.append("there is no file of that name now")
    if found.below:
        states = ", ".join(f"{show.count(number)} {state.value}" for state, number in sorted(found.below.items()))
        said.append(f"files below it in the queue: {states}")
        if found.place.path:
            said.append(f"list them: quaymaster jobs --watch {found.place.watch.name} --path PATH")
    marks = {True: "[ok]", False: "[missing]", None: "[?]"}
    said += [f"  {marks[item.ok]:<9} {show.plain(item.text)}" for item in found.evidence]
    if not found.service_runs and not (found.job and found.job.state.final):
        said.append("the service is not running; start it with: systemctl start quaymaster")
    return said


def _of_job(job: Job, found: Findings) -> list[str]:
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
