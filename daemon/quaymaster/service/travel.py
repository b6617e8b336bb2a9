"""From configuration to the way that the files of one watch take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from quaymaster.config import Config, Watch
from quaymaster.destinations.base import Destination
from quaymaster.intake.mounts import Ground
from quaymaster.model import Emit
from quaymaster.pipeline.dispose import Disposal
from quaymaster.pipeline.transfer import Route, Standing
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
