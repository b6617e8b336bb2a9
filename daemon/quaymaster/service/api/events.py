"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): the status once a second while
it changes, whether the service is well when that changes, and what happens to files.

However many listen, each second is put into bytes once. A listener that does not take them is dropped: it connects
again by itself and begins with the whole status, so nothing is numbered and Last-Event-ID means nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from quaymaster.errors import StoreError
from quaymaster.model import Event
from quaymaster.service.api.site import Busy, Site, as_json
from quaymaster.service.view.records import Record, path_record

KINDS = frozenset(
    {"delivered", "parked", "retry", "superseded", "disposed", "watch-outage", "watch-back", "destination-back", "hang",
     "integrity-failure"}
)  # fmt: skip
"""Of the service's events, those that are sent."""
EVERY = 1.0
QUIET = 15.0
"""Seconds after which something is sent though nothing has changed, so that both ends know of each other."""
MOST_AT_ONCE = 100
"""Events of one second; of more it is said how many were left out."""
_BEHIND = 4
"""Seconds that a listener may be behind."""
_AGAIN = b"retry: 2000\n\n"


class Events:
    """``heard`` is for any thread; the rest for the loop's."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._heard: deque[Event] = deque(maxlen=MOST_AT_ONCE)
        self._left_out = 0
        self._ticking: asyncio.Task[None] | None = None
        self._closed = False

    def heard(self, event: Event) -> None:
        if self._listeners and event.kind in KINDS:
            self._left_out += len(self._heard) == MOST_AT_ONCE
            self._heard.append(event)

    async def listen(self) -> AsyncIterator[bytes]:
        """What one listener is sent."""
        mine: asyncio.Queue[bytes | None] = asyncio.Queue(_BEHIND)
        self._listeners.add(mine)
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._tick())
        try:
            health = _frame("health", await self._health())
            yield _AGAIN + health + _frame("status", (await self._status())[1])
            while not self._closed and (frames := await mine.get()) is not None:
                if mine not in self._listeners:
                    return
                yield frames
        finally:
            self._listeners.discard(mine)

    def close(self) -> None:
        self._closed = True
        for each in self._listeners:
            with suppress(asyncio.QueueFull):
                each.put_nowait(None)

    async def _status(self) -> tuple[Record, bytes]:
        return await self._site.threads.run(self._site.status_and_text, 10.0)

    async def _health(self) -> bytes:
        return await self._site.threads.run(lambda: as_json(self._site.health()), 10.0)

    async def _tick(self) -> None:
        told: Record = {}
        health = b""
        quiet = 0.0
        while self._listeners and not self._closed:
            await asyncio.sleep(EVERY)
            frames = self._happened()
            with suppress(StoreError, Busy, TimeoutError):
                if (now := await self._health()) != health:
                    health = now
                    frames += _frame("health", health)
                found, text = await self._status()
                same = {key: found[key] for key in found if key not in ("at", "rates", "eta_seconds")}
                quiet += EVERY
                if same != told or quiet >= QUIET:
                    told, quiet = same, 0.0
                    frames += _frame("status", text)
            if frames:
                self._send(frames)

    def _send(self, frames: bytes) -> None:
        for each in list(self._listeners):
            try:
                each.put_nowait(frames)
            except asyncio.QueueFull:
                self._listeners.discard(each)  # it ends when it takes what it has

    def _happened(self) -> bytes:
        frames = b""
        left_out, self._left_out = self._left_out, 0
        while self._heard:
            frames += _event_frame(self._heard.popleft())
        return frames + (_frame("left-out", as_json({"events": left_out})) if left_out else b"")


def _event_frame(event: Event) -> bytes:
    body: Record = {"kind": event.kind, "message": event.message, "level": event.level.name.lower()}
    body |= {"watch": event.watch, "job": event.job or None, "destination": event.destination, "error_code": event.code}
    body |= path_record(event.path) if event.path else {"path": None}
    body |= {"stored_bytes": event.size if event.kind == "delivered" else None, "sha256": event.sha256 or None}
    return _frame(event.kind, as_json(body))


def _frame(name: str, body: bytes) -> bytes:
    """``body`` is JSON, so it is one line."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), body)
