"""Verifies the copies on a schedule while the service runs (PRODUCT I7): one thread, resting as long as it works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict

from quaymaster.config import Config
from quaymaster.errors import StoreError, TransferError
from quaymaster.model import Emit, Event, Level
from quaymaster.pipeline.scrub import Depth, Fault, Scrub, Summary
from quaymaster.service.places import Places
from quaymaster.store import Store

REPORT = "verify"
"""The name of the report of the last run."""
_FIRST_AFTER = 300.0
"""Seconds after a start until the first run of all: what has landed meanwhile goes first."""
_AGAIN_AFTER = 3600.0
"""Seconds until a run that could not look at everything is followed by another, if the schedule has none before."""
_STOP = 2.0
"""Seconds that it has to stop."""
_LOOK_EVERY = 60.0
"""Seconds between looks at the clock, which may be set."""


class Scrubber:
    def __init__(self, config: Config, store: Store, emit: Emit, clock: Callable[[], float] = time.time) -> None:
        self._config, self._store, self._emit, self._clock = config, store, emit, clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="verify", daemon=True)

    def start(self) -> None:
        if self._config.verify.interval is not None:
            self._thread.start()

    def stop(self) -> None:
        """It ends after the piece that it reads; one that hangs in its destination is left behind, which loses
        nothing."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP)

    def _repeat(self) -> None:
        began = self._clock()
        while not self._stopping.is_set():
            try:
                wait = self._due(began) - self._clock()
                if wait > 0:
                    self._stopping.wait(min(wait, _LOOK_EVERY))
                else:
                    self.run()
            except (StoreError, TransferError):  # told by those who have something to lose
                self._stopping.wait(_LOOK_EVERY)

    def _due(self, began: float) -> float:
        """When the next run is to begin (seconds since the epoch). A run that a stop cut off is due again."""
        interval = self._config.verify.interval or 0.0
        _, said = self._store.reports().get(REPORT, (0.0, {}))
        if "started_at" not in said:
            return began + min(interval, _FIRST_AFTER)
        after = interval if said.get("complete") and not said.get("unreachable") else min(interval, _AGAIN_AFTER)
        if not said.get("complete"):
            return began + min(interval, _FIRST_AFTER)
        return float(said["started_at"]) + after

    def run(self) -> Summary:
        """One run now."""
        verify = self._config.verify
        places = Places(self._config, self._store, self._emit)
        try:
            summary = Scrub(
                self._store,
                places,
                Depth(verify.level),
                budget=verify.budget,
                tell=self._tell,
                cancelled=self._stopping.is_set,
                rest=self._rest,
                clock=self._clock,
            ).run()
        finally:
            places.close()
        self._store.report(REPORT, asdict(summary) | {"faults": summary.faults})
        self._sum_up(summary)
        return summary

    def _rest(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def _tell(self, fault: Fault) -> None:
        proof = fault.copy.delivery.proof
        version = proof.version
        self._emit(
            Event(
                "integrity-failure",
                f"the copy {proof.stored.key} at {proof.destination} is {fault.what}: {fault.text}",
                Level.ERROR,
                watch=version.watch,
                path=version.path,
                job=proof.job,
                destination=proof.destination,
                code="integrity",
            )
        )

    def _sum_up(self, summary: Summary) -> None:
        for name, error in summary.unreachable.items():
            text = f"the copies at {name} could not be verified: {error}"
            self._emit(Event("verify-incomplete", text, Level.WARNING, destination=name))
        if summary.complete:
            found = f"{summary.good:,} good" + (f", {summary.faults:,} not" if summary.faults else "")
            read = f"; {summary.read:,} read back ({summary.read_bytes >> 20:,} MiB)" if summary.read else ""
            text = f"verified {summary.copies:,} copies in {summary.seconds:.0f} s ({summary.level}): {found}{read}"
            self._emit(Event("verified", text, Level.NOTICE))
