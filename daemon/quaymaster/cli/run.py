"""``quaymaster run``: the service itself, in the foreground."""

from __future__ import annotations

import os

import click

from quaymaster.cli.session import Session, in_session
from quaymaster.errors import UsageError


@click.command("run")
@in_session
def command(session: Session) -> int:
    """Run the service in the foreground, until SIGTERM or Ctrl-C.

    systemd does this: systemctl start quaymaster. What is in flight at the end continues at the next start. SIGHUP
    applies a changed configuration (on a terminal it stops the service, as a closed terminal does).

    \b
    Examples:
      quaymaster run
      quaymaster run --config /srv/test/quaymaster.toml
    """
    if session.json:
        raise UsageError("run has no --json", "Its log goes to the journal: journalctl -u quaymaster -o json")
    from quaymaster.service import daemon

    with session.counting_problems():
        return daemon.run(os.path.abspath(session.config_path))
