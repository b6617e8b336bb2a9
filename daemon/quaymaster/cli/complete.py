"""What a shell offers when Tab is pressed: names from the configuration, numbers from the queue, files.

Nothing here may fail or print: a wrong configuration, or a queue that cannot be read, offers nothing.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from quaymaster.cli.session import session_of
from quaymaster.errors import QuaymasterError
from quaymaster.model import State, shown

if TYPE_CHECKING:
    from quaymaster.config import Config

Offer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
_MOST = 1000
"""Jobs that are looked at, the newest; a shell shows fewer."""
_PLAIN = re.compile(rb"[A-Za-z0-9_./+%@-]+")
"""Paths that no shell takes for something else; the others it completes itself, as files."""


def _offer(find: Callable[[click.Context, str], Iterable[CompletionItem]]) -> Offer:
    @functools.wraps(find)
    def offer(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        given = context.params.get(parameter.name or "") if parameter.nargs == -1 else None
        try:
            taken = {str(word) for word in given or ()}
            return [item for item in find(context, incomplete) if item.value not in taken]
        except (QuaymasterError, OSError):
            return []

    return offer


def _config(context: click.Context) -> Config:
    return session_of(context).config()


def _starting(names: Iterable[str], incomplete: str, text: str) -> Iterable[CompletionItem]:
    return [CompletionItem(name, help=text) for name in names if name.startswith(incomplete)]


@_offer
def watches(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    return _starting(_config(context).watches, incomplete, "a watch")


@_offer
def destinations(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    return _starting(_config(context).destinations, incomplete, "a destination")


@_offer
def places(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """Watches, and directories."""
    return [_directory(incomplete), *_starting(_config(context).watches, incomplete, "a watch")]


@_offer
def hooks(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    return _starting(_config(context).hooks, incomplete, "a hook")


@_offer
def events(_context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """What hooks can be told of."""
    from quaymaster.store.outbox import EVENTS

    return _starting(EVENTS, incomplete, "an event")


@_offer
def untold(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """Numbers of events that the hook that is named was not told, those that failed first."""
    session = session_of(context)
    with session.store(session.config()) as store:
        found = store.outbox.messages(str(context.params.get("name")), _MOST)
    return [
        CompletionItem(str(message.id), help=f"{message.event} {message.fields.get('path', '')}".strip())
        for message in found
        if str(message.id).startswith(incomplete)
    ]


def units(*states: str) -> Offer:
    """Directories that are units in these states, or in any; where none fits, directories."""

    @_offer
    def offer(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
        from quaymaster.store import UnitState

        session = session_of(context)
        config = session.config()
        with session.store(config) as store:
            known = store.units.find(states=[UnitState(state) for state in states])
        watches = {name: os.fsencode(watch.path) for name, watch in config.watches.items()}
        paths = [(os.path.join(watches[u.watch], u.path), u.state) for u in known if u.watch in watches]
        found = [(os.fsdecode(path), state) for path, state in paths if _PLAIN.fullmatch(path)]
        named = [CompletionItem(path, help=f"{state} unit") for path, state in found if path.startswith(incomplete)]
        # Not beside directories: zsh takes the same path, offered in two ways, for two, and then completes neither.
        return named[:_MOST] or [_directory(incomplete)]

    return offer


@_offer
def named(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """Watches and destinations."""
    config = _config(context)
    found = _starting(config.watches, incomplete, "a watch")
    return [*found, *_starting(config.destinations, incomplete, "a destination")]


@_offer
def errors(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """The codes of what fails now."""
    session = session_of(context)
    with session.store(session.config()) as store:
        held = store.held()
    return _starting(sorted({group.error_code for group in held} - {""}), incomplete, "fails now")


def jobs(*states: State) -> Offer:
    """Numbers of jobs in these states, or in any, the newest first."""

    @_offer
    def offer(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
        return numbers(context, states, incomplete)

    return offer


def numbers(context: click.Context, states: Sequence[State], incomplete: str) -> list[CompletionItem]:
    """Raises QuaymasterError."""
    from quaymaster.store import Filter

    session = session_of(context)
    with session.store(session.config()) as store:
        found = store.jobs(Filter(states=tuple(states), limit=_MOST))
    return [
        CompletionItem(str(job.id), help=f"{job.state.value} {job.version.watch}/{shown(job.version.path)}")
        for job in sorted(found, key=lambda job: -job.id)
        if str(job.id).startswith(incomplete)
    ]


def files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


def directories(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [_directory(incomplete)]


def _directory(incomplete: str) -> CompletionItem:
    """Before names: for bash it would take away those before it, and comes into play where none fits."""
    return CompletionItem(incomplete, type="dir")
