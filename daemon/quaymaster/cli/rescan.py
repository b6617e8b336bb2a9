"""``quaymaster rescan``: look through watches now, instead of at the next ``rescan_interval``."""

from __future__ import annotations

import click

from quaymaster.cli import complete
from quaymaster.cli.pause import ask
from quaymaster.cli.session import Session, in_session


@click.command("rescan")
@click.argument("watches", nargs=-1, metavar="[WATCH...]", shell_complete=complete.watches)
@in_session
def command(session: Session, watches: tuple[str, ...]) -> int:
    """Have the running service look through these watches, or all, within about a second. It does so by itself at its
    start, regularly, and whenever events may have been missed.

    \b
    Examples:
      quaymaster rescan sequencer
      quaymaster rescan
    """
    found, running = ask(session, "rescan", watches)
    if not session.json:
        names = ", ".join(found["changed"])
        print(f"{names}: scanned now" if running else f"{names}: scanned when the service starts; it is not running")
    return 0
