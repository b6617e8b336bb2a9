"""How far a long command is, on standard error: a line that is written anew on a terminal, else one now and then."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

from quaymaster.cli import show

_ON_TERMINAL = 0.2
"""Seconds between two states of the line."""
_ELSEWHERE = 10.0
"""Seconds between two lines in a log."""


class Progress:
    """``quiet`` says nothing at all. For one thread."""

    def __init__(self, stream: TextIO, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._quiet = quiet
        self._terminal = not quiet and stream.isatty()
        self._next = clock() + (0.0 if self._terminal else _ELSEWHERE)
        self._there = False

    def update(self, text: Callable[[], str]) -> None:
        """How far it is now; ``text`` is asked for when it is time to say it."""
        now = self._clock()
        if self._quiet or now < self._next:
            return
        self._next = now + (_ON_TERMINAL if self._terminal else _ELSEWHERE)
        said = show.plain(text())
        if self._terminal:
            said = show.cut(said, shutil.get_terminal_size((80, 24)).columns - 1)
            self._stream.write(f"\r\x1b[K{said}")  # to the beginning of the line; erase it: ECMA-48, EL
            self._there = True
        else:
            self._stream.write(f"{said}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Before anything else is printed, and at the end."""
        if self._there:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._there = False
