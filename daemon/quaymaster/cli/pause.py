"""``quaymaster pause``: begin no more files of a watch. Also what ``resume`` and ``rescan`` share with it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence

import click

from quaymaster.cli import complete, show
from quaymaster.cli.session import Session, in_session
from quaymaster.service.view.records import Record


@click.command("pause")
@click.argument("watches", nargs=-1, metavar="[WATCH...]", shell_complete=complete.watches)
@in_session
def command(session: Session, watches: tuple[str, ...]) -> int:
    """Begin no more files of these watches, or of all. What is being delivered is finished; what lands is noticed and
    queued as before. It holds over restarts, until quaymaster resume.

    \b
    Examples:
      quaymaster pause sequencer
      quaymaster pause && quaymaster status
    """
    found, running = ask(session, "pause", watches)
    if not session.json:
        told = {watch["name"]: watch["paused"] for watch in found["watches"]}
        for name in told:
            if name in found["changed"]:
                print(f"{name} is paused; go on with: quaymaster resume {name}")
            else:
                print(f"{name} was paused before, since {show.when(told[name]['since'])} by {told[name]['by']}")
        if running:
            print("what is being delivered is finished; nothing more is begun")
    return 0


def ask(session: Session, action: str, watches: Sequence[str]) -> tuple[Record, bool]:
    """What came of an action on watches, and whether the service runs. Prints it when JSON is asked for."""
    config = session.config()
    from quaymaster.service.control import act
    from quaymaster.service.lock import holder

    with session.store(config) as store:
        found = act(action, config, store, watches, operator(os.environ))
    running = holder(config.service.state_dir) is not None
    if session.json:
        print(show.as_json({**found, "service_running": running}))
    return found, running


def operator(environ: Mapping[str, str]) -> str:
    """Who calls the command, for the custody log: the user, and who became that user with sudo(8)."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    before = show.plain(environ.get("SUDO_USER", ""))
    return f"{before} as {name}" if before and before != name else name
