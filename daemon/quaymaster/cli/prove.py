"""``quaymaster prove``: where a file is, and everything that proves it (PRODUCT I8)."""

from __future__ import annotations

import os

import click

from quaymaster.cli import complete, records, show
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import IntegrityError, QuaymasterError
from quaymaster.model import Job, State
from quaymaster.service.view.file import Trail, prove_record, trail
from quaymaster.service.view.locate import Place, locate


@click.command("prove")
@click.argument("path", shell_complete=complete.files)
@click.option(
    "--bundle",
    metavar="DIR",
    shell_complete=complete.directories,
    help="Also write the evidence there, to be checked with sha256sum alone.",
)
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
        print("\n".join(lines(found)))
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


def lines(found: Trail) -> list[str]:
    said = [f"{found.place.shown} (watch {found.place.watch.name})"]
    newest = found.jobs[-1] if found.jobs else None
    if newest and newest.state is not State.DONE:
        said.append(f"note: its newest version is {records.state_sentence(newest)}")
    for number, delivery in enumerate(found.deliveries, start=1):
        said += ["", f"delivery {number} of {len(found.deliveries)} (job {delivery.proof.job})"]
        said += records.delivery_lines(delivery)
    jobs = dict.fromkeys(delivery.proof.job for delivery in found.deliveries)
    entries = [entry for job in jobs for entry in found.custody.get(job, [])]
    said += ["", "custody log: number, SHA-256, entry"]
    return said + records.entry_lines(sorted(entries, key=lambda entry: entry.seq))
