"""Which jobs an operator means: the filters of ``quaymaster jobs`` and of the API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quaymaster.errors import UsageError
from quaymaster.model import State, plain, shown
from quaymaster.service.view.locate import locate
from quaymaster.service.view.mirrored import mirror_place

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
    """``path`` is absolute, or relative to its watch; ``watch`` may be a mirror. Raises UsageError for one that neither
    the configuration nor the queue has, and QuaymasterError for a path under none."""
    from quaymaster.store import Filter

    known = [*config.watches, *config.mirrors]
    if watch and watch not in known and watch not in store.counts():
        what = "watches and mirrors" if config.mirrors else "watches"
        raise UsageError(f"There is no watch {plain(watch)}", f"The {what} are: {', '.join(known)}")
    if path.startswith(b"/"):
        name, below = _place(config, path)
        if watch and watch != name:
            kind = "mirror" if name in config.mirrors else "watch"
            raise UsageError(f"{shown(path)} is in the {kind} {name}, not {plain(watch)}")
        watch, path = name, below
    return Filter(
        states=tuple(states), watch=watch, path=path.rstrip(b"/"), error_code=error_code, limit=limit, before=before
    )


def _place(config: Config, path: bytes) -> tuple[str, bytes]:
    """The name of the watch or mirror, and where it is in it."""
    mirrored = mirror_place(config, path)
    if mirrored is not None:
        return mirrored.mirror.name, mirrored.path
    place = locate(config, path)
    return place.watch.name, place.path
