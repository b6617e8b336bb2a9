"""uvicorn, with the limits that keep one client from holding up the others, or the service.

Each connection has a time for every step: for the head of a request, for its body, and for taking what is sent to it.
Only this module knows uvicorn and h11.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 100
LARGEST = 64 << 10
"""Bytes of a request's head, and of its body."""
PATIENCE = 10.0
"""Seconds for the head of a request, for its body, and for taking some of what was sent."""
IDLE = 30
"""Seconds between two requests on a connection."""
LEAVING = 1
"""Seconds that answers under way have at the end."""
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\nRetry-After: 5\r\n\r\n"


class Bounded(H11Protocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None
    _waits_for: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= MOST_CONNECTIONS:
            transport.write(_FULL)
            transport.close()
            return
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer.family == socket.AF_UNIX:
            # unix(7), SO_PEERCRED: who connected. The guard tells by this that it is no TCP connection.
            said = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.client = ("unix", struct.unpack("3i", said)[1])
        self._expect("head")

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        if self.transport is not None:  # else it was one too many
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport is None:
            return
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def _look(self) -> None:
        """What the client owes us now: the rest of a head or of a body, or nothing."""
        if self.transport.is_closing():
            self._expect(None)
        elif self.conn.their_state is h11.SEND_BODY:
            self._expect("body")
        elif self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            # Between two requests the time of keep-alive runs, until the next one begins.
            begun = bool(self.conn.trailing_data[0]) or self.timeout_keep_alive_task is None
            self._expect("head" if begun else None)
        else:
            self._expect(None)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect("reading")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._expect(None)

    def _expect(self, what: str | None) -> None:
        if what == self._waits_for:
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._waits_for = what
        if what is not None:
            self._deadline = self.loop.call_later(PATIENCE, self._too_slow)

    def _too_slow(self) -> None:
        self.transport.abort()


class Serving:
    """Serves an ASGI application on sockets until it is stopped. ``started`` is called in the loop's thread."""

    def __init__(self, app: Any, started: Callable[[asyncio.AbstractEventLoop], None]) -> None:
        self._started = started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=Bounded,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=IDLE,
                timeout_graceful_shutdown=LEAVING,
                h11_max_incomplete_event_size=LARGEST,
            )
        )

    def run(self, sockets: Sequence[socket.socket]) -> None:
        asyncio.run(self._run(list(sockets)))

    async def _run(self, sockets: list[socket.socket]) -> None:
        self._started(asyncio.get_running_loop())
        await self._server.serve(sockets=sockets)

    def stop(self) -> None:
        """From any thread."""
        with suppress(RuntimeError):
            self._server.should_exit = True
