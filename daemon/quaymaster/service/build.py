"""From configuration to parts: the one place that knows which class stands behind which table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from quaymaster.destinations.base import Destination
from quaymaster.model import Emit
from quaymaster.service import anchor
from quaymaster.service.anchor import Anchor

if TYPE_CHECKING:
    from quaymaster.config import Config, Credentials, S3Destination, Watch


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
    match wanted.type:  # each is imported when it is needed: a command that only looks needs few of them
        case "s3":
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
        case "directory":
            return in_time(name, wanted.path, wanted.hang_after, emit, anchored(wanted.path))
        case "beside":
            return None


def in_time(name: str, path: str, hang_after: float, emit: Emit, anchor: Anchor) -> Destination:
    """A directory whose filesystem holds nobody up when it hangs."""
    from quaymaster.destinations.answering import Answering
    from quaymaster.destinations.directory import Directory
    from quaymaster.service.watchdog import on_network

    def distant() -> bool:
        return on_network(path)

    return Answering(
        lambda beat: Directory(name, path, emit=emit, anchor=anchor, beat=beat, distant=distant),
        path,
        hang_after=hang_after,
        may_hang=distant,
    )


def _credentials(wanted: S3Destination) -> Callable[[], Credentials | None]:
    def read() -> Credentials | None:
        if wanted.credentials is None:
            return None
        from quaymaster.config import read_credentials

        return read_credentials(wanted.credentials, os.environ)

    return read


def beside(config: Config, watch: Watch) -> frozenset[str]:
    """Names of the watch's destinations that are the source's own directory."""
    return frozenset(n for n in watch.destinations if config.destinations[n].type == "beside")


def next_to_sources(name: str, watch: Watch, emit: Emit, anchor: Anchor = anchor.anywhere) -> Destination:
    """The destination of that name for one watch, when it is the watch's own directory."""
    from quaymaster.destinations.directory import Directory
    from quaymaster.service.watchdog import on_network

    return Directory(name, watch.path, emit=emit, anchor=anchor, distant=lambda: on_network(watch.path))
