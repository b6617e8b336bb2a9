"""What a shell offers when Tab is pressed: names from the configuration, numbers from the queue, files.

Nothing here may fail or print: a wrong configuration, or a queue that cannot be read, offers nothing.
"""

from __future__ import annotations

import functools
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
    return [*_starting(_config(context).watches, incomplete, "a watch"), CompletionItem(incomplete, type="dir")]


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
    return [CompletionItem(incomplete, type="dir")]
