"""``quaymaster hooks``: who is told what, what they were not told yet, and a test (PRODUCT O4)."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import click

from quaymaster.cli import complete, show
from quaymaster.cli.pause import operator
from quaymaster.cli.session import Session, WordLeftOut, in_session, shared_options
from quaymaster.errors import UsageError
from quaymaster.service.view.records import Record

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from quaymaster.config import Config, Hook
    from quaymaster.store import Store

_LOOK = 0.1
_LONGER = 15.0
"""Seconds beyond the hook's own time that a test may take: the service looks once a second."""


class _Hooks(WordLeftOut):
    """``hooks`` alone lists, ``hooks NAME`` shows that one."""

    def implied(self, first: str) -> str:
        return "show" if first and not first.startswith("-") else "list"

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Words, names, and the options of the word that may be left out."""
        if incomplete.startswith("-"):
            return list_hooks.shell_complete(click.Context(list_hooks, parent=ctx), incomplete)
        return [*super().shell_complete(ctx, incomplete), *complete.hooks(ctx, show_hook.params[0], incomplete)]


@click.group("hooks", cls=_Hooks)
@shared_options
def command() -> None:
    """List who is told what happens, try a hook, or have it told again what it did not take.

    Without a word after it, list; with a name, show that hook and what it was not told.

    \b
    Examples:
      quaymaster hooks                   how each stands
      quaymaster hooks mail              what it was not told yet, and why
      quaymaster hooks test mail         send a test now
      quaymaster hooks retry mail        try again now what failed or was given up
      quaymaster hooks skip mail 17      never tell it that
    """


@command.command("list")
@in_session
def list_hooks(session: Session) -> int:
    """List each hook: its events, what it was not told, since when, and its last error."""
    config = session.config()
    from quaymaster.service.view.hooks import hook_records

    with session.store(config) as store:
        found = hook_records(config, store, time.time())
    if session.json:
        print(show.as_json({"hooks": found}))
    elif not found:
        print("No hook is configured; see [hook.NAME] in quaymaster.toml(5).")
    else:
        print("\n".join(table(found, shutil.get_terminal_size((80, 24)).columns, time.time())))
    return 0


def table(hooks: list[Record], columns: int, now: float) -> list[str]:
    """For people: a line each, and below it what is wrong."""
    cells = [
        (
            show.cut(show.plain(hook["name"]), 20),
            hook["type"],
            hook["state"],
            show.count(hook["waiting"]) + ("+" if hook["behind"] else ""),
            show.count(hook["parked"]),
            show.duration(now - hook["oldest"]) if hook["oldest"] is not None else "-",
            show.when(hook["last_success"]) or "-",
        )
        for hook in hooks
    ]
    title, *lines = show.table(("HOOK", "TYPE", "STATE", ">WAITING", ">PARKED", ">OLDEST", "LAST TOLD"), cells)
    rows = [title]
    for hook, line in zip(hooks, lines, strict=True):
        rows += [line, *(show.wrapped(told, columns, 2, 4) if (told := _trouble(hook, now)) else [])]
    return rows


def _trouble(hook: Record, now: float) -> str:
    if hook["state"] == "failing":
        since = show.duration(now - hook["failing_since"])
        return f"for {since}: {hook['last_error']}; when that is mended: quaymaster hooks retry {hook['name']}"
    if hook["parked"]:
        return f"given up on {show.count(hook['parked'], 'event')}: quaymaster hooks {hook['name']}"
    return ""


@command.command("show")
@click.argument("name", shell_complete=complete.hooks)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, help="At most N events. [50]")
@in_session
def show_hook(session: Session, name: str, limit: int) -> int:
    """Show one hook, and the events that it was not told: those that failed first."""
    config = session.config()
    from quaymaster.service.view.hooks import hook_records, message_record

    _hook(config, name)
    with session.store(config) as store:
        (found,) = [record for record in hook_records(config, store, time.time()) if record["name"] == name]
        found["events"] = [message_record(message) for message in store.outbox.messages(name, limit)]
    if session.json:
        print(show.as_json(found))
        return 0
    columns = shutil.get_terminal_size((80, 24)).columns
    print("\n".join(table([found], columns, time.time())))
    print(f"  told of: {', '.join(found['on'])}" + (f"; of {', '.join(found['watches'])}" if found["watches"] else ""))
    if found["events"]:
        print("\n" + "\n".join(_event_lines(found["events"], columns)))
    more = found["waiting"] + found["parked"] - len(found["events"])
    if more > 0 or found["behind"]:
        print(f"... and {show.count(max(more, 0))} more here, {show.count(found['behind'])} entries behind them")
    return 0


def _event_lines(events: list[Record], columns: int) -> list[str]:
    cells = []
    for event in events:
        about = "/".join(str(event[key]) for key in ("watch", "path", "unit", "destination") if event.get(key))
        tries = show.count(event["attempts"])
        cells.append(
            (str(event["id"]), event["event"], event["state"], tries, show.when(event["at"]), show.plain(about))
        )
    lines = show.table((">NUMBER", "EVENT", "STATE", ">FAILED", "HAPPENED", "WHAT"), cells, columns)
    errors = dict.fromkeys(event["error"] for event in events if event["error"])
    return lines + [line for error in errors for line in show.wrapped(error, columns, 2, 4)]


@command.command("test")
@click.argument("name", shell_complete=complete.hooks)
@click.option(
    "--event",
    metavar="EVENT",
    shell_complete=complete.events,
    help="Of this kind; else the first that the hook is told of.",
)
@in_session
def test(session: Session, name: str, event: str | None) -> int:
    """Send a test now, marked with "test": true, and say what came of it.

    The running service sends it, with its own permissions; while it is stopped this command does. Exit status 1 when
    it was not taken.
    """
    config = session.config()
    from quaymaster.service.lock import holder
    from quaymaster.store.outbox import EVENTS

    hook = _hook(config, name)
    kind = event or hook.on[0]
    if kind not in EVENTS:
        raise UsageError(f"There is no event {show.plain(kind)}", f"The events are: {', '.join(EVENTS)}")
    with session.store(config) as store:
        runs = holder(config.service.state_dir) is not None
        began = time.monotonic()
        error = _by_service(config, store, hook, kind) if runs else _by_ourselves(config, store, hook, kind)
    seconds = time.monotonic() - began
    by = "the service" if runs else "this command (the service is not running)"
    if session.json:
        print(show.as_json({"hook": name, "event": kind, "taken": not error, "error": error, "service_running": runs}))
    elif error:
        print(f"{name} did not take the test that {by} sent: {show.plain(error)}")
    else:
        print(f"{name} took the test that {by} sent, within {seconds:.1f} s")
    return 1 if error else 0


def _by_service(config: Config, store: Store, hook: Hook, event: str) -> str:
    number = store.outbox.test(hook.name, event, _sample(config, hook, event))
    deadline = time.monotonic() + hook.timeout + hook.connect_timeout + _LONGER
    try:
        while (error := store.outbox.tested(hook.name, number)) is None:
            if time.monotonic() > deadline:
                return "the service did not send it in time; does it know this hook? systemctl reload quaymaster"
            time.sleep(_LOOK)
    finally:
        store.outbox.withdraw_test(number)
    return error


def _by_ourselves(config: Config, store: Store, hook: Hook, event: str) -> str:
    from quaymaster.service.heads import log_of
    from quaymaster.service.hooks import sender
    from quaymaster.service.hooks.payload import encoded, payload
    from quaymaster.store.outbox import Message

    now = time.time()
    message = Message(int(now), hook.name, 0, event, now, _sample(config, hook, event))
    found = payload(message, log_of(store), config.service.host)
    return sender(hook, os.environ).send(event, found["id"], encoded(found)).error


def _sample(config: Config, hook: Hook, event: str) -> Record:
    from quaymaster.service.hooks.payload import sample

    watch = next(iter(hook.watches or config.watches), "")
    to = config.watches[watch].destinations[0] if watch else ""
    return sample(event, watch, to)


@command.command("retry")
@click.argument("name", shell_complete=complete.hooks)
@in_session
def retry(session: Session, name: str) -> int:
    """Tell a hook again now what it did not take, also what was given up."""
    config = session.config()
    _hook(config, name)
    with session.store(config) as store:
        number = store.outbox.retry(name, operator(os.environ))
    if session.json:
        print(show.as_json({"hook": name, "retried": number}))
    else:
        print(f"{show.count(number, 'event')} will be told to {name} again now" if number else "nothing failed")
    return 0


@command.command("skip")
@click.argument("name", shell_complete=complete.hooks)
@click.argument(
    "numbers",
    nargs=-1,
    required=True,
    type=click.IntRange(1),
    metavar="NUMBER...",
    shell_complete=complete.untold,
)
@in_session
def skip(session: Session, name: str, numbers: tuple[int, ...]) -> int:
    """Never tell a hook these events: their numbers are in quaymaster hooks NAME. A source that waits for them with
    after_hooks waits no longer. The custody log notes who said so."""
    config = session.config()
    _hook(config, name)
    with session.store(config) as store:
        done = store.outbox.skip(name, numbers, operator(os.environ))
    missing = [number for number in numbers if number not in done]
    if session.json:
        print(show.as_json({"hook": name, "skipped": done, "missing": missing}))
    else:
        print(f"{show.count(len(done), 'event')} of {name} skipped")
        if missing:
            print(f"not there, or told meanwhile: {', '.join(map(str, missing))}")
    return 1 if missing else 0


def _hook(config: Config, name: str) -> Hook:
    if name not in config.hooks:
        known = ", ".join(config.hooks) or "none"
        raise UsageError(f"There is no hook {show.plain(name)}", f"The hooks are: {known}")
    return config.hooks[name]
