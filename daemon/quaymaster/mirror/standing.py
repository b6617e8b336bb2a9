"""How a mirror stands, and what it tells of that (PRODUCT M5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quaymaster.errors import QuaymasterError, TransferError
from quaymaster.model import Emit, Event, Level

TOLD = 20
"""Names that a report holds at most, of each kind."""


@dataclass(slots=True)
class Standing:
    """What is told of a mirror (``status``, ``/healthz``)."""

    state: str = "starting"
    """``ok``, ``outage`` or ``starting``."""
    reason: str = ""
    since: float = 0.0
    last_good: float | None = None
    """When the bucket was last listed whole (seconds since the epoch)."""
    listed: int = 0
    bytes: int = 0
    released: int = 0
    waiting: dict[str, str] = field(default_factory=dict)
    """Unit -> why it is not released yet."""
    quarantined: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Key or unit -> why it cannot be released."""
    server: str = ""
    """What is wrong with the model server, its config.json or the command."""


def some(of: Mapping[str, str]) -> dict[str, str]:
    return dict(list(of.items())[:TOLD])


class Voice:
    """Tells of what changes, and of nothing twice."""

    def __init__(self, name: str, state: Standing, emit: Emit, clock: Callable[[], float]) -> None:
        self._name, self._state, self._emit, self._clock = name, state, emit, clock
        self._told: set[tuple[str, str]] = set()

    def outage(self, error: TransferError) -> None:
        state = self._state
        if state.state != "outage":
            state.state, state.since = "outage", self._clock()
            self.say("mirror-outage", str(error), Level.ERROR, b"", error.code)
        state.reason = str(error)

    def back(self) -> None:
        """The bucket was listed whole."""
        state, now = self._state, self._clock()
        if state.state == "outage":
            text = f"follows its bucket again after {now - state.since:.0f} s"
            self.say("mirror-back", text, Level.NOTICE, b"")
        if state.state != "ok":
            state.state, state.since, state.reason = "ok", now, ""
        state.last_good = now

    def refused(self, refused: Mapping[str, str]) -> None:
        for what, why in some(refused).items():
            if (what, why) not in self._told:
                self._told.add((what, why))
                self.say("mirror-refused", f"{what}: {why}", Level.WARNING, b"", "name-refused")

    def failing(self, what: str, error: QuaymasterError) -> None:
        if (what, error.message) not in self._told:
            self._told.add((what, error.message))
            self.say("mirror-failing", f"{what}: {error}", Level.ERROR, b"", error.code)

    def mended(self, what: str) -> None:
        """Should it fail in the same way again, that is told anew."""
        self._told = {told for told in self._told if told[0] != what}

    def say(self, kind: str, message: str, level: Level, path: bytes, code: str = "") -> None:
        self._emit(Event(kind, message, level, watch=self._name, path=path, code=code))
