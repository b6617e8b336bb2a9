"""What every command has in common: --config, --json, the configuration and the store behind them."""

from __future__ import annotations

import abc
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from quaymaster.errors import ConfigError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from quaymaster.config import Config
    from quaymaster.store import Store

R = TypeVar("R")

CONFIG_VARIABLE = "QUAYMASTER_CONFIG"
DEFAULT_CONFIG = "/etc/quaymaster/quaymaster.toml"  # config.DEFAULT_PATH, without importing pydantic for --help


def _a_file(incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


_config_option = click.option(
    "--config",
    "config_path",
    metavar="FILE",
    shell_complete=lambda context, parameter, incomplete: _a_file(incomplete),
    help=f"The configuration; else ${CONFIG_VARIABLE}, else {DEFAULT_CONFIG}.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@dataclass(frozen=True)
class Session:
    """One call of a command."""

    config_path: str
    json: bool

    def config(self) -> Config:
        """Raises ConfigError whose last line counts the problems and names the file."""
        from quaymaster.config import load

        with self.counting_problems():
            return load(self.config_path)

    def sound_config(self) -> Config:
        """The configuration without what is wrong in it, which is told: the queue can be looked at, and seen to, while
        a table has a mistake. Raises ConfigError when it is open where the queue is."""
        from quaymaster.cli import show
        from quaymaster.config import load_sound

        with self.counting_problems():
            config, problems = load_sound(self.config_path)
        if problems:
            number = show.count(len(problems), "problem")
            said = f"{number} in {self.config_path}: a running service goes on with what it had (quaymaster check)"
            click.echo(f"warning: {said}", err=True)
        return config

    @contextmanager
    def counting_problems(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            number = len(error.problems)
            total = f"{number} problem{'s' if number != 1 else ''} in {self.config_path}"
            raise ConfigError([*error.problems, total]) from None

    @contextmanager
    def store(self, config: Config) -> Iterator[Store]:
        """The store of this configuration, which the service must have made. Raises StoreError."""
        from quaymaster.store import Store

        with closing(Store(config.service.state_dir)) as store:
            yield store


def shared_options(command: Callable[..., R]) -> Callable[..., R]:
    """--config and --json before the name of a command, which reads them."""

    @_json_option
    @_config_option
    @functools.wraps(command)
    def with_options(*args: Any, config_path: str | None, as_json: bool, **kwargs: Any) -> R:
        return command(*args, **kwargs)

    return with_options


def in_session(command: Callable[..., R]) -> Callable[..., R]:
    """Gives the command its Session first. Its own --config wins over one given earlier on the line."""

    @_json_option
    @_config_option
    @functools.wraps(command)
    def with_session(*args: Any, config_path: str | None, as_json: bool, **kwargs: Any) -> R:
        return command(session_of(click.get_current_context()), *args, **kwargs)

    return with_session


def session_of(context: click.Context) -> Session:
    levels: list[dict[str, Any]] = []
    level: click.Context | None = context
    while level is not None:
        levels.append(level.params)
        level = level.parent
    named = next((params["config_path"] for params in levels if params.get("config_path")), None)
    return Session(
        config_path=named or os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG,
        json=any(params.get("as_json") for params in levels),
    )


class WordLeftOut(click.Group, abc.ABC):
    """A group of which the word after it may be left out: then the one that ``implied`` names is put in."""

    @abc.abstractmethod
    def implied(self, first: str) -> str:
        """The word that goes before the first argument (empty: there is none); empty for none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = 0
        while at < len(args) and (args[at] in ("--json", "--config") or args[at].startswith("--config=")):
            at += 2 if args[at] == "--config" else 1
        first = args[at] if at < len(args) else ""
        asked = at == len(args) and ctx.resilient_parsing  # by a shell, what may come here
        if (
            not asked
            and at <= len(args)
            and first not in (*self.commands, "-h", "--help")
            and (word := self.implied(first))
        ):
            args.insert(at, word)
        return super().parse_args(ctx, args)
