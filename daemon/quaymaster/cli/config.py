"""``quaymaster config``: every setting in effect, and where it comes from."""

from __future__ import annotations

import click

from quaymaster.cli.session import Session, in_session


@click.command("config")
@in_session
def command(session: Session) -> int:
    """Print the configuration in effect: defaults, files and conf.d together.

    Each line ends in the file and line that the value comes from. The output is a valid configuration itself.
    Secrets are never in it.

    \b
    Examples:
      quaymaster config
      quaymaster config --json | jq '.settings[] | select(.where != "default")'
    """
    from quaymaster.config import to_json, to_toml

    config = session.config()
    print((to_json(config) if session.json else to_toml(config)).rstrip("\n"))
    return 0
