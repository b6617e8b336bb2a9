"""What the parts of the store stand on: the database, and the time that is written into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quaymaster.model import Job
from quaymaster.store import custody
from quaymaster.store.db import Database, Transaction


class Room:
    """A part of the store; they share one database, so that what belongs together is one commit."""

    _db: Database
    _clock: Callable[[], float]

    def _note(self, t: Transaction, kind: str, job: Job, details: Mapping[str, Any]) -> None:
        """Add an entry about a job to the custody log."""
        v = job.version
        custody.append(t, kind, self._clock(), job=job.id, watch=v.watch, path=v.path, details=details)
