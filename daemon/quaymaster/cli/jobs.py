"""``quaymaster jobs``: list, show, retry and drop what is in the queue (PRODUCT Q5)."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from quaymaster.cli import complete, records, show
from quaymaster.cli.session import Session, WordLeftOut, in_session, shared_options
from quaymaster.errors import QuaymasterError, UsageError
from quaymaster.model import Job, State, shown
from quaymaster.service.view.choose import chosen

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Filter, Store

LISTED = 50
"""Rows of a list for people, unless --limit says otherwise. --json lists all."""

_RETRIED = (State.WAITING, State.PARKED)
_DROPPED = (State.QUEUED, State.WAITING, State.PARKED)


class _Jobs(WordLeftOut):
    """``jobs`` alone lists, ``jobs 42`` shows job 42."""

    def implied(self, first: str) -> str:
        return "show" if first.isdecimal() else "list"

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Words, numbers, and the options of the word that may be left out."""
        found = list(super().shell_complete(ctx, incomplete))
        if incomplete.startswith("-"):
            return list_jobs.shell_complete(click.Context(list_jobs, parent=ctx), incomplete)
        with suppress(QuaymasterError, OSError):
            found += complete.numbers(ctx, (), incomplete)
        return found


@click.group("jobs", cls=_Jobs)
@shared_options
def command() -> None:
    """List the queue, show one job, try parked jobs again or give them up.

    Without a word after it, list; with a number, show that job.

    \b
    Examples:
      quaymaster jobs                          the newest 50
      quaymaster jobs --state parked           those that wait for you
      quaymaster jobs 42                       everything about one
      quaymaster jobs retry --error unreachable
      quaymaster jobs drop 42 43
    """


def _filters(action: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--path",
            metavar="PATH",
            shell_complete=complete.files,
            help="This file, or all below this directory; absolute, or as listed.",
        ),
        click.option(
            "--error", metavar="CODE", shell_complete=complete.errors, help="With this error, e.g. unreachable."
        ),
        click.option("--watch", metavar="NAME", shell_complete=complete.watches, help="Of this watch."),
        click.option("--state", multiple=True, type=click.Choice([s.value for s in State]), help="May be repeated."),
    ):
        action = option(action)
    return action


@command.command("list")
@_filters
@click.option("--limit", type=click.IntRange(0), help=f"The newest N; 0: all. [{LISTED}; with --json all]")
@in_session
def list_jobs(session: Session, limit: int | None, **given: Any) -> int:
    """List jobs, the newest first.

    \b
    Examples:
      quaymaster jobs list --state waiting --state parked
      quaymaster jobs list --watch sequencer --path run7 --limit 0
    """
    config = session.sound_config()
    if limit is None:
        limit = 0 if session.json else LISTED
    with session.store(config) as store:
        which = _filter(config, store, given, limit=limit + 1 if limit else 0)
        found = sorted(store.jobs(which), key=lambda job: -job.id)
    more = bool(limit) and len(found) > limit
    found = found[:limit] if limit else found
    if session.json:
        print(show.as_json({"jobs": [records.job_record(job) for job in found], "more": more}))
        return 0
    for line in _table(found, shutil.get_terminal_size((80, 24)).columns, time.time()):
        print(line)
    if more:
        print(f"... and older ones: --limit 0 lists all, --limit N the newest N (now {limit})")
    return 0


def _table(jobs: Sequence[Job], columns: int, now: float) -> list[str]:
    if not jobs:
        return ["No job matches."]
    cells = [
        (
            str(job.id),
            job.state.value,
            job.stage.value if job.stage else "-",
            show.cut(show.plain(job.version.watch), 16),
            show.size(job.version.size),
            show.duration(now - job.queued_at),
            show.count(job.attempts),
            shown(job.version.path),
        )
        for job in jobs
    ]
    title, *lines = show.table((">ID", "STATE", "STAGE", "WATCH", ">SIZE", ">AGE", ">FAILED", "FILE"), cells, columns)
    out = [title]
    for job, line in zip(jobs, lines, strict=True):
        out.append(line)
        if job.state in (State.WAITING, State.PARKED):
            next_try = f"next try in {show.duration(job.retry_at - now)}; " if job.retry_at is not None else ""
            out += show.wrapped(f"{next_try}{job.error_code}: {job.error}", columns, 6)
    if any(job.state is State.PARKED for job in jobs):
        advice = "Parked jobs wait for you: mend the cause, then quaymaster jobs retry N; to give one up, jobs drop N."
        out += show.wrapped(advice, columns)
    return out


@command.command("show")
@click.argument("number", type=click.IntRange(1), metavar="N", shell_complete=complete.jobs())
@in_session
def show_job(session: Session, number: int) -> int:
    """Show one job: all of its fields, its deliveries with their digests, and its history from the custody log.

    \b
    Examples:
      quaymaster jobs 42
      quaymaster jobs show 42 --json
    """
    config = session.sound_config()
    with session.store(config) as store:
        found = store.jobs(_numbers((number,)))
        if not found:
            raise QuaymasterError(f"There is no job {number}", "quaymaster jobs lists them")
        job = found[0]
        deliveries, history = store.deliveries_of(job), store.history(job)
    if session.json:
        body = {
            **records.job_record(job),
            "deliveries": [records.delivery_record(delivery) for delivery in deliveries],
            "history": [records.entry_record(entry) for entry in history],
        }
        print(show.as_json(body))
        return 0
    print(f"job {job.id}")
    print("\n".join(records.job_lines(job)))
    for delivery in deliveries:
        print(f"delivered to {show.plain(delivery.proof.destination)}")
        print("\n".join(records.delivery_lines(delivery)))
    print("history (custody log: number, SHA-256, entry)" if history else "history: none yet")
    if history:
        print("\n".join(records.entry_lines(history)))
    return 0


@command.command("retry")
@click.argument("numbers", nargs=-1, type=click.IntRange(1), metavar="[N...]", shell_complete=complete.jobs(*_RETRIED))
@click.option("--all", "everything", is_flag=True, help="Every waiting or parked job.")
@_filters
@in_session
def retry(session: Session, numbers: tuple[int, ...], everything: bool, **given: Any) -> int:
    """Try waiting or parked jobs again now, with their failures forgotten.

    A job that was dropped comes back when it is named by its number or with --state dropped.

    \b
    Examples:
      quaymaster jobs retry 42 43
      quaymaster jobs retry --error permission-denied
      quaymaster jobs retry --all
    """
    config = session.sound_config()
    with session.store(config) as store:
        which = _chosen(config, store, numbers, everything, given, _RETRIED)
        before = {job.id: job for job in store.jobs(which)}
        done = store.retry(which)
    return _tell(session, "retried", "Queued again", "to try again", numbers, before, done)


@command.command("drop")
@click.argument("numbers", nargs=-1, type=click.IntRange(1), metavar="[N...]", shell_complete=complete.jobs(*_DROPPED))
@click.option("--all", "everything", is_flag=True, help="Every queued, waiting or parked job.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_filters
@in_session
def drop(session: Session, numbers: tuple[int, ...], everything: bool, yes: bool, **given: Any) -> int:
    """Give queued, waiting or parked jobs up. Their files stay where they are, and the same version of a file is not
    taken again, unless the job is retried.

    \b
    Examples:
      quaymaster jobs drop 42
      quaymaster jobs drop --watch old --error source-vanished
      quaymaster jobs drop --all --yes
    """
    config = session.sound_config()
    with session.store(config) as store:
        which = _chosen(config, store, numbers, everything, given, _DROPPED)
        before = {job.id: job for job in store.jobs(which)}
        if everything and before and not yes and sys.stdin.isatty():
            question = f"Give up {show.count(len(before), 'job')}? None of these files will be delivered."
            if not click.confirm(question, err=True):
                print("Nothing was dropped.", file=sys.stderr)
                return 1
        done = store.drop(which)
    return _tell(session, "dropped", "Dropped", "to drop", numbers, before, done)


def _chosen(
    config: Config, store: Store, numbers: tuple[int, ...], everything: bool, given: dict[str, Any],
    states: tuple[State, ...],
) -> Filter:  # fmt: skip
    """The jobs that an action is for. Nothing chosen is a mistake, never "all"."""
    filtered = any(given.values())
    if (bool(numbers), everything, filtered).count(True) != 1:
        raise UsageError("Name the jobs: by their numbers, or with --watch, --error, --path or --state, or --all")
    if numbers:
        return _numbers(numbers)
    return _filter(config, store, given, states=states)


def _filter(
    config: Config, store: Store, given: dict[str, Any], *, states: tuple[State, ...] = (), limit: int = 0
) -> Filter:
    return chosen(
        config,
        store,
        states=tuple(State(name) for name in given["state"]) or states,
        watch=given["watch"] or "",
        path=os.fsencode(given["path"] or ""),
        error_code=given["error"] or "",
        limit=limit,
    )


def _numbers(numbers: tuple[int, ...]) -> Filter:
    from quaymaster.store import Filter

    return Filter(ids=tuple(dict.fromkeys(numbers)))


def _tell(
    session: Session, key: str, did: str, what_for: str, numbers: tuple[int, ...], before: dict[int, Job],
    done: list[int],
) -> int:  # fmt: skip
    """Report an action; 1 when a job that was named by its number was left alone."""
    changed = set(done)
    left = [number for number in dict.fromkeys(numbers) if number not in changed]
    states = {number: before[number].state.value if number in before else None for number in left}
    if session.json:
        body = {key: sorted(changed), "refused": [{"id": n, "state": state} for n, state in states.items()]}
        print(show.as_json(body))
    elif changed or not left:
        print(f"{did}: {show.count(len(changed), 'job')}." if changed else f"No job {what_for} matches.")
    for number, state in states.items():
        reason = f"job {number} is {state}, so there is nothing {what_for}" if state else f"there is no job {number}"
        print(f"quaymaster: {reason}", file=sys.stderr)
    return 1 if left else 0
