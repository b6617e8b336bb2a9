"""``quaymaster accept``: a directory that stands on another filesystem than before is right as it is (PRODUCT W6)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from quaymaster.cli import complete, show
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quaymaster.config import Config


@click.command("accept")
@click.argument("name", shell_complete=complete.named)
@in_session
def command(session: Session, name: str) -> int:
    """Take the filesystem as right that the watch or destination NAME stands on now.

    The service remembers what each directory stands on, so that a share which is not mounted is never taken for an
    empty directory, nor filled below its mount point. After a change that was meant, tell it so with this command. It
    works while the service runs, which goes on within seconds, and while it is stopped.

    \b
    Examples:
      quaymaster accept sequencer
      quaymaster accept archive
    """
    from quaymaster.service import anchor

    config = session.config()
    _require_known(config, name)
    kept = [anchor.of_watch(name), anchor.of_move(name)] if name in config.watches else []
    kept += [anchor.of_destination(name)] if name in config.destinations else []
    with session.store(config) as store:
        forgotten = [was for kept_as in kept if (was := anchor.accept(store, kept_as, time.time())) is not None]
        if forgotten:
            store.note("filesystem-accepted", {"name": name, "by": "operator", "instead_of": forgotten})
    if session.json:
        print(show.as_json({"name": name, "forgotten": forgotten}))
    elif forgotten:
        for was in forgotten:
            print(f"forgotten: {_shown(was)}")
        print(f"whatever {show.plain(name)} stands on now counts as right")
    else:
        print(f"nothing was remembered of {show.plain(name)}: whatever it stands on counts as right")
    return 0


def _require_known(config: Config, name: str) -> None:
    names = sorted({*config.watches, *config.destinations})
    if name not in names:
        raise UsageError(f"There is no watch or destination {name}", f"There are {', '.join(names)}")


def _shown(was: Mapping[str, Any]) -> str:
    return show.plain(f"{was.get('path')} on the {was.get('type')} filesystem {was.get('device')}")
