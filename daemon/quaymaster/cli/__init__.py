"""The command line: one file a command, loaded when it is called.

Exit codes: 0 done, 1 some of it failed, 2 wrong usage or configuration, 3 an integrity failure was found; as shells
have it, 130 after Ctrl-C and 141 when the reader of a pipe went away. Messages go to stderr, also under ``--json``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import click

from quaymaster import __version__
from quaymaster.cli import show
from quaymaster.cli.session import shared_options
from quaymaster.errors import ConfigError, QuaymasterError

PROGRAM = "quaymaster"
DEBUG = "QUAYMASTER_DEBUG"
COMPLETE = "_QUAYMASTER_COMPLETE"

COMMANDS = (
    "run",
    "check",
    "config",
    "status",
    "top",
    "jobs",
    "units",
    "pause",
    "resume",
    "rescan",
    "hooks",
    "why",
    "prove",
    "sync",
    "report",
    "mirror",
    "verify",
    "restore",
    "accept",
    "audit",
    "doctor",
    "rebuild",
)
"""Each is the object ``command`` of the module with its name."""


class _Commands(click.Group):
    """Imports a command only when it is needed: ``--version`` pays for none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"quaymaster.cli.{cmd_name}").command
        return command


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog="Help on one: quaymaster COMMAND -h"
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@shared_options
def commands() -> None:
    """Takes files the moment they land, compresses, verifies and uploads them, with proof for every byte.

    \b
    Examples:
      quaymaster check                            is the configuration right?
      quaymaster status                           what is going on
      quaymaster top                              the same, live
      quaymaster why /srv/run1/reads.fastq        why has this file not been delivered?
      quaymaster jobs retry --error unreachable   try again now
      quaymaster prove /srv/run1/reads.fastq      where it is, and the proof

    Exit codes: 0 done, 1 some of it failed, 2 wrong usage or configuration, 3 an integrity failure was found.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. No traceback leaves here unless QUAYMASTER_DEBUG is set."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not when a test has put its own there
            stream.reconfigure(errors="backslashreplace")  # a locale without UTF-8 still shows every name
    try:
        return _main(arguments)
    finally:
        _let_go(sys.stderr, 2)


def _main(arguments: Sequence[str]) -> int:
    try:
        if COMPLETE in os.environ:
            commands.main(list(arguments), prog_name=PROGRAM)
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return 141
    except OSError as error:
        _forget_output()
        return _say(f"internal error: {error}; run with {DEBUG}=1 for details", 1)
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        with commands.make_context(PROGRAM, list(arguments)) as context:
            code = commands.invoke(context)
            return code if isinstance(code, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context_of = getattr(error, "ctx", None)
        where = context_of.command_path if context_of else PROGRAM
        return _say(f"{error.format_message().rstrip('.')}. Try: {where} --help", error.exit_code)
    except ConfigError as error:
        for line in error.problems:
            print(show.plain(line), file=sys.stderr)
        return error.exit_code
    except QuaymasterError as error:
        return _say(str(error), error.exit_code)
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get(DEBUG):
            import traceback

            traceback.print_exc()
        text = str(error) or type(error).__name__
        return _say(f"internal error: {text}; run with {DEBUG}=1 for details", 1)


def _say(message: str, code: int) -> int:
    print(f"{PROGRAM}: {show.plain(message)}", file=sys.stderr)
    return code


def _let_go(stream: TextIO, descriptor: int) -> None:
    """What could not be said to a stream that nobody reads must not become the exit status (it would be 120)."""
    try:
        stream.flush()
    except (OSError, ValueError):
        if stream is sys.__stderr__:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _forget_output() -> None:
    """Nobody reads stdout any more, or it is full: keep the interpreter's last flush from failing too."""
    if sys.stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
