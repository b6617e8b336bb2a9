"""Telling others what happens (PRODUCT O4): each hook is a command or a webhook, served from the durable outbox.

payload   what is told
command   to a program (launch: what is taken from it first)
webhook   by HTTP
line      one hook at work: order, retries, a receiver that is down

The service knows :class:`Hooks` alone. Nothing here is ever waited for by what carries files.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from quaymaster.model import Emit, Event, Level
from quaymaster.store.outbox import Wants

if TYPE_CHECKING:
    from quaymaster.config import Config, Hook
    from quaymaster.service.hooks.line import Line, Sender
    from quaymaster.store import Store


class Hooks:
    """To be called in the service's main thread."""

    def __init__(
        self,
        store: Store,
        emit: Emit,
        log: Callable[[], str],
        clock: Callable[[], float] = time.time,
        randomness: Callable[[], float] = random.random,
    ) -> None:
        """``log`` names the custody log, once there is one."""
        self._store, self._emit, self._log, self._clock, self._randomness = store, emit, log, clock, randomness
        self._lines: dict[str, Line] = {}
        self._ended: list[Line] = []

    def serve(self, config: Config) -> None:
        """Serve the hooks of this configuration, and no others. Those that are as they were go on. Raises
        StoreError."""
        self._register(config)
        before, self._lines = self._lines, {}
        for name, hook in config.hooks.items():
            line = before.pop(name, None)
            if line is not None and (line.hook, line.host) == (hook, config.service.host):
                self._lines[name] = line
                continue
            if line is not None:
                line.end()
            self._lines[name] = self._line(hook, config.service.host)
            self._lines[name].start(line)
            self._ended += [line] if line is not None else []
        for line in before.values():
            line.end()
            self._ended.append(line)
        self._ended = [line for line in self._ended if not line.join(0)]

    def end(self) -> None:
        """Tell nobody anything more, but for what is under way. Returns at once."""
        for line in self._lines.values():
            line.end()

    def stop(self, timeout: float) -> bool:
        """Cut off what is under way; True when every thread ended."""
        lines = [*self._lines.values(), *self._ended]
        for line in lines:
            line.stop(0)
        deadline = time.monotonic() + timeout
        ended = [line.join(max(0.0, deadline - time.monotonic())) for line in lines]
        return all(ended)

    def _register(self, config: Config) -> None:
        wanted = {name: Wants(frozenset(hook.on), frozenset(hook.watches)) for name, hook in config.hooks.items()}
        for name, untold in self._store.outbox.register(wanted).items():
            lost = f"; {untold:,} events that it was not told are dropped" if untold else ""
            level = Level.WARNING if untold else Level.NOTICE
            self._emit(Event("hook-removed", f"hook {name} is no longer configured{lost}", level))

    def _line(self, hook: Hook, host: str) -> Line:
        from quaymaster.service.hooks.line import Line  # a service without hooks does not pay for it

        made = sender(hook, os.environ)
        return Line(hook, made, self._store.outbox, self._log, host, self._emit, self._clock, self._randomness)


def sender(hook: Hook, environ: Mapping[str, str]) -> Sender:
    """What tells a hook something. ``environ`` says where credentials are."""
    if hook.command:
        from quaymaster.service.hooks.command import Command

        return Command(hook.name, hook.command, hook.timeout)
    from quaymaster.config import read_token, read_url
    from quaymaster.service.hooks.webhook import Webhook

    url, secret = hook.url or "", hook.secret
    return Webhook(
        lambda: read_url(url, environ),
        (lambda: read_token(secret, environ)) if secret is not None else None,
        ca_file=hook.ca_file,
        connect_timeout=hook.connect_timeout,
        timeout=hook.timeout,
    )
