"""What uploads left behind at the destinations and nobody will go on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

from quaymaster.errors import StoreError
from quaymaster.model import State
from quaymaster.pipeline.lane import Lane
from quaymaster.store import Filter, Store

_EVERY = 60.0
"""Seconds between looks."""


def sweep(store: Store, lanes: Mapping[str, Lane], ended: Callable[[float], bool]) -> None:
    """Look now and then; ``ended`` waits for so many seconds, and is True when this is to end."""
    while True:
        with suppress(StoreError):
            abandon(store, lanes)
        if ended(_EVERY):
            return


def abandon(store: Store, lanes: Mapping[str, Lane]) -> None:
    """Remove uploads of jobs that are over, or parked until an operator looks (parts of unfinished uploads cost money).
    Those of waiting jobs are gone on with."""
    for number, name, token in store.uploads():
        # A token that stood in the store while its job does not run now is not in use any more. The store knows of
        # those too that run under an earlier configuration.
        idle = [j for j in store.jobs(Filter(ids=(number,))) if j.state.final or j.state is State.PARKED]
        passed = [lanes.get(job.version.watch) for job in idle]
        for destination in (lane.route.destinations.get(name) for lane in passed if lane is not None):
            if destination is not None and destination.abandon(token):
                store.end_upload(number, name, token)
