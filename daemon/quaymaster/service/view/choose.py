"""Which jobs an operator means: the filters of ``quaymaster jobs`` and of the API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quaymaster.errors import UsageError
from quaymaster.model import State, plain, shown
from quaymaster.service.view.locate import locate

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Filter, Store


def chosen(
    config: Config,
    store: Store,
    *,
    states: Iterable[State] = (),
    watch: str = "",
    path: bytes = b"",
    error_code: str = "",
    limit: int = 0,
    before: int = 0,
) -> Filter:
    """``path`` is absolute, or relative to its watch. Raises UsageError for a watch that neither the configuration nor
    the queue has, and QuaymasterError for a path under none."""
    from quaymaster.store import Filter

    if watch and watch not in config.watches and watch not in store.counts():
        raise UsageError(f"There is no watch {plain(watch)}", f"The watches are: {', '.join(config.watches)}")
    if path.startswith(b"/"):
        place = locate(config, path)
        if watch and watch != place.watch.name:
            raise UsageError(f"{shown(path)} is in the watch {place.watch.name}, not {plain(watch)}")
        watch, path = place.watch.name, place.path
    return Filter(
        states=tuple(states), watch=watch, path=path.rstrip(b"/"), error_code=error_code, limit=limit, before=before
    )
