"""``quaymaster resume``: go on with a paused watch."""

from __future__ import annotations

import click

from quaymaster.cli import complete
from quaymaster.cli.pause import ask
from quaymaster.cli.session import Session, in_session


@click.command("resume")
@click.argument("watches", nargs=-1, metavar="[WATCH...]", shell_complete=complete.watches)
@in_session
def command(session: Session, watches: tuple[str, ...]) -> int:
    """Go on with these watches, or with all, after quaymaster pause.

    \b
    Examples:
      quaymaster resume sequencer
      quaymaster resume
    """
    found, _ = ask(session, "resume", watches)
    if not session.json:
        for watch in found["watches"]:
            print(f"{watch['name']} {'goes on' if watch['name'] in found['changed'] else 'was not paused'}")
    return 0
