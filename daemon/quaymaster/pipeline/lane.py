"""One watch as those see it who carry its files, and what each of them is doing."""

from __future__ import annotations

from dataclasses import dataclass

from quaymaster.model import Job, Stage
from quaymaster.pipeline.dispose import Disposal
from quaymaster.pipeline.route import Route
from quaymaster.store import Queue


@dataclass(slots=True)
class Running:
    """What one job is doing now, for status."""

    job: Job
    since: float
    stage: Stage = Stage.TRANSFER
    source_bytes: int = 0
    stored_bytes: int = 0
    moved_at: float = 0.0
    """When it last made progress (monotonic), for the watchdog."""
    apart: bool = False
    """It is with a thread of its own watch, which may hang."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One watch as the workers see it."""

    route: Route
    disposal: Disposal
    grace: float = 0.0
    """Seconds between the last proof and the disposal."""

    @property
    def queue(self) -> Queue:
        watch = self.route.watch
        return Queue(watch.name, watch.priority, watch.order)

    @property
    def shared(self) -> bool:
        """Whether the shared threads may take its jobs from their sources now."""
        return self.route.standing.here() and not self.route.apart

    @property
    def fetched(self) -> bool:
        """Whether its own threads may take jobs now."""
        return self.route.standing.here() and self.route.apart
