"""From configuration to the way that the files of one watch take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

from quaymaster import keys
from quaymaster.config import Config, Watch
from quaymaster.destinations.base import Destination
from quaymaster.intake.mounts import Ground
from quaymaster.model import Emit, published_as
from quaymaster.pipeline.dispose import Disposal
from quaymaster.pipeline.route import Route, Standing
from quaymaster.pipeline.worker import Lane
from quaymaster.service import anchor, build
from quaymaster.service.anchor import Anchor
from quaymaster.source import Pulse, Root


class Attended(Standing, Protocol):
    """Where a watch is, as whoever looks after it knows."""

    pulse: Pulse

    def ground(self) -> Ground | None:
        """What it stands on; None while it is away."""
        ...


def lane(
    config: Config, watch: Watch, shared: Mapping[str, Destination], emit: Emit, standing: Attended, moved_to: Anchor
) -> Lane:
    """How the files of one watch travel and what becomes of them afterwards. Nothing is looked at: it may hang."""
    next_to = build.beside(config, watch)
    found = {
        name: build.next_to_sources(name, watch, emit, anchor.beside(standing.ground))
        if name in next_to
        else shared[name]
        for name in watch.destinations
    }
    route = Route(
        watch=watch,
        root=Root(watch.path, hard_links=watch.hard_links, pulse=standing.pulse),
        destinations=found,
        beside=next_to,
        standing=standing,
        host=config.service.host,
        compression_disabled=config.compression_disabled,
    )
    mover = None
    if watch.after_dir:
        mover = build.in_time(f"{watch.name}:after", watch.after_dir, watch.hang_after, emit, moved_to)
    return Lane(route, Disposal(watch.after, mover, watch.after_dir or ""), watch.after_grace)


class _Here:
    """Of a directory of the service's own."""

    def here(self) -> bool:
        return True

    def network(self) -> bool:
        return False

    def confirm(self) -> None:
        return None


def own(config: Config, watch: Watch, shared: Mapping[str, Destination]) -> list[Lane]:
    """How the lists of a watch's units travel, to each destination its own. A watch that overwrites nothing keeps the
    manifests of earlier generations."""
    # A watch's name holds no braces, so it can stand in the template.
    template = watch.key.replace("{watch}", keys.escape(watch.name.encode()))
    on_change = "replace" if watch.on_change == "replace" else "keep-both"
    as_they_are = {"compress": None, "stage": False, "digests": (), "after": "keep", "marker": None, "unit": None}
    found = []
    for name in watch.destinations if watch.unit else ():
        lane_name = published_as(watch.name, name)
        own_watch = watch.model_copy(
            update={
                **as_they_are,
                "name": lane_name,
                "path": own_directory(config.service.staging_dir, watch.name, name),
                "destinations": (name,),
                "key": template,
                "on_change": on_change,
            }
        )
        route = Route(
            watch=own_watch,
            root=Root(own_watch.path),
            destinations={name: shared[name]},
            beside=frozenset(),
            standing=_Here(),
            host=config.service.host,
        )
        found.append(Lane(route, Disposal("keep")))
    return found


def own_directory(staging_dir: str, watch: str, destination: str) -> str:
    """Where the lists of a watch's units for one destination are written."""
    return os.path.join(staging_dir, "units", published_as(watch, destination))
