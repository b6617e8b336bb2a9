"""``quaymaster restore``: bring files back from where they were delivered to (PRODUCT I6)."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

import click

from quaymaster.cli import complete, records, show
from quaymaster.cli.progress import Amount, Progress, Rate, View
from quaymaster.cli.session import Session, in_session
from quaymaster.cli.verify import selection
from quaymaster.errors import NotSupported, QuaymasterError, UsageError

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.model import Identity
    from quaymaster.pipeline.delivered_unit import DeliveredUnit
    from quaymaster.pipeline.flights import Flights
    from quaymaster.pipeline.landing import Ground
    from quaymaster.pipeline.recall import Spot
    from quaymaster.pipeline.restore import Find, Restored, Wanted
    from quaymaster.service.places import Places
    from quaymaster.store import Selection, Store

_TOLD = 1000
"""Files that did not come back and are named; more would bury the summary."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    paths: Sequence[str]
    prefix: str
    watch: str | None
    destination: str | None
    at: float
    to: str | None
    from_destination: bool
    unit: str | None
    dry_run: bool
    workers: int
    quiet: bool


def moment(_context: click.Context, _option: click.Parameter, text: str | None) -> float:
    """The value of --at in seconds since the epoch; 0 without it."""
    if text is None:
        return 0.0
    if re.fullmatch(r"@[0-9]{1,11}(\.[0-9]{1,9})?", text):
        return float(text[1:])
    try:
        found = datetime.fromisoformat(text)
        if len(text) == 10:  # a day: as it was at its end
            found = found.replace(hour=23, minute=59, second=59, microsecond=999999)
        return found.timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{show.plain(text)} is not a time; write it like 2026-03-31, 2026-03-31T18:00, 2026-03-31T18:00+02:00"
            " or @1774972800"
        ) from None


@click.command("restore")
@click.argument("paths", metavar="[PATH]...", nargs=-1, shell_complete=complete.files)
@click.option("--prefix", metavar="KEY", default="", help="Only files whose key begins so.")
@click.option("--watch", metavar="NAME", shell_complete=complete.watches, help="Only files of this watch.")
@click.option("--destination", metavar="NAME", shell_complete=complete.destinations, help="Only from this destination.")
@click.option("--at", metavar="TIME", callback=moment, help="As they were delivered then, such as 2026-03-31T18:00.")
@click.option(
    "--to", metavar="DIR", shell_complete=complete.directories, help="Below this directory, instead of where they were."
)
@click.option("--from-destination", is_flag=True, help="Without the ledger: by what the destination alone tells.")
@click.option(
    "--unit",
    metavar="DIR|KEY",
    shell_complete=complete.units("published"),
    help="A directory that was delivered as one, by its manifest alone.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--workers", type=click.IntRange(1, 64), default=4, help="Files at once; 4 if not given.")
@click.option("--quiet", is_flag=True, help="No progress; failures and the summary alone.")
@in_session
def command(session: Session, paths: Sequence[str], **given: object) -> int:
    """Bring files back, expanded and verified against their record, with their time and permission bits.

    Nothing is ever overwritten. A file that is there with the same content counts as restored, so the same command
    again goes on where it stopped. Restored in their own place, files are not delivered again. PATH is a file or a
    directory of a watch; without PATH, --prefix and --watch, everything comes back.

    --from-destination needs neither ledger nor state: objects in S3 say by their metadata what they are. With --to they
    are laid out as at the destination. Files of a directory destination have no such record and come as they are.

    --unit needs neither as well: what a unit's manifest tells comes back, with SHA256SUMS beside it, which sha256sum -c
    accepts. The unit is named by its directory or by the key of its manifest.

    Exit code 1 if a file did not come back, 3 if a copy does not have the bytes that were recorded.

    \b
    Examples:
      quaymaster restore /srv/sequencer/run7
      quaymaster restore /srv/sequencer/run7 --at 2026-03-31T18:00 --to /tmp/then
      quaymaster restore --watch sequencer --dry-run
      quaymaster restore --unit /srv/sequencer/run7 --destination archive --to /srv/recovered
      quaymaster restore --from-destination --destination archive --to /srv/recovered
    """
    options = Options(paths=paths, **given)  # type: ignore[arg-type]
    if options.at and options.from_destination:
        raise UsageError("--at needs the ledger", "Leave out --at or --from-destination")
    if options.unit and (paths or options.prefix or options.watch or options.at or options.from_destination):
        raise UsageError("--unit comes back as a whole", "Leave out what else names files")
    if not (paths or options.unit or options.prefix or options.watch or options.destination or options.to):
        raise UsageError("It is not said what to restore", "Name a PATH, --prefix, --watch, --destination or --to")
    config = session.config()
    which = replace(
        selection(config, paths, options.watch, options.destination), prefix=options.prefix, until=options.at
    )
    if options.watch and options.watch not in config.watches and options.from_destination:
        raise UsageError(f"There is no watch {options.watch}", f"The watches are: {', '.join(config.watches)}")
    with ExitStack() as stack:
        store = _store(session, config, stack, options)
        from quaymaster.service.places import Places

        places = stack.enter_context(closing(Places(config, store, lambda _: None)))
        return _Run(session, config, options, which, store, places).run()


def _store(session: Session, config: Config, stack: ExitStack, options: Options) -> Store | None:
    """The store; None without one, when it is not needed."""
    from quaymaster.store.db import FILE_NAME

    without = options.from_destination or options.unit
    if without and not os.path.exists(os.path.join(config.service.state_dir, FILE_NAME)):
        return None
    return stack.enter_context(session.store(config))


@dataclass(slots=True)
class _Run:
    session: Session
    config: Config
    options: Options
    which: Selection
    store: Store | None
    places: Places
    _grounds: dict[str, Ground] = field(default_factory=dict)
    _homes: dict[str, bool] = field(default_factory=dict)
    """Watches, and whether --to is their own place."""
    _unit: DeliveredUnit | None = None
    _passed_bytes: int = 0
    """Of files that needed no reading."""
    _counts: dict[str, int] = field(default_factory=dict)
    _restored_bytes: int = 0
    _unproven: int = 0
    _damaged_copies: int = 0
    _files: list[records.Record] = field(default_factory=list)

    def run(self) -> int:

        with ExitStack() as stack:
            if self.options.unit:
                from quaymaster.cli.verify_unit import delivered

                unit = delivered(self.config, self.places, self.options.unit, self.options.destination)
                self._unit = stack.enter_context(unit)
            return self._run()

    def _run(self) -> int:
        from quaymaster.pipeline.restore import Restore

        options, began, rate = self.options, time.monotonic(), Rate()
        restore = Restore(self.places.of, self._expect, self._record, options.dry_run, options.workers)
        try:
            with (
                Progress(
                    sys.stderr, self._viewed(restore.flights, rate), quiet=options.quiet, goes_on=True
                ) as progress,
                closing(restore.run(self._finds())) as results,
            ):
                for result in results:
                    self._count(result, progress)
            if self._unit and not options.dry_run:
                self._restore_sums(self._unit)
        finally:
            for ground in self._grounds.values():
                ground.sweep()
        return self._sum_up(time.monotonic() - began)

    def _viewed(self, flights: Flights, rate: Rate) -> Callable[[], View]:
        without = self.options.from_destination or self.options.unit
        known = self.store is not None and not (without or self.options.quiet)
        files, size = self.store.extent(self.which) if known and self.store else (0, 0)

        def view() -> View:
            moved = 0 if self.options.dry_run else self._passed_bytes + flights.moved()
            amount = Amount(sum(self._counts.values()), files, moved, 0 if self.options.dry_run else size)
            return View(rate.whole("restoring", ("file", "files"), amount), flights.now())

        return view

    # -- what, and where to --

    def _finds(self) -> Iterator[Find]:
        from quaymaster.pipeline import recall

        self._prepare_grounds()
        if self._unit:
            yield from self._unit.finds(self._spot_in_unit)
            return
        if not self.options.from_destination:
            assert self.store is not None
            yield from recall.from_ledger(self.store, self.which, self._spot)
            return
        name = self._only_destination()
        destination = self.places.shared(name)
        if destination is None:
            raise NotSupported(
                f"The copies at {name} are beside their sources: without the ledger nothing tells them apart",
                "Expand them by hand with zstd -d or gunzip",
            )
        host = self.config.service.host
        origins = [
            recall.Origin(watch.name, watch.key, host)
            for watch in self.config.watches.values()
            if name in watch.destinations
        ]
        yield from recall.from_destination(destination, self.options.prefix, origins, self._spot_of_key)

    def _only_destination(self) -> str:
        if self.options.destination:
            return self.options.destination
        if len(self.config.destinations) > 1:
            raise UsageError("It is not said from which destination", "Name it with --destination")
        return next(iter(self.config.destinations))

    def _prepare_grounds(self) -> None:
        from quaymaster.pipeline.landing import Ground

        if self.options.to is None:
            for watch in self.config.watches.values():
                self._grounds[watch.name] = Ground(watch.path, anchor=self.places.ground_of(watch.name))
            return
        to = os.path.abspath(self.options.to)
        if not self.options.dry_run:
            try:
                os.makedirs(to, exist_ok=True)
            except OSError as error:
                told = f"{show.plain(to)} cannot be made ({error.strerror})"
                raise QuaymasterError(told, "Name another directory") from None
        self._grounds[""] = Ground(to)

    def _spot(self, watch: str, path: bytes) -> Spot | str:
        from quaymaster.pipeline.recall import Spot

        if self.options.to is not None:
            # With several watches each has a directory of its own, so that none takes another's place.
            below = b"" if self._one_watch() else os.fsencode(watch) + b"/"
            if watch not in self._homes:
                self._homes[watch] = self._is_home(watch, below)
            return Spot(self._grounds[""], below + path, self._homes[watch])
        if watch not in self._grounds:
            return f"Watch {watch} is not configured any more: say with --to where it is to go"
        return Spot(self._grounds[watch], path, at_home=True)

    def _spot_in_unit(self, path: bytes) -> Spot | str:
        from quaymaster.pipeline.recall import Spot

        assert self._unit is not None
        if self.options.to is not None:
            return Spot(self._grounds[""], path)
        return self._spot(self._unit.watch, self._unit.head.unit + b"/" + path)

    def _restore_sums(self, unit: DeliveredUnit) -> None:
        """The list that sha256sum(1) reads, unless there is a file of that name."""
        from quaymaster.model import FileVersion
        from quaymaster.pipeline.landing import publish

        spot = self._spot_in_unit(unit.head.sums.encode())
        if isinstance(spot, str):
            return

        def expect(found: Mapping[int, Identity]) -> None:
            if spot.at_home and self.store is not None:  # else it would be taken for a new file
                self.store.expect([FileVersion(unit.watch, spot.target, identity) for identity in found.values()])

        with spot.ground.folder(spot.target, create=True) as directory:
            if directory is None or spot.ground.present(directory, spot.target) is not None:
                return
            landing = spot.ground.begin(directory, spot.target, 0)
            try:
                for line in unit.sums():
                    landing.write(line)
                landing.dress(0o644, time.time_ns())
                publish([landing], expect)
            finally:
                landing.abort()

    def _one_watch(self) -> bool:
        named = {watch for watch, _ in self.which.paths}
        return bool(self.which.watch) or len(named) == 1 or len(self.config.watches) == 1

    def _is_home(self, watch: str, below: bytes) -> bool:
        configured = self.config.watches.get(watch)
        to = os.path.join(os.path.abspath(self.options.to or ""), os.fsdecode(below))
        return configured is not None and os.path.realpath(to) == os.path.realpath(configured.path)

    def _spot_of_key(self, watch: str, path: bytes, whole: bytes) -> Spot | str | None:
        """Of an object that only its key tells of: see recall.from_destination."""
        from quaymaster.pipeline.recall import Spot

        if self.which.watch and watch != self.which.watch:
            return None
        if self.which.paths and not any(watch == w and _within(path, p) for w, p in self.which.paths):
            return None
        if self.options.to is not None and not (self.which.watch or self.which.paths):
            return Spot(self._grounds[""], whole)
        if not watch:
            return "No one watch has such a key: say with --to where it is to go"
        return self._spot(watch, path)

    # -- what came of it --

    def _expect(self, complete: Sequence[tuple[Wanted, Identity]]) -> Sequence[int]:
        from quaymaster.model import FileVersion

        home = [(at, one) for at, one in enumerate(complete) if one[0].at_home] if self.store is not None else []
        jobs = [0] * len(complete)
        if home and self.store is not None:
            versions = [FileVersion(wanted.watch, wanted.path, identity) for _, (wanted, identity) in home]
            for (at, _), job in zip(home, self.store.expect(versions), strict=True):
                jobs[at] = job
        return jobs

    def _record(self, results: Sequence[Restored]) -> None:
        if self.store is not None:
            self.store.restored(
                [(one.wanted.watch, one.wanted.path, one.job, _custody_details(one)) for one in results]
            )

    def _count(self, result: Restored, progress: Progress) -> None:
        wanted, outcome = result.wanted, result.outcome.value
        self._counts[outcome] = self._counts.get(outcome, 0) + 1
        self._damaged_copies += len(result.damaged)
        if outcome != "restored":
            self._passed_bytes += wanted.size
        if outcome in ("restored", "there"):
            self._restored_bytes += wanted.size if outcome == "restored" else 0
            self._unproven += not wanted.sha256
        if self.session.json:
            self._files.append(_file_record(result))
        lines = [f"DAMAGED: {wanted.shown}: {text}" for text in result.damaged]
        if outcome not in ("restored", "there", "damaged"):
            text = result.text if wanted.shown in result.text else f"{wanted.shown}: {result.text}"
            lines.append(f"{outcome.upper()}: {text}")
        elif self.options.dry_run and outcome == "restored" and not self.session.json:
            with progress.aside():
                print(show.plain(f"would restore {wanted.shown} ({show.size(wanted.size)})"))
        troubles = sum(n for name, n in self._counts.items() if name not in ("restored", "there"))
        if lines and troubles <= _TOLD:
            with progress.aside():
                print("\n".join(map(show.plain, lines)), file=sys.stderr)

    def _files_done(self) -> str:
        return ", ".join(f"{show.count(number)} {_WORDS[name]}" for name, number in sorted(self._counts.items()))

    def _sum_up(self, seconds: float) -> int:
        bad = sum(self._counts.get(name, 0) for name in ("conflict", "refused", "failed"))
        damaged = self._counts.get("damaged", 0) + self._damaged_copies
        if self.session.json:
            counts = {name: self._counts.get(name, 0) for name in _WORDS}
            print(
                show.as_json(
                    {
                        **counts,
                        "bytes": self._restored_bytes,
                        "unproven": self._unproven,
                        "seconds": round(seconds, 3),
                        "dry_run": self.options.dry_run,
                        "files": self._files,
                    }
                )
            )
        else:
            said = self._files_done() or "there is nothing to restore"
            would = "would be done: " if self.options.dry_run else ""
            print(f"{would}{said} ({show.size(self._restored_bytes)}), {show.duration(seconds)}")
            if self._unproven:
                many = show.count(self._unproven, "file")
                print(f"  {many} came as stored: no record of the source is left to compare with")
        return 3 if damaged else 1 if bad or not self._counts else 0


_WORDS = {
    "restored": "restored",
    "there": "there already",
    "conflict": "in conflict with another file",
    "refused": "refused",
    "failed": "failed",
    "damaged": "DAMAGED",
}


def _within(path: bytes, selected: bytes) -> bool:
    return not selected or path == selected or path.startswith(selected + b"/")


def _custody_details(result: Restored) -> dict[str, object]:
    wanted, source = result.wanted, result.source
    assert source is not None
    return {
        "destination": source.destination,
        "key": source.stored.key,
        "version_id": source.stored.version_id,
        "size": wanted.size,
        "source_sha256": wanted.sha256,
        "mtime_ns": wanted.mtime_ns,
        "to": wanted.shown,
    }


def _file_record(result: Restored) -> records.Record:
    wanted = result.wanted
    return {
        "watch": wanted.watch,
        **records.path_record(wanted.path),
        "target": wanted.shown,
        "outcome": result.outcome.value,
        "text": result.text,
        "size": wanted.size,
        "sha256": wanted.sha256,
        "destination": result.source.destination if result.source else None,
        "key": result.source.stored.key if result.source else None,
        "damaged": list(result.damaged),
    }
