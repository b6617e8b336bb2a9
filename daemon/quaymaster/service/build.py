"""From configuration to parts: the one place that knows which class stands behind which table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Protocol

from quaymaster.config import (
    BesideDestination,
    Config,
    Credentials,
    DirectoryDestination,
    S3Destination,
    Watch,
    read_credentials,
)
from quaymaster.destinations.answering import Answering
from quaymaster.destinations.base import Destination
from quaymaster.destinations.directory import Directory
from quaymaster.intake.mounts import Ground
from quaymaster.model import Emit
from quaymaster.pipeline.dispose import Disposal
from quaymaster.pipeline.transfer import Route, Standing
from quaymaster.pipeline.worker import Lane
from quaymaster.service import anchor
from quaymaster.service.anchor import Anchor
from quaymaster.service.watchdog import on_network
from quaymaster.source import Pulse, Root


class Attended(Standing, Protocol):
    """Where a watch is, as whoever looks after it knows."""

    pulse: Pulse

    def ground(self) -> Ground | None:
        """What it stands on; None while it is away."""
        ...


def destination(
    config: Config,
    name: str,
    emit: Emit,
    *,
    anchored: Callable[[str], Anchor] = lambda _: anchor.anywhere,
    pins: Mapping[str, str] | None = None,
    on_pins: Callable[[dict[str, str]], None] | None = None,
) -> Destination | None:
    """The destination of that name; None for one that is beside each watch's sources. ``anchored`` gives the anchor of
    a directory."""
    wanted = config.destinations[name]
    match wanted:
        case S3Destination():
            from quaymaster.destinations.s3 import S3

            return S3(
                wanted,
                credentials=_credentials(wanted),
                parts=config.limits.parts,
                files=config.limits.files,
                emit=emit,
                pins=pins,
                on_pins=on_pins,
            )
        case DirectoryDestination():
            return _in_time(name, wanted.path, wanted.hang_after, emit, anchored(wanted.path))
        case BesideDestination():
            return None


def _in_time(name: str, path: str, hang_after: float, emit: Emit, anchor: Anchor) -> Destination:
    """A directory whose filesystem holds nobody up when it hangs."""
    return Answering(
        lambda beat: Directory(name, path, emit=emit, anchor=anchor, beat=beat),
        path,
        hang_after=hang_after,
        may_hang=lambda: on_network(path),
    )


def _credentials(wanted: S3Destination) -> Callable[[], Credentials | None]:
    def read() -> Credentials | None:
        if wanted.credentials is None:
            return None
        return read_credentials(wanted.credentials, os.environ)

    return read


def beside(config: Config, watch: Watch) -> frozenset[str]:
    """Names of the watch's destinations that are the source's own directory."""
    return frozenset(n for n in watch.destinations if isinstance(config.destinations[n], BesideDestination))


def next_to_sources(name: str, watch: Watch, emit: Emit, anchor: Anchor = anchor.anywhere) -> Destination:
    """The destination of that name for one watch, when it is the watch's own directory."""
    return Directory(name, watch.path, emit=emit, anchor=anchor)


def lane(
    config: Config, watch: Watch, shared: Mapping[str, Destination], emit: Emit, standing: Attended, moved_to: Anchor
) -> Lane:
    """How the files of one watch travel and what becomes of them afterwards. Nothing is looked at: it may hang."""
    next_to = beside(config, watch)
    found = {
        name: next_to_sources(name, watch, emit, anchor.beside(standing.ground)) if name in next_to else shared[name]
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
        mover = _in_time(f"{watch.name}:after", watch.after_dir, watch.hang_after, emit, moved_to)
    return Lane(route, Disposal(watch.after, mover, watch.after_dir or ""), watch.after_grace)
