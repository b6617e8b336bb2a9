"""A hook that is a command: gets the event as JSON on its standard input."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from quaymaster import command as commands
from quaymaster.service.hooks.answer import Answer


class Command:
    """``command`` may be run by several threads at once."""

    def __init__(
        self,
        hook: str,
        command: Sequence[str],
        timeout: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hook, self._command, self._timeout, self._monotonic = hook, list(command), timeout, monotonic
        self._cut = threading.Event()

    def cut_off(self) -> None:
        """End what runs, and all that is begun after this."""
        self._cut.set()

    def send(self, event: str, number: str, body: bytes) -> Answer:
        """Never raises."""
        if self._cut.is_set():
            return Answer("the service stops", cut=True)
        error = commands.run(
            self._command,
            body,
            timeout=self._timeout,
            environment={"QUAYMASTER_HOOK": self._hook, "QUAYMASTER_EVENT": event, "QUAYMASTER_ID": number},
            cut=self._cut.is_set,
            monotonic=self._monotonic,
        )
        if error and self._cut.is_set():
            return Answer("the service stops", cut=True)
        return Answer(error)
