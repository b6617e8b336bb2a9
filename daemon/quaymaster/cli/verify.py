"""``quaymaster verify``: are the copies still what was delivered? (PRODUCT I7)"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from quaymaster.cli import complete, records, show
from quaymaster.cli.progress import Amount, Progress, Rate, View
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import QuaymasterError, UsageError
from quaymaster.service.view.locate import locate

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.pipeline.scrub import Fault, Scrub, Summary
    from quaymaster.store import Selection

MOST_PATHS = 400
_WORKERS = 4


def size(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """The value of an option in bytes."""
    from quaymaster.config import units

    try:
        return None if text is None else units.size(int(text) if text.isdigit() else text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("verify")
@click.argument("paths", metavar="[PATH]...", nargs=-1, shell_complete=complete.files)
@click.option("--watch", metavar="NAME", shell_complete=complete.watches, help="Only copies of this watch's files.")
@click.option(
    "--destination", metavar="NAME", shell_complete=complete.destinations, help="Only copies at this destination."
)
@click.option(
    "--level",
    type=click.Choice(["listing", "checksum", "readback"]),
    default="checksum",
    help="How thoroughly; checksum if not given.",
)
@click.option("--budget", metavar="SIZE", callback=size, help="Read at most so many bytes, such as 50GiB.")
@click.option(
    "--unit",
    metavar="DIR|KEY",
    shell_complete=complete.units("published"),
    help="A directory that was delivered as one, by its manifest alone.",
)
@click.option("--quiet", is_flag=True, help="No progress; faults and the summary alone.")
@in_session
def command(
    session: Session,
    paths: Sequence[str],
    watch: str | None,
    destination: str | None,
    level: str,
    budget: int | None,
    unit: str | None,
    quiet: bool,
) -> int:
    """Compare the ledger with what the destinations hold. Nothing is repaired or removed.

    listing finds what is missing, of another size or put there by somebody else. checksum also compares the checksum
    that the destination keeps of each object. readback also reads objects, those first that were read the longest ago,
    and compares every byte; with --budget, repeated runs go round everything. PATH is a file or a directory.

    --unit needs no ledger: it compares the objects with the manifest of a unit, which is named by its directory or by
    the key of the manifest.

    A copy that is not what it was is an integrity failure: exit code 3. What could not be asked is not "missing": exit
    code 1.

    \b
    Examples:
      quaymaster verify
      quaymaster verify --level listing --destination archive
      quaymaster verify --level readback --budget 100GiB
      quaymaster verify --level readback /srv/sequencer/run7
      quaymaster verify --unit /srv/sequencer/run7 --destination archive
    """
    if unit:
        if paths or watch or budget is not None:
            raise UsageError("--unit is verified as a whole", "Leave out PATH, --watch and --budget")
        from quaymaster.cli.verify_unit import verify

        return verify(session, unit, destination, level)
    from quaymaster.pipeline.scrub import Depth, Scrub
    from quaymaster.service.places import Places
    from quaymaster.store import Selection

    config = session.config()
    which = selection(config, paths, watch, destination)
    faults: list[Fault] = []

    def tell(fault: Fault) -> None:
        faults.append(fault)
        with progress.aside():
            print(show.plain(_line(config, fault)), file=sys.stderr)

    with session.store(config) as store, closing(Places(config, store, lambda _: None)) as places:
        scrub = Scrub(store, places, Depth(level), which, budget, workers=_WORKERS, tell=tell)
        rate = Rate()
        with Progress(sys.stderr, lambda: _view(scrub, rate), quiet=quiet) as progress:
            summary = scrub.run()
    code = _report(session, summary, faults)
    if not summary.copies and which != Selection():
        raise QuaymasterError("No copy is recorded of what was named", "List what was delivered: quaymaster jobs")
    return code


def selection(config: Config, paths: Sequence[str], watch: str | None, destination: str | None) -> Selection:
    """What the arguments mean. Raises UsageError, and QuaymasterError for a path under no watch."""
    from quaymaster.store import Selection

    if destination and destination not in config.destinations:
        known = ", ".join(config.destinations)
        raise UsageError(f"There is no destination {destination}", f"The destinations are: {known}")
    if len(paths) > MOST_PATHS:
        raise UsageError(f"More than {MOST_PATHS} paths are too many at once", "Name the directory that they are in")
    places = [locate(config, os.fsencode(path)) for path in paths]
    return Selection(
        destination=destination or "",
        watch=watch or "",
        paths=tuple((place.watch.name, place.path) for place in places),
    )


def _view(scrub: Scrub, rate: Rate) -> View | None:
    summary = scrub.summary
    if not summary.copies:
        return None
    reading = summary.level == "readback" and (scrub.flights.moved() or scrub.flights.now())
    if reading:
        # Each was looked at already: what is left is to read them, as far as the budget goes.
        of = summary.bytes if scrub.budget is None else min(summary.bytes, scrub.budget)
        amount = Amount(scrub.flights.landed, summary.copies, scrub.flights.moved(), of)
    else:
        amount = Amount(summary.good + summary.faults, summary.copies, scrub.flights.moved(), 0)
    whole = rate.whole("reading back" if reading else "verifying", ("copy", "copies"), amount)
    said = f"{show.count(summary.faults, 'FAULT')}; " if summary.faults else ""
    return View([said + text for text in whole], scrub.flights.now())


def _line(config: Config, fault: Fault) -> str:
    proof = fault.copy.delivery.proof
    watch = config.watches.get(proof.version.watch)
    root = os.fsencode(watch.path) if watch else b""
    path = show.plain(os.fsdecode(os.path.join(root, proof.version.path)))
    known = f"known good {show.when(fault.good_at)}"
    where = f"{proof.stored.key} at {proof.destination} (job {proof.job}, {path})"
    return f"{fault.what.upper()}: {where}: {fault.text}; {known}"


def _report(session: Session, summary: Summary, faults: Sequence[Fault]) -> int:
    if session.json:
        said = asdict(summary) | {"ok": not summary.faults and not summary.failed}
        print(show.as_json(said | {"faults": [_fault_record(fault) for fault in faults]}))
    else:
        print("\n".join(_lines(summary)))
    for name, error in summary.unreachable.items():
        print(show.plain(f"quaymaster: destination {name} could not be verified: {error}"), file=sys.stderr)
    return 3 if summary.faults else 1 if summary.failed else 0


def _fault_record(fault: Fault) -> records.Record:
    return {
        "what": fault.what,
        "text": fault.text,
        "good_at": fault.good_at,
        "delivery": records.delivery_record(fault.copy.delivery),
    }


def _lines(summary: Summary) -> list[str]:
    took = show.duration(summary.seconds)
    lines = [
        f"{show.count(summary.copies, 'copy', 'copies')} ({show.size(summary.bytes)}), level {summary.level}, {took}"
    ]
    lines += show.facts(
        [
            ("good", show.count(summary.good)),
            *((name, show.count(number)) for name, number in _troubles(summary) if number),
            ("read back", f"{show.count(summary.read)} ({show.size(summary.read_bytes)})" if summary.read else ""),
        ]
    )
    return lines


def _troubles(summary: Summary) -> list[tuple[str, int]]:
    return [
        ("MISSING", summary.missing),
        ("CHANGED", summary.changed),
        ("DAMAGED", summary.damaged),
        ("without an answer", summary.unanswered),
        ("being replaced", summary.moving),
        ("not read (budget)", summary.unread),
        ("at destinations that are no longer configured", summary.unconfigured),
        ("objects that the ledger does not know", summary.unknown),
    ]
