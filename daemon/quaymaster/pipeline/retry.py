"""What becomes of a job that failed: a pure decision (PRODUCT Q3)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from quaymaster.errors import InternalError, Retry, TransferError
from quaymaster.model import Event, Job, Level, State

_log = logging.getLogger(__name__)

FIRST_WAIT = 1.0
"""Seconds before the second try; doubled each time."""
LONGEST_WAIT = 15 * 60.0
TRIES = 3
"""Of a failure that may be chance (bytes that differ) and must not be repeated for ever."""


@dataclass(frozen=True, slots=True)
class Decision:
    state: State
    wait: float = 0.0
    """Seconds until the next try, for WAITING."""
    strike: bool = False


def decide(error: TransferError, job: Job, random: Callable[[], float]) -> Decision:
    """``random`` gives a number from 0 to 1: half of each wait is left to chance, so that many jobs which failed
    together do not come back together. A wait that the other side asks for is kept."""
    match error.retry:
        case Retry.SUPERSEDE:
            return Decision(State.SUPERSEDED)
        case Retry.NEVER:
            return Decision(State.PARKED)
        case Retry.LIMITED if job.strikes + 1 >= TRIES:
            return Decision(State.PARKED, strike=True)
        case Retry.LIMITED | Retry.FOREVER:
            longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(job.attempts, 30))
            wait = max(longest * (0.5 + random() / 2), min(error.retry_after, LONGEST_WAIT))
            return Decision(State.WAITING, wait, strike=error.retry is Retry.LIMITED)


def told(decision: Decision, error: TransferError, job: Job, stage: str) -> Event:
    """What is said of it; ``stage`` is the one it failed in."""
    match decision.state:
        case State.WAITING:
            event = Event("retry", f"{error}. Next try in {decision.wait:.0f} s", Level.WARNING, code=error.code)
        case State.PARKED:
            event = Event("parked", f"{error}. Parked: quaymaster jobs retry {job.id}", Level.ERROR, code=error.code)
        case _:
            event = Event("superseded", str(error))
    return replace(
        event, watch=job.version.watch, path=job.version.path, job=job.id, size=job.version.size, stage=stage
    )


def defect(error: Exception) -> InternalError:
    """A fault of ours, as an error that keeps the job and lets the service go on."""
    _log.debug("a defect", exc_info=error)
    return InternalError(f"Internal error: {type(error).__name__}: {error}", "Please report it")
