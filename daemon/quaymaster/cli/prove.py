"""``quaymaster prove``: where a file is, and everything that proves it (PRODUCT I8)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from quaymaster.cli import complete, records, show
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import IntegrityError, QuaymasterError
from quaymaster.model import Job, State
from quaymaster.service.view.file import Trail, prove_record, trail
from quaymaster.service.view.locate import Place, locate
from quaymaster.service.view.mirrored import (
    HERE,
    MirrorPlace,
    Origin,
    download_record,
    mirror_place,
    origin,
    origin_record,
)

if TYPE_CHECKING:
    from quaymaster.config import Config


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
    """Print the proof of every delivery of a file: digests, what the destination holds, and the custody log. Of a file
    that a mirror released: the objects it came from, what proved them, and whether it is still the same.

    The file itself may be gone. The whole custody log is checked first: each entry holds the SHA-256 of the one
    before, so an edit or deletion anywhere shows, and so does a proof that no longer says what was logged. Then the
    exit code is 3. It is 1 for a file that was never delivered.

    \b
    Examples:
      quaymaster prove /srv/sequencer/run7/reads.fastq
      quaymaster prove run7/reads.fastq --json > proof.json
      quaymaster prove run7/reads.fastq --bundle evidence && sh evidence/check.sh reads.fastq
      quaymaster prove /srv/models/resnet/7/model.bin
    """
    config = session.sound_config()
    mirrored = mirror_place(config, os.fsencode(path))
    if mirrored is not None:
        return _mirrored(session, config, mirrored, bundle)
    place = locate(config, os.fsencode(path))
    with session.store(config) as store:
        found = trail(place, store, chain=True)
        if bundle and found.deliveries and not found.fault:
            from quaymaster.cli import bundle as evidence

            entries = sorted((e for entries in found.custody.values() for e in entries), key=lambda entry: entry.seq)
            evidence.write(bundle, store, entries, shown=place.shown, of=f"watch {place.watch.name}")
    if session.json:
        print(show.as_json(prove_record(found)))
    elif found.deliveries:
        print("\n".join(lines(found)))
    if found.fault:
        raise IntegrityError(found.fault, "Keep a copy of the state directory as it is, and find out who wrote to it")
    if not found.deliveries:
        raise _undelivered(place, found.jobs)
    return 0


def _mirrored(session: Session, config: Config, place: MirrorPlace, bundle: str | None) -> int:
    with session.store(config) as store:
        found = origin(place, store)
        if bundle and found.custody and not found.fault:
            from quaymaster.cli import bundle as evidence

            evidence.write(bundle, store, found.custody, shown=place.shown, of=f"mirror {place.mirror.name}")
    if session.json:
        print(show.as_json(origin_record(found)))
    elif found.downloads:
        print("\n".join(origin_lines(found)))
    if found.fault:
        raise IntegrityError(found.fault, "Keep a copy of the state directory as it is, and find out who wrote to it")
    if not found.downloads:
        state = records.state_sentence(found.jobs[-1]) if found.jobs else "no object of its bucket"
        raise QuaymasterError(f"{place.shown} was not downloaded; it is {state}", "quaymaster mirror tells what waits")
    if found.here == "changed":
        told = "It is put right when its version changes upstream, or when you remove that version's directory"
        raise IntegrityError(f"{place.shown} is not what was released", told)
    return 0


def origin_lines(found: Origin) -> list[str]:
    said = [f"{found.place.shown} (mirror {found.place.mirror.name})"]
    released = [entry.fields for entry in found.releases if entry.fields["kind"] == "released"]
    last = released[-1] if released else None
    facts = [("released", f"{show.when(last['at'])} as {show.plain(last['path'])}" if last else "not yet")]
    said += show.facts([*facts, ("on the disk", HERE[found.here])])
    for number, entry in enumerate(found.downloads, start=1):
        record = download_record(entry)
        said += ["", f"download {number} of {len(found.downloads)} (job {record['job']})"]
        sizes = {name: show.exact(int(record[name])) for name in ("stored_size", "size")}
        texts = {**record, **sizes, "downloaded_at": show.when(record["downloaded_at"])}
        named = [(name.removesuffix("_at").replace("_", " "), show.plain(str(texts[name]))) for name in texts]
        said += show.facts([pair for pair in named if pair[0] != "job"])
    return [*said, "", "custody log: number, SHA-256, entry", *records.entry_lines(found.custody)]


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
