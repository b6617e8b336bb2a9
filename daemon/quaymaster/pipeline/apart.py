"""One of several destinations of a pass, on a thread of its own, so that it holds up no other (PRODUCT P11).

The pass reads the source once and gives each piece to every destination. One that does not answer, or takes bytes more
slowly than the source and the others could go, would hold up all: so each has a few pieces of room and some patience,
and then falls behind. It is sent to afterwards, from the source again.

A destination that was just found unreachable rests for a while: each file would wait for it as long as the first did.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quaymaster.destinations.base import Upload
from quaymaster.errors import TemporaryError, TransferError, Unreachable
from quaymaster.model import Digests, Stored

ROOM = 4
"""Pieces that may wait for one destination."""
PATIENCE = 10.0
"""Seconds that one destination may hold up the others in the course of a pass."""
_FIRST_REST, _LONGEST_REST = 5.0, 60.0
"""Seconds; doubled with each failure."""


class Behind(TemporaryError):
    """It works, but holds up the others."""


class Apart:
    """An :class:`~quaymaster.destinations.base.Upload` whose ``write`` returns as soon as there is room. ``publish`` is
    to be called on a thread that may wait; ``abort`` waits until the destination has let go."""

    def __init__(self, begin: Callable[[], Upload], where: str, patience: float = PATIENCE) -> None:
        self._begin, self._where, self._patience = begin, where, patience
        self._changed = threading.Condition()
        self._pieces: deque[bytes | memoryview] = deque()
        self._upload: Upload | None = None
        self._error: BaseException | None = None
        self._idle = False
        self._ended = False
        self._kept = False
        self._thread = threading.Thread(target=self._work, name=f"apart-{where}", daemon=True)
        self._thread.start()

    def write(self, data: bytes | memoryview) -> None:
        with self._changed:
            while len(self._pieces) >= ROOM and self._error is None:
                before = time.monotonic()
                self._changed.wait(self._patience)
                self._patience -= time.monotonic() - before
                if self._patience <= 0 and len(self._pieces) >= ROOM:
                    raise Behind(
                        f"{self._where} takes bytes so slowly that it would hold up the other destinations",
                        "It is sent there afterwards",
                    )
            self._raise()
            self._pieces.append(data if isinstance(data, bytes) else bytes(data))
            self._changed.notify_all()

    def publish(self, digests: Digests, metadata: Mapping[str, str]) -> Stored:
        with self._changed:
            while (self._pieces or not self._idle) and self._error is None:
                self._changed.wait()
            self._raise()
        assert self._upload is not None
        return self._upload.publish(digests, metadata)

    @property
    def resume_token(self) -> str:
        return self._upload.resume_token if self._upload else ""

    def suspend(self) -> None:
        """Take nothing more. What it is doing now it ends in its own time; :meth:`abort` waits for that."""
        self._kept = True
        self._end(None)

    def abort(self) -> None:
        self._end(None)
        self._thread.join()
        if self._upload is not None and self._kept:
            self._upload.suspend()
        if self._upload is not None:
            self._upload.abort()  # does nothing after it was published or suspended

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._error = self._error or error
            self._ended = True
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            upload = self._upload = self._begin()
            while (piece := self._next()) is not None:
                upload.write(piece)
        except BaseException as error:
            self._end(error)

    def _next(self) -> bytes | memoryview | None:
        with self._changed:
            self._idle = not self._pieces
            self._changed.notify_all()
            while not self._pieces:
                if self._ended:
                    return None
                self._changed.wait()
            if self._ended:
                return None
            self._idle = False
            piece = self._pieces.popleft()
            self._changed.notify_all()
            return piece


class Resting(Unreachable):
    """What the last try said, while the destination is left alone."""


@dataclass(slots=True)
class _Rest:
    until: float
    length: float
    error: TransferError
    trying: bool = False
    """Somebody looks whether it is over."""


@dataclass(slots=True)
class Rests:
    """Which destinations rest. Thread-safe."""

    monotonic: Callable[[], float] = time.monotonic
    _of: dict[str, _Rest] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, name: str) -> None:
        """Raises the error of the last try while the destination rests. The first to come after that tries for all:
        until it has an answer, the others are still refused."""
        with self._lock:
            if (rest := self._of.get(name)) is None:
                return
            left = rest.until - self.monotonic()
            if left > 0:
                resting = Resting(rest.error.message, rest.error.advice)
                resting.retry_after = left
                raise resting
            rest.until, rest.trying = self.monotonic() + rest.length, True

    def ended(self, name: str, error: TransferError | None) -> None:
        """A try has ended, with an answer of whatever kind or without."""
        with self._lock:
            rest = self._of.get(name)
            if not isinstance(error, Unreachable):
                self._of.pop(name, None)
            elif rest is None:
                self._of[name] = _Rest(self.monotonic() + _FIRST_REST, _FIRST_REST, error)
            elif rest.trying and not isinstance(error, Resting):
                length = min(_LONGEST_REST, 2 * rest.length)
                self._of[name] = _Rest(self.monotonic() + length, length, error)
