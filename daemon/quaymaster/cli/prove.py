"""``quaymaster prove``: where a file is, and everything that proves it (PRODUCT I8)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from quaymaster.cli import records, show
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import IntegrityError, QuaymasterError
from quaymaster.model import Job, State
from quaymaster.service.view.file import prove_record, trail
from quaymaster.service.view.locate import Place, locate

if TYPE_CHECKING:
    from quaymaster.store import Delivery, Entry


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
    config = session.sound_config()
    place = locate(config, os.fsencode(path))
    with session.store(config) as store:
        found = trail(place, store, chain=True)
        if bundle and found.deliveries and not found.fault:
            from quaymaster.cli import bundle as evidence

            entries = sorted((e for entries in found.custody.values() for e in entries), key=lambda entry: entry.seq)
            evidence.write(bundle, store, entries, shown=place.shown, watch=place.watch.name)
    if session.json:
        print(show.as_json(prove_record(found)))
    elif found.deliveries:
        _print(place, found.jobs, found.deliveries, found.custody)
    if found.fault:
        raise IntegrityError(found.fault, "Keep a copy of the state directory as it is, and find out who wrote to it")
    if not found.deliveries:
        raise _undelivered(place, found.jobs)
    return 0


def _undelivered(place: Place, jobs: list[Job]) -> QuaymasterError:
    if not place.path:
        return QuaymasterError(f"{place.shown} is the directory of the watch {place.watch.name}", "Name a file")
    state = records.state_sentence(jobs[-1]) if jobs else "not in the queue"
    return QuaymasterError(
        f"{place.shown} has not been delivered; it is {state}", "quaymaster why PATH says what is missing"
    )


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
