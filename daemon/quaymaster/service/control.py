"""What operators may ask of watches, from the command line and over HTTP: pause, resume, rescan.

What is asked stands in the store: it outlives restarts, and the running service does it within about a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quaymaster.errors import UsageError
from quaymaster.model import plain
from quaymaster.service.view.records import Record

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Store

ACTIONS = ("pause", "resume", "rescan")


def act(action: str, config: Config, store: Store, names: Sequence[str], by: str) -> Record:
    """Do one of ACTIONS to the watches of these names, or to all. ``changed`` in what it returns are those for which
    it made a difference. Raises UsageError for a name that is no watch's, and StoreError."""
    # A watch that was taken out of the configuration may still be resumed.
    named = [*config.watches, *config.mirrors]
    known = [*named, *(name for name in store.control().paused if name not in named)]
    for name in names:
        if name not in known:
            raise UsageError(f"There is no watch {plain(name)}", f"The watches are: {', '.join(named)}")
    chosen = list(dict.fromkeys(names)) or (known if action == "resume" else named)
    match action:
        case "pause":
            changed = store.pause(chosen, by)
        case "resume":
            changed = store.resume(chosen, by)
        case _:
            store.rescan(chosen, by)
            changed = chosen
    paused = store.control().paused
    watches = [
        {"name": n, "paused": {"since": paused[n].since, "by": paused[n].by} if n in paused else None} for n in chosen
    ]
    return {"action": action, "changed": changed, "watches": watches}
