"""``quaymaster check``: is the configuration right, and does this machine have what it names?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from quaymaster.cli import show
from quaymaster.cli.records import Record
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import ConfigError, IntegrityError, QuaymasterError

if TYPE_CHECKING:
    from quaymaster.config import Config


@click.command("check")
@click.option("--destinations", is_flag=True, help="Also write, read back and remove a probe at each destination.")
@in_session
def command(session: Session, destinations: bool) -> int:
    """Check the configuration: every problem with its file and line.

    What is right in the text but missing on this machine (a directory, a credential) is a warning. With
    --destinations each destination is really tried; exit code 1 if one fails.

    \b
    Examples:
      quaymaster check
      quaymaster check --destinations
      quaymaster check --config ./quaymaster.toml --json
    """
    from quaymaster.config import problems_on_disk

    try:
        config = session.config()
    except ConfigError as error:
        if session.json:
            print(show.as_json({"valid": False, "problems": error.problems[:-1]}))
        raise
    warnings = problems_on_disk(config)
    found = _try_destinations(config) if destinations else []
    if session.json:
        body = {"valid": True, "sources": list(config.sources), "warnings": warnings}
        if destinations:
            body["destinations"] = [{key: value for key, value in tried.items() if key != "exit"} for tried in found]
        print(show.as_json(body))
    else:
        _print(config, warnings, found)
    for tried in found:
        if not tried["ok"]:
            print(show.plain(f"quaymaster: destination {tried['name']}: {tried['error']}"), file=sys.stderr)
    return max((tried["exit"] for tried in found), default=0)


def _print(config: Config, warnings: list[str], found: list[Record]) -> None:
    for warning in warnings:
        print(f"warning: {show.plain(warning)}")
    for tried in found:
        print(f"destination {show.plain(tried['name'])}: {'works' if tried['ok'] else 'FAILS'}")
        for fact in tried["facts"]:
            print(f"  {show.plain(fact)}")
    total = f", {show.count(len(warnings), 'warning')}" if warnings else ""
    print(f"{', '.join(config.sources)}: configuration is valid{total}")


def _try_destinations(config: Config) -> list[Record]:
    from quaymaster.service.doctor import places, trial

    found = []
    for name in config.destinations:
        tried: Record = {"name": name, "ok": True, "facts": [], "error": "", "exit": 0}
        try:
            for _, destination in places(config, name):
                try:
                    tried["facts"] += trial(destination, name in config.only_read)
                finally:
                    destination.close()
        except QuaymasterError as error:
            code = 3 if isinstance(error, IntegrityError) else 1
            tried |= {"ok": False, "error": str(error), "exit": code}
        found.append(tried)
    return found
