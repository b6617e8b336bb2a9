"""``quaymaster sync``: one pass over a watch, or over a directory and a destination (PRODUCT I1-I3)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from quaymaster.cli import complete, show
from quaymaster.cli.progress import Amount, Progress, Rate, View
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import IntegrityError, QuaymasterError, UsageError
from quaymaster.model import shown

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.intake.survey import Narrow
    from quaymaster.service.bare import Pair
    from quaymaster.service.quick import Note
    from quaymaster.service.summary import Failure, Moment, Summary

_TOLD = 1000
"""Failures that are named; more would bury the summary."""


class _ManyTypes(click.Command):
    """``--type fastq txt vcf``: all that follows up to the next option, as people write it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _spread(args))


def _spread(args: Sequence[str]) -> list[str]:
    found, types, open_ended = [], False, True
    for arg in args:
        if arg == "--":
            open_ended = False
        if open_ended and arg == "--type":
            types = True
            continue
        if types and (arg.startswith("-") or not open_ended):
            types = False
        if types:
            found.append(f"--type={arg}")
            types = "," not in arg
        else:
            found.append(arg)
    return found


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    places: Sequence[str]
    files_from: str | None
    dirs_from: str | None
    null: bool
    type: Sequence[str]
    endpoint_url: str | None
    credentials: str | None
    compress: str | None
    dry_run: bool
    force: bool
    workers: int | None
    patience: int
    quiet: bool

    @property
    def bare(self) -> bool:
        return len(self.places) == 2


@click.command("sync", cls=_ManyTypes)
@click.argument("places", metavar="[WATCH | DIR TARGET]", nargs=-1, shell_complete=complete.places)
@click.option(
    "--files-from",
    metavar="FILE",
    shell_complete=complete.files,
    help="Only the files that this file lists, a line each; - is stdin.",
)
@click.option(
    "--dirs-from",
    metavar="FILE",
    shell_complete=complete.files,
    help="Only what is below the directories that this file lists.",
)
@click.option("-0", "--null", is_flag=True, help="The names in these lists end in NUL, not in a line break.")
@click.option("--type", metavar="EXT...", multiple=True, help="Only files whose names end so, such as fastq txt vcf.")
@click.option("--endpoint-url", metavar="URL", help="Of TARGET; AWS if not given.")
@click.option(
    "--credentials",
    metavar="FILE",
    shell_complete=complete.files,
    help="The key pair for TARGET; the AWS chain if not given.",
)
@click.option("--compress", type=click.Choice(["zstd", "gzip", "none"]), help="For TARGET; none if not given.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done; nothing is touched.")
@click.option("--force", is_flag=True, help="Send also what has not changed since it was delivered.")
@click.option("--workers", type=click.IntRange(1, 1000), metavar="N", help="Files at once.")
@click.option("--patience", type=click.IntRange(1, 1000), default=2, show_default=True, help="Tries of each file.")
@click.option("--quiet", is_flag=True, help="No progress; failures and the summary alone.")
@in_session
def command(session: Session, **given: Any) -> int:
    """Bring a destination up to date in one pass: scan, compare, send, sum up.

    WATCH is one of the configuration (all, if none is named), or DIR and TARGET need no configuration: TARGET is
    s3://BUCKET/PREFIX or a directory. What has not changed since it was delivered is skipped without asking the
    destination. What another program put there, with the same content, is recorded and not sent. Nothing is
    overwritten that quaymaster did not put there.

    A file that changed a moment ago is still being written: it is counted and left for the next pass. The service may
    run meanwhile: then it does the sending. Ctrl-C at any time: the same command goes on where it stopped.

    --type takes all words up to the next option: write it last, or its words with commas between them.

    Exit code 1 if a file failed or is still being written, 3 if bytes arrived that are not those that left.

    \b
    Examples:
      quaymaster sync
      quaymaster sync sequencer --dry-run
      quaymaster sync /srv/run7 s3://lab-archive/run7 --endpoint-url http://127.0.0.1:8333
      find /srv/sequencer -name '*.vcf' -print0 | quaymaster sync sequencer --files-from - -0
    """
    options = Options(**given)
    if (summary := _quick_answer(session, options)) is not None:
        return _sum_up(session, summary)
    config = _config_to_look(session, options) or _config(session, options)
    from quaymaster.service.summary import Wanted
    from quaymaster.service.sync import Sync

    scope, strays = _scope(config, options)
    wanted = Wanted(scope, options.dry_run, options.force, options.patience, strays)
    following = _Following()

    def tell(line: str) -> None:
        if not options.quiet:
            with progress.aside():
                print(show.plain(line), file=sys.stderr)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order, as Ctrl-C does
    with Progress(sys.stderr, following.view, quiet=options.quiet, goes_on=True) as progress:
        summary = Sync(config, wanted, tell, following.note).run()
    if not options.dry_run:
        _note(session, options, config)
    return _sum_up(session, summary)


# -- what is asked for --


def _config(session: Session, options: Options) -> Config:
    if options.bare:
        from quaymaster.service import bare

        config = bare.config(_pair(options), os.environ)
    else:
        _refuse_bare_options(options)
        config = session.config()
        if options.places and options.places[0] not in config.watches:
            raise UsageError(
                f"There is no watch {show.plain(options.places[0])}",
                f"The watches are: {', '.join(config.watches)}; or name a directory and where it is to go",
            )
    if options.workers:
        config = config.model_copy(update={"limits": config.limits.model_copy(update={"files": options.workers})})
    return config


def _quick_answer(session: Session, options: Options) -> Summary | None:
    """When nothing has changed, neither the configuration nor the files; else None."""
    if options.force or options.files_from is not None or options.dirs_from is not None or len(options.places) > 2:
        return None
    from quaymaster.service import quick

    place, key = _note_of(session, options)
    note = _known(quick.read(place, key), options)
    return quick.unchanged(note, _narrowed(list(note.watches), options)) if note else None


def _config_to_look(session: Session, options: Options) -> Config | None:
    """For a dry run, which is over before the models that check a configuration are there."""
    if not options.dry_run or options.workers:
        return None
    from quaymaster.service import bare, quick

    if options.bare:
        return bare.to_look(_pair(options), os.environ)
    note = _known(quick.read(*_note_of(session, options)), options)
    return note.config() if note else None


def _known(note: Note | None, options: Options) -> Note | None:
    """The note, if it speaks of what is asked for."""
    named = options.places[0] if options.places and not options.bare else ""
    return None if note is None or (named and named not in note.watches) else note


def _note(session: Session, options: Options, config: Config) -> None:
    from quaymaster.service import quick

    place, key = _note_of(session, options)
    quick.write(place, quick.Note.of(key, config))


def _note_of(session: Session, options: Options) -> tuple[str, str]:
    """Where what a pass looks at is noted, and the key of that note."""
    from quaymaster.service import bare, quick

    if options.bare:
        state = bare.state_directory(_pair(options), os.environ)
        return os.path.join(state, "pass.json"), quick.key_of_pair(state)
    _refuse_bare_options(options)
    key = quick.key_of(session.config_path, os.environ)
    return quick.place_of(key, os.environ), key


def _pair(options: Options) -> Pair:
    from quaymaster.service.bare import Pair

    directory, target = options.places
    return Pair(directory, target, options.endpoint_url, options.credentials, options.compress or "none")


def _refuse_bare_options(options: Options) -> None:
    if len(options.places) > 2:
        raise UsageError("There are too many places", "Name one watch, or a directory and where it is to go")
    given = {
        "--endpoint-url": options.endpoint_url,
        "--credentials": options.credentials,
        "--compress": options.compress,
    }
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"{name} is for a directory without a configuration", "Name DIR and TARGET, or leave it out"
            )


def _scope(config: Config, options: Options) -> tuple[dict[str, Narrow], list[Failure]]:
    """What is looked at of each watch, and what of the lists is in none of them."""
    from quaymaster.intake.survey import Narrow

    narrowed = _narrowed(list(config.watches), options)
    if options.files_from is None and options.dirs_from is None:
        return narrowed, []
    names, types = list(narrowed), next(iter(narrowed.values())).types
    strays: list[Failure] = []
    files = _by_watch(config, names, _listed(options.files_from, options.null), strays)
    directories = _by_watch(config, names, _listed(options.dirs_from, options.null), strays)
    scope = {
        name: Narrow(files.get(name, ()), directories.get(name, ()), types)
        for name in names
        if name in files or name in directories
    }
    return scope, strays


def _narrowed(watches: list[str], options: Options) -> dict[str, Narrow]:
    from quaymaster.intake.survey import Narrow

    types = tuple(_ending(word) for text in options.type for word in text.split(",") if word)
    names = watches if options.bare or not options.places else [options.places[0]]
    return {name: Narrow(types=types) for name in names}


def _ending(word: str) -> bytes:
    return b"." + os.fsencode(word).lstrip(b".")


def _listed(path: str | None, null: bool) -> list[bytes]:
    if path is None:
        return []
    try:
        if path == "-":
            content = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                content = file.read()
    except OSError as error:
        raise UsageError(
            f"{show.plain(path)} cannot be read ({error.strerror})", "Name a file, or - for stdin"
        ) from None
    return [name for name in content.split(b"\0" if null else b"\n") if name]


def _by_watch(
    config: Config, names: Sequence[str], paths: Iterable[bytes], strays: list[Failure]
) -> dict[str, list[bytes]]:
    """Watch -> paths in it. A relative one is below the watch when there is just one, else below the working
    directory. One that is in none of them is added to ``strays``: the others go on."""
    from quaymaster.service.summary import Failure
    from quaymaster.service.view.locate import locate

    base = os.fsencode(config.watches[names[0]].path) if len(names) == 1 else os.getcwdb()
    found: dict[str, list[bytes]] = {}
    for path in paths:
        whole = os.path.join(base, path)
        try:
            place = locate(config, whole)
        except QuaymasterError as error:
            strays.append(Failure(shown(whole), "not-watched", str(error)))
            continue
        if place.watch.name in names:
            found.setdefault(place.watch.name, []).append(place.path)
        else:
            text = f"{place.shown} is not in watch {names[0]}. Leave the name of the watch out"
            strays.append(Failure(place.shown, "not-watched", text))
    return found


# -- how far it is, and what it came to --


class _Following:
    """The newest moment of a pass, and how fast each of its phases goes."""

    _verbs = {"scan": "scanning", "compare": "comparing", "send": "sending"}

    def __init__(self) -> None:
        self._moment: Moment | None = None
        self._rates: dict[str, Rate] = {}

    def note(self, moment: Moment) -> None:
        self._moment = moment

    def view(self) -> View | None:
        moment = self._moment
        if moment is None:
            return None
        rate = self._rates.setdefault(moment.phase, Rate())
        amount = Amount(moment.done, moment.total, moment.bytes_done, moment.bytes_total)
        return View(rate.whole(self._verbs[moment.phase], ("file", "files"), amount), moment.running)


def _sum_up(session: Session, summary: Summary) -> int:
    integrity = any(failure.code == IntegrityError.code for failure in summary.failures)
    if session.json:
        body = asdict(summary)
        body["stages"] = {name: round(seconds, 3) for name, seconds in summary.stages.items()}
        body["seconds"] = round(summary.seconds, 3)
        print(show.as_json(body))
    else:
        for failure in summary.failures[:_TOLD]:
            print(show.plain(f"FAILED: {_with_path(failure.path, failure.text)}"), file=sys.stderr)
        steps = [f"would {step.what} {show.plain(step.path)} ({show.size(step.size)})" for step in summary.steps]
        print("\n".join(steps + _lines(summary)))
    return 3 if integrity else 1 if summary.partial else 0


def _with_path(path: str, text: str) -> str:
    return text if path in text else f"{path}: {text}"


def _lines(summary: Summary) -> list[str]:
    sent = summary.sent if not summary.dry_run else sum(step.what == "send" for step in summary.steps)
    counts = [
        (sent, "sent"), (summary.adopted, "there already"), (summary.skipped, "unchanged"),
        (summary.left, "left as they are"), (summary.writing, "still being written"), (summary.failed, "FAILED"),
    ]  # fmt: skip
    said = ", ".join(f"{show.count(number)} {word}" for number, word in counts if number) or "nothing to do"
    would = "would be done: " if summary.dry_run else ""
    lines = [f"{would}{said}; {show.count(summary.files, 'file')} looked at, {summary.seconds:.1f} s"]
    if summary.sent:
        ratio = f" ({summary.ratio:.2f}:1)" if summary.ratio else ""
        seconds = summary.stages.get("send", summary.seconds) or summary.seconds
        rate = show.size(int(summary.bytes_in / seconds)) if seconds else ""
        lines.append(f"  {show.size(summary.bytes_in)} in, {show.size(summary.bytes_out)} out{ratio}, {rate}/s")
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary.stages.items() if seconds >= 0.05)
    if stages:
        lines.append(f"  {stages}")
    return lines
