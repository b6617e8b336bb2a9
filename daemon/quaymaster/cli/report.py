"""``quaymaster report``: in what state directories are (PRODUCT I4)."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from quaymaster.cli import complete, records, show
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import QuaymasterError, StoreError, UsageError
from quaymaster.model import shown

if TYPE_CHECKING:
    from quaymaster.config import Config, Watch
    from quaymaster.intake.report import Directory, Report

_MIN_SIZE = 10 << 20  # what a watch that says nothing else has


@click.command("report")
@click.argument("place", metavar="[WATCH | DIR]", required=False, shell_complete=complete.places)
@in_session
def command(session: Session, place: str | None) -> int:
    """Show which directories hold compressed files, uncompressed ones, both forms of each, or a mixture.

    WATCH is one of the configuration (all, if none is named); DIR may be any directory, and has the rules of the watch
    that it is in. Files are told by .gz and .zst and by their first bytes. What would be saved is reckoned for files
    that are large enough to be compressed, by the ratio that the watch has seen so far, for FASTQ 4:1 before there is
    one; other files without a ratio are left out of it.

    \b
    Examples:
      quaymaster report
      quaymaster report /srv/sequencer/run7 --json
    """
    found = _looks(session, place)
    directories = [(look, one) for look in found for one in sorted(look.report.directories(), key=lambda d: d.path)]
    if session.json:
        print(show.as_json(_record(directories, found)))
    else:
        print("\n".join(_lines(directories)))
    blind = sum(look.report.tally.unreadable_count + len(look.report.unreadable) for look in found)
    if blind:
        raise QuaymasterError(
            f"{show.count(blind, 'file or directory', 'files and directories')} could not be read",
            "Run it as a user who may read them",
        )
    return 0


@dataclass(frozen=True, slots=True)
class _Look:
    watch: str
    root: str
    report: Report

    def path_of(self, directory: Directory) -> bytes:
        return os.path.join(os.fsencode(self.root), directory.path) if directory.path else os.fsencode(self.root)


def _looks(session: Session, place: str | None) -> list[_Look]:
    from quaymaster.service.view.locate import locate

    configured = os.path.exists(session.config_path)
    if place is not None and os.path.isdir(place):
        if configured:
            config = session.config()
            try:
                inside = locate(config, os.fsencode(place))
                return [_of_watch(config, inside.watch, inside.path)]
            except QuaymasterError:
                pass  # under no watch: no rules apply
        return [_of_directory(os.path.abspath(place))]
    config = session.config()
    if place is not None and place not in config.watches:
        known = ", ".join(config.watches)
        raise UsageError(f"{show.plain(place)} is neither a directory nor a watch", f"The watches are: {known}")
    names = [place] if place else list(config.watches)
    return [_of_watch(config, config.watches[name]) for name in names]


def _of_watch(config: Config, watch: Watch, start: bytes = b"") -> _Look:
    from quaymaster.intake.report import Report
    from quaymaster.intake.scan import Rules
    from quaymaster.source import Root

    rules = Rules(watch.include, watch.exclude, watch.ignored)
    least = watch.compress.min_size if watch.compress else _MIN_SIZE
    report = Report(Root(watch.path, hard_links=True), rules, _ratio(config, watch), least, start)
    return _Look(watch.name, watch.path, report)


def _of_directory(path: str) -> _Look:
    from quaymaster.intake.report import Report
    from quaymaster.intake.scan import Rules
    from quaymaster.source import Root

    return _Look("", path, Report(Root(path, hard_links=True), Rules(), None, _MIN_SIZE))


def _ratio(config: Config, watch: Watch) -> float | None:
    from quaymaster.store import Store

    try:
        with closing(Store(config.service.state_dir)) as store:
            return store.ratio(watch.name)
    except StoreError:
        return None  # nothing was ever sent from here


def _record(directories: list[tuple[_Look, Directory]], looks: list[_Look]) -> records.Record:
    return {
        "directories": [
            {
                "watch": look.watch,
                **records.path_record(look.path_of(one)),
                "standing": one.standing.value,
                "uncompressed": one.uncompressed,
                "uncompressed_bytes": one.uncompressed_bytes,
                "compressed": one.compressed,
                "compressed_bytes": one.compressed_bytes,
                "both": one.both,
                "would_save": one.would_save,
            }
            for look, one in directories
        ],
        "would_save": sum(one.would_save for _, one in directories),
        "unreadable": sum(look.report.tally.unreadable_count + len(look.report.unreadable) for look in looks),
    }


def _lines(directories: list[tuple[_Look, Directory]]) -> list[str]:
    if not directories:
        return ["there are no files"]
    rows = [
        (
            one.standing.value,
            show.count(one.uncompressed),
            show.size(one.uncompressed_bytes),
            show.count(one.compressed),
            show.size(one.compressed_bytes),
            show.size(one.would_save) if one.would_save else "",
            shown(look.path_of(one)),
        )
        for look, one in directories
    ]
    header = ("STATE", ">PLAIN", ">SIZE", ">COMPRESSED", ">SIZE", ">WOULD SAVE", "DIRECTORY")
    counts = Counter(one.standing.value for _, one in directories)
    said = ", ".join(f"{show.count(number)} {word}" for word, number in sorted(counts.items()))
    saved = sum(one.would_save for _, one in directories)
    total = show.count(len(directories), "directory", "directories")
    columns = shutil.get_terminal_size((80, 24)).columns
    return [
        *show.table(header, rows, columns),
        f"{total}: {said}" + (f"; compressing would save about {show.size(saved)}" if saved else ""),
    ]
