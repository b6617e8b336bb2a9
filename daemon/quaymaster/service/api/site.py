"""What the routes need of the service: its configuration, its store, a few threads, and whether it is well."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from quaymaster.config import Config
from quaymaster.errors import StoreError
from quaymaster.service.view.hooks import failing
from quaymaster.service.view.mirrors import wrong_with
from quaymaster.service.view.records import Record
from quaymaster.service.view.snapshot import snapshot
from quaymaster.service.view.units import overdue_text
from quaymaster.store import Store

_T = TypeVar("_T")

FRESH = 0.5
"""Seconds for which one snapshot serves everybody who asks."""
LATE = 15.0
"""Seconds without a round of the service's main loop, after which it is not well."""


class Busy(Exception):
    """All threads of a crew have something to do, and it does not end."""


class Threads:
    """A few threads with a queue. Each keeps its own connection to the store, so that there are few of those. None is
    waited for at the end: one may hang in a filesystem."""

    def __init__(self, count: int, name: str, most: int) -> None:
        """``most``: so many may wait or be under way; more are Busy."""
        self._count, self._name, self._most = count, name, most
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open = 0

    async def run(self, act: Callable[[], _T], timeout: float) -> _T:
        """To be called in the loop. Raises TimeoutError, and Busy when there is a queue of those that wait already."""
        if self._open >= self._most:
            raise Busy
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def settle(outcome: Callable[[], None]) -> None:
            self._open -= 1
            if not future.done():
                outcome()

        def task() -> None:
            try:
                result = act()
                outcome = lambda: future.set_result(result)  # noqa: E731
            except Exception as error:
                failure = error
                outcome = lambda: future.set_exception(failure)  # noqa: E731
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, outcome)

        self._open += 1
        if len(self._threads) < min(self._count, self._open):
            name = f"{self._name}-{len(self._threads) + 1}"
            self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._threads[-1].start()
        self._tasks.put(task)
        return await asyncio.wait_for(future, timeout)

    def _work(self) -> None:
        while True:
            self._tasks.get()()


class Site:
    """``config`` gives the one in effect; ``still`` says how many seconds ago the service's main loop came round."""

    def __init__(
        self,
        config: Callable[[], Config],
        store: Store,
        still: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._config, self.store, self._still, self.wall = config, store, still, wall
        self.threads = Threads(4, "api", most=256)
        self.looking = Threads(4, "api-look", most=16)
        """For what asks the watches' filesystems, which may hang."""
        self._lock = threading.Lock()
        self._made: tuple[float, Record, bytes] = (float("-inf"), {}, b"")

    @property
    def config(self) -> Config:
        return self._config()

    def status(self) -> Record:
        """A snapshot that is at most FRESH seconds old. Raises StoreError."""
        return self.status_and_text()[0]

    def status_and_text(self) -> tuple[Record, bytes]:
        """The same, and as JSON: made once, however many ask."""
        with self._lock:
            at, found, text = self._made
            if time.monotonic() - at > FRESH:
                found = snapshot(self.config, self.store, os.getpid(), self.wall())
                text = as_json(found)
                self._made = (time.monotonic(), found, text)
            return found, text

    def changed(self) -> None:
        """Somebody has acted: the next who asks sees what came of it."""
        with self._lock:
            self._made = (float("-inf"), {}, b"")

    def health(self) -> Record:
        """``status`` is "ok" or "degraded"; ``reasons`` is what needs somebody, ``notes`` is what is worth knowing."""
        try:
            found = self.status()
        except StoreError as error:
            return {"status": "degraded", "reasons": [str(error)], "notes": []}
        return {"status": "degraded" if (why := self.reasons(found)) else "ok", "reasons": why, "notes": notes(found)}

    def _interval(self, mirror: Record) -> float:
        configured = self.config.mirrors.get(mirror["name"])
        return configured.interval if configured else 0.0

    def reasons(self, found: Record) -> list[str]:
        """Why the service is not well."""
        still = self._still()
        why = [f"the service's main loop has not come round for {still:.0f} s"] if still > LATE else []
        for watch in found["watches"]:
            if watch["state"] == "outage":
                why.append(f"watch {watch['name']} is away: {watch['reason']}")
            if watch["units"] and (late := overdue_text(watch["name"], watch["units"])):
                why.append(late)
        for destination in found["destinations"]:
            if destination["state"] == "failing":
                why.append(f"destination {destination['name']} fails: {destination['error']}")
        why += failing(found["hooks"], found["at"])
        why += [
            reason for mirror in found["mirrors"] for reason in wrong_with(mirror, found["at"], self._interval(mirror))
        ]
        why += [f"standing still: {what}" for what in found["stalled"]]
        last = found["verify"]["last"]
        faults = {name: last[name] for name in ("missing", "changed", "damaged") if last[name]} if last else {}
        why += [f"the last check of the copies found {number} {name}" for name, number in faults.items()]
        return why


def notes(found: Record) -> list[str]:
    """What does not keep the service from its work, and is worth knowing."""
    said = [f"{group['jobs']} parked: {group['error_code']}" for group in found["parked"]]
    said += [
        f"hook {hook['name']} was given up on {hook['parked']} events" for hook in found["hooks"] if hook["parked"]
    ]
    for watch in found["watches"]:
        if watch["state"] == "degraded":
            said.append(f"watch {watch['name']} polls: {watch['reason']}")
        if watch["paused"]:
            said.append(f"watch {watch['name']} is paused by {watch['paused']['by']}")
    for mirror in found["mirrors"]:
        if mirror["paused"]:
            said.append(f"mirror {mirror['name']} is paused by {mirror['paused']['by']}")
        if mirror["refused"]:
            said.append(f"mirror {mirror['name']} refuses {len(mirror['refused'])} names")
    return said


def as_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
