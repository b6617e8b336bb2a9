"""HTTP: figures, control and the page, on a Unix socket and, where it is configured, on TCP (PRODUCT O2, X5).

sockets   what is listened on; nothing of the web is imported before the first connection
server    uvicorn, with a limit on everything
guard     who may ask, who may act
routes    what can be asked, described by openapi
events    server-sent events
site      what they need of the service: its store, some threads, whether it is well
metrics   the same figures for Prometheus

The service knows :class:`Api` alone. That it cannot listen never keeps it from its work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from socket import socket
from typing import TYPE_CHECKING

from quaymaster.config import Config, read_token
from quaymaster.errors import ConfigError
from quaymaster.model import Emit, Event, Level
from quaymaster.service.api import sockets

if TYPE_CHECKING:
    import asyncio

    from quaymaster.service.api.events import Events
    from quaymaster.service.api.guard import Rules
    from quaymaster.service.api.server import Serving
    from quaymaster.store import Store

_AGAIN = 30.0
"""Seconds between tries to listen on what could not be had: an address may come later than the service."""
_LEAVING = 3.0
"""Seconds that answers under way may take at the end."""


class Api:
    """To be called in the service's main thread, but for :meth:`heard`."""

    def __init__(
        self, config: Config, store: Store, emit: Emit, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._config, self._store, self._emit, self._monotonic = config, store, emit, monotonic
        self._tokens: dict[str, str] = {}
        self._door: sockets.Door | None = None
        self._missing: dict[str, Callable[[], socket]] = {}
        self._socket_path = ""
        self._told = ""
        self._try_at = 0.0
        self._beaten = monotonic()
        self._events: Events | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Listen. Raises ConfigError when another process serves a socket that was configured by name."""
        self._listen(strict=True)

    def _listen(self, *, strict: bool = False) -> None:
        self._tokens, told = self._read_tokens()
        listening = {}
        self._missing = {}
        for name, listen in self._wanted().items():
            try:
                listening[name] = listen()
            except (sockets.InUse, OSError) as error:
                self._missing[name] = listen
                if strict:
                    self._refuse_served(name, error, listening.values())
                told.append(self._trouble(name, error))
        if listening:
            self._door = sockets.Door(list(listening.values()), self._serving)
        self._tell("; ".join(told))
        self._try_at = self._monotonic() + _AGAIN

    def tend(self) -> None:
        """To be called about once a second."""
        self._beaten = self._monotonic()
        if not self._missing or self._beaten < self._try_at:
            return
        self._try_at = self._beaten + _AGAIN
        for listen in self._missing.values():
            with suppress(sockets.InUse, OSError):
                listen().close()
                self.stop()  # one server for all, so that there is one of everything that is bounded
                self._listen()
                return

    def reload(self, config: Config) -> None:
        """Serve by another configuration. Tokens are read again, since they may have been changed."""
        before, self._config = self._config.api, config
        if before == config.api:
            self._tokens, told = self._read_tokens()
            self._tell("; ".join(told))
        else:
            self.stop()
            self._listen()

    def heard(self, event: Event) -> None:
        """From any thread: what happens is told to those who listen."""
        if self._events is not None:
            self._events.heard(event)

    def stop(self) -> None:
        if self._door is None:
            return
        if self._loop is not None and self._events is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._events.close)
        self._door.close(_LEAVING)
        self._door = self._events = self._loop = None
        if self._socket_path not in self._missing:
            with suppress(OSError):
                os.unlink(self._socket_path)

    # -- listening --

    def _wanted(self) -> dict[str, Callable[[], socket]]:
        api = self._config.api
        self._socket_path = api.socket
        wanted: dict[str, Callable[[], socket]] = {api.socket: partial(sockets.listen_unix, api.socket)}
        if api.listen and api.address and set(self._tokens) == self._token_names():
            wanted[api.listen] = partial(sockets.listen_tcp, *api.address)
        return wanted

    def _refuse_served(self, name: str, error: Exception, listening: Iterable[socket]) -> None:
        where = self._config.where("api", "socket")
        if isinstance(error, sockets.InUse) and name == self._config.api.socket and where != "default":
            for each in listening:
                each.close()
            raise ConfigError([f"{where}: [api] socket: another process serves {name}; choose another path"])

    def _trouble(self, name: str, error: Exception) -> str:
        if isinstance(error, OSError):
            return f"{name} cannot be listened on ({error.strerror or error})"
        return f"another process listens on {name}"

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self._told:
            self._emit(Event("api-unavailable", f"the API is not all there: {trouble}", Level.WARNING))
        self._told = trouble

    # -- tokens --

    def _token_names(self) -> set[str]:
        return {key for key in ("read_token", "act_token") if getattr(self._config.api, key)}

    def _read_tokens(self) -> tuple[dict[str, str], list[str]]:
        """Those that could be read, and what was wrong with the others: without all of them TCP stays closed."""
        found, told = {}, []
        for key in sorted(self._token_names()):
            try:
                found[key] = read_token(getattr(self._config.api, key), os.environ)
            except ConfigError as error:
                told.append(f"{self._config.api.listen or 'TCP'} stays closed, because of [api] {key}: {error}")
        return found, told if self._config.api.listen else []

    def _rules(self) -> Rules:
        from quaymaster.service.api.guard import Rules

        api = self._config.api
        return Rules(
            address=api.address[0] if api.address else "",
            hosts=api.hosts,
            read_token=self._tokens.get("read_token"),
            act_token=self._tokens.get("act_token"),
        )

    # -- serving, in a thread of its own --

    def _serving(self) -> Serving:
        """What the first connection brings in: the web libraries and everything that stands on them."""
        from quaymaster.service.api.events import Events
        from quaymaster.service.api.guard import Guard
        from quaymaster.service.api.routes import Routes, page_files
        from quaymaster.service.api.server import Serving
        from quaymaster.service.api.site import Site

        site = Site(lambda: self._config, self._store, lambda: self._monotonic() - self._beaten)
        events = self._events = Events(site)
        app = Guard(Routes(site, events).app(), self._rules, page_files(), self._defect)
        return Serving(app, self._began)

    def _began(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def _defect(self, error: Exception) -> None:
        self._emit(
            Event("api-defect", f"the API failed: {type(error).__name__}: {error}. Please report it", Level.ERROR)
        )
