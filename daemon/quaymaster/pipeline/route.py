"""What jobs travel by: the way of a watch's files, and the bounds that all of them share (PRODUCT P12, P13)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from quaymaster.destinations.base import Destination
from quaymaster.pipeline.apart import Rests
from quaymaster.pipeline.bandwidth import Traffic
from quaymaster.pipeline.budget import Pool, Staging
from quaymaster.source import Root

if TYPE_CHECKING:
    from quaymaster.config import Watch


class Standing(Protocol):
    """Where a watch is, as those who notice its files know."""

    def here(self) -> bool:
        """False while it is known to be away. Never waits."""
        ...

    def network(self) -> bool:
        """Whether its filesystem may hang."""
        ...

    def confirm(self) -> None:
        """Look whether it is where it was; may hang. Raises SourceUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """How the files of one watch travel: its configuration with the parts that it names, ready to use."""

    watch: Watch
    root: Root
    destinations: Mapping[str, Destination]
    beside: frozenset[str]
    """Names of destinations that are the source's own directory (PRODUCT P9)."""
    standing: Standing
    host: str
    compression_disabled: bool = False

    @property
    def staged(self) -> bool:
        """Whether sources are copied to local staging first."""
        return self.standing.network() if self.watch.stage is None else self.watch.stage

    @property
    def apart(self) -> bool:
        """Whether sources are only touched on threads of this watch, because they may hang."""
        return self.standing.network() or self.staged


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all jobs share."""

    memory: Pool
    staging: Staging
    compressing: Pool
    """Threads that compress, all files together."""
    traffic: Traffic
    rests: Rests
    cpus: int
    waiting: Callable[[], int]
    """How many files are in flight or wait now; decides the layout of threads."""
    files: Callable[[], int]
    """How many may be in flight."""

    def share(self) -> int:
        """Bytes of memory that one file may take, so that there is as much for each that is in flight."""
        return self.memory.ceiling // max(1, min(self.waiting(), self.files()))
