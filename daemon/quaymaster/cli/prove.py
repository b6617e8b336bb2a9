"""``quaymaster prove``: where a file is, and everything that proves it (PRODUCT I8)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from quaymaster.cli import records, show
from quaymaster.cli.locate import Place, locate
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import IntegrityError, QuaymasterError
from quaymaster.model import Job, State

if TYPE_CHECKING:
    from quaymaster.store import Delivery, Entry, Store


@click.command("prove")
@click.argument("path")
@click.option("--bundle", metavar="DIR", help="Also write the evidence there, to be checked with sha256sum alone.")
@in_session
def command(session: Session, path: str, bundle: str | None) -> int:
    """Print the proof of every delivery of a file: digests, what the destination holds, and the custody log.

    The file itself may be gone. The whole custody log is checked first: each entry holds the SHA-256 of the one
    before, so an edit or deletion anywhere shows, and so does a proof that no longer says what was logged. Then the
    exit code is 3. It is 1 for a file that was never delivered.

    \b
    Examples:
      quaymaster prove /srv/sequencer/run7/reads.fastq
      quaymaster prove run7/reads.fastq --json > proof.json
      quaymaster prove run7/reads.fastq --bundle evidence && sh evidence/check.sh reads.fastq
    """
    from quaymaster.store import Filter

    config = session.config()
    place = locate(config, os.fsencode(path))
    with session.store(config) as store:
        deliveries = store.deliveries(place.watch.name, place.path) if place.path else []
        which = Filter(watch=place.watch.name, path=place.path)
        jobs = [job for job in store.jobs(which) if job.version.path == place.path] if place.path else []
        custody = {job.id: store.history(job) for job in jobs}
        fault = _fault(store, deliveries, custody)
        if bundle and deliveries and not fault:
            from quaymaster.cli import bundle as evidence

            entries = sorted((entry for job in jobs for entry in custody[job.id]), key=lambda entry: entry.seq)
            evidence.write(bundle, store, entries, shown=place.shown, watch=place.watch.name)
    if session.json:
        print(show.as_json(_record(place, jobs, deliveries, custody, fault)))
    elif deliveries:
        _print(place, jobs, deliveries, custody)
    if fault:
        raise IntegrityError(fault, "Keep a copy of the state directory as it is, and find out who wrote to it")
    if not deliveries:
        raise _undelivered(place, jobs)
    return 0


def _fault(store: Store, deliveries: list[Delivery], custody: dict[int, list[Entry]]) -> str:
    """What contradicts the proof, or an empty string."""
    from quaymaster.store import ledger

    broken = store.custody_broken_at()
    if broken is not None:
        return f"The custody log is broken at entry {broken}"
    for delivery in deliveries:
        expected = ledger.details(delivery.proof).items()
        said = [entry.fields for entry in custody.get(delivery.proof.job, ())]
        logged = [fields for fields in said if fields.get("kind") in ("delivered", "adopted")]
        if not any(expected <= fields.items() for fields in logged):
            where = show.plain(delivery.proof.destination)
            return f"The ledger's delivery to {where} (job {delivery.proof.job}) is not what the custody log says"
    return ""


def _undelivered(place: Place, jobs: list[Job]) -> QuaymasterError:
    if not place.path:
        return QuaymasterError(f"{place.shown} is the directory of the watch {place.watch.name}", "Name a file")
    state = records.state_sentence(jobs[-1]) if jobs else "not in the queue"
    return QuaymasterError(
        f"{place.shown} has not been delivered; it is {state}", "quaymaster why PATH says what is missing"
    )


def _record(
    place: Place, jobs: list[Job], deliveries: list[Delivery], custody: dict[int, list[Entry]], fault: str
) -> records.Record:
    return {
        "watch": place.watch.name,
        "watch_path": place.watch.path,
        **records.path_record(place.path),
        "deliveries": [records.delivery_record(delivery) for delivery in deliveries],
        "jobs": [records.job_record(job) for job in jobs],
        "custody": [records.entry_record(entry) for job in jobs for entry in custody[job.id]],
        "fault": fault,
    }


def _print(place: Place, jobs: list[Job], deliveries: list[Delivery], custody: dict[int, list[Entry]]) -> None:
    print(f"{place.shown} (watch {place.watch.name})")
    newest = jobs[-1] if jobs else None
    if newest and newest.state is not State.DONE:
        print(f"note: its newest version is {records.state_sentence(newest)}")
    for number, delivery in enumerate(deliveries, start=1):
        print(f"\ndelivery {number} of {len(deliveries)} (job {delivery.proof.job})")
        print("\n".join(records.delivery_lines(delivery)))
    entries = [entry for job in dict.fromkeys(d.proof.job for d in deliveries) for entry in custody.get(job, [])]
    print("\ncustody log: number, SHA-256, entry")
    print("\n".join(records.entry_lines(sorted(entries, key=lambda entry: entry.seq))))
