"""A directory whose server may stop answering (PRODUCT S1): nobody waits for it for ever.

A call to a hard-mounted share whose server is down hangs, and no timeout helps. So while the filesystem is one that can
hang, each call is made on a thread that is there for that, and whoever asks waits as long as there are signs of life:
after ``hang_after`` seconds without one the answer is Unreachable, and the queue tries again later. The thread that
hangs is left behind. Until it comes back nothing more is asked there, so that only as many threads hang as had asked
when the server went silent; whatever they had begun is removed as soon as it can be.

An fsync of much that was written says nothing for long without being a hang: a publication has a second more for each
mebibyte, unless the filesystem is known by then to answer nobody.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

from quaymaster.destinations.base import Destination, Put, Reading, Upload
from quaymaster.errors import TransferError, Unreachable
from quaymaster.model import Digests, Stored
from quaymaster.source import Pulse

T = TypeVar("T")

_SLOWEST = 1 << 20
"""Bytes a second: what was written is synced at least as fast as that."""
_LOOK = 0.5
"""Most seconds between two looks whether a question that waits is still alive."""
_KNOWN_FOR = 5.0
"""Seconds for which it is remembered whether the filesystem is one that can hang."""
_LISTED = 500
"""Entries of a listing that are asked for at once."""


class _TooLate(Unreachable):
    """The call still hangs."""


@dataclass(eq=False, slots=True)
class _Question:
    """One call, made on another thread."""

    act: Callable[[], Any]
    late: Callable[[Any], None]
    """Told on that thread what was answered in the end, when nobody waits for it any more (None: an error)."""
    pulse: Pulse
    answered: threading.Event = field(default_factory=threading.Event)
    given_up: bool = False
    answer: Any = None
    error: BaseException | None = None


_Line = queue.SimpleQueue["_Question | None"]
"""Leads to one thread."""


class Answering:
    """The :class:`~quaymaster.destinations.base.Destination` that ``make`` makes with the function that it calls as a
    sign of life. ``may_hang`` is asked now and then; it must not touch the filesystem itself."""

    def __init__(
        self,
        make: Callable[[Callable[[], None]], Destination],
        place: str,
        *,
        hang_after: float,
        may_hang: Callable[[], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = make(self._beat)
        self.name = self._inner.name
        self._place, self._hang_after = place, hang_after
        self._may_hang, self._monotonic = may_hang, monotonic
        self._known_until, self._hangs = -math.inf, False
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._idle: list[_Line] = []
        self._silent: dict[_Question, float] = {}
        """What hangs, and since when."""
        self._owed: list[Callable[[], None]] = []
        self._closed = False
        self._longest_name = 0

    # -- asking --

    def ask(self, act: Callable[[], T], late: Callable[[T | None], None] = lambda _: None, *, more: float = 0.0) -> T:
        """What ``act`` returns or raises. Unreachable when there is no sign of life for ``hang_after`` + ``more``
        seconds; ``late`` is then called on the other thread with what came in the end (None: an error)."""
        if not self._can_hang():
            return act()
        question = _Question(act, late, Pulse(self._monotonic))
        with self._lock:
            if self._silent:
                raise Unreachable(*self._no_answer(min(self._silent.values())))
            self._put(question)
        while not question.answered.wait(min(_LOOK, self._hang_after / 4)):
            self._give_up(question, more)
        if question.error is not None:
            raise question.error
        answer: T = question.answer
        return answer

    def owe(self, act: Callable[[], None]) -> None:
        """Do this as soon as there are answers again."""
        with self._lock:
            if self._silent:
                self._owed.append(act)
            else:
                self._put(_Question(act, lambda _: None, Pulse(self._monotonic)))

    def _can_hang(self) -> bool:
        now = self._monotonic()
        if now >= self._known_until:
            self._known_until, self._hangs = now + _KNOWN_FOR, self._may_hang()
        return self._hangs

    def _give_up(self, question: _Question, more: float) -> None:
        silence = question.pulse.silence()
        with self._lock:
            patience = self._hang_after + (0.0 if self._silent else more)
            if silence <= patience or question.answered.is_set():
                return
            question.given_up = True
            self._silent[question] = self._monotonic() - silence
        raise _TooLate(*self._no_answer(self._silent[question]))

    def _no_answer(self, since: float) -> tuple[str, str]:
        seconds = self._monotonic() - since
        return (
            f"No answer from the filesystem of {self._place} for {seconds:.0f} s",
            "It is tried again; look at the mount and its server",
        )

    # -- the threads that ask --

    def _beat(self) -> None:
        pulse: Pulse | None = getattr(self._mine, "pulse", None)
        if pulse is not None:
            pulse.beat()

    def _put(self, question: _Question) -> None:
        """With the lock."""
        if self._idle:
            self._idle.pop().put(question)
            return
        line = _Line()
        line.put(question)
        threading.Thread(target=self._serve, args=(line,), name=f"ask-{self.name}", daemon=True).start()

    def _serve(self, line: _Line) -> None:
        while (question := line.get()) is not None:
            self._mine.pulse = question.pulse
            with question.pulse:
                try:
                    question.answer = question.act()
                except BaseException as error:
                    question.error = error
            if not self._answer(question, line):
                self._catch_up(question)
                with self._lock:
                    self._rest(line)
            del question

    def _answer(self, question: _Question, line: _Line) -> bool:
        """False when nobody waits for it any more."""
        with self._lock:
            if question.given_up:
                return False
            self._rest(line)
            question.answered.set()
            return True

    def _rest(self, line: _Line) -> None:
        """With the lock."""
        if self._closed:
            line.put(None)
        else:
            self._idle.append(line)

    def _catch_up(self, question: _Question) -> None:
        """It answers again: remove what was begun and what was left meanwhile. Until then it counts as silent."""
        with suppress(TransferError, OSError):
            question.late(question.answer)
        with self._lock:
            owed, self._owed = (self._owed, []) if len(self._silent) == 1 else ([], self._owed)
        for act in owed:
            with suppress(TransferError, OSError):
                act()
        with self._lock:
            del self._silent[question]

    # -- a destination --

    def metadata_first(self, size_bound: int) -> bool:
        return self._inner.metadata_first(size_bound)

    def by_crc(self, size_bound: int) -> bool:
        return self._inner.by_crc(size_bound)

    def memory_needed(self, size_bound: int) -> int:
        return self._inner.memory_needed(size_bound)

    def memory_least(self, size_bound: int) -> int:
        return self._inner.memory_least(size_bound)

    def longest_name(self) -> int:
        if not self._longest_name:
            self._longest_name = self.ask(self._inner.longest_name)
        return self._longest_name

    def begin(self, put: Put) -> Upload:
        if not self._can_hang():
            return self._inner.begin(put)

        def note(token: str) -> None:
            pulse: Pulse | None = getattr(self._mine, "pulse", None)
            with pulse.elsewhere() if pulse else nullcontext():
                put.note(token)

        def late(upload: Upload | None) -> None:
            if upload is not None:
                upload.abort()

        return _Asked(self, self.ask(lambda: self._inner.begin(replace(put, note=note)), late))

    def resumable(self, token: str, put: Put) -> bool:
        return self._inner.resumable(token, put)

    def abandon(self, token: str) -> bool:
        try:
            return self.ask(lambda: self._inner.abandon(token))
        except Unreachable:
            return False

    def stat(self, key: str) -> Stored | None:
        return self.ask(lambda: self._inner.stat(key))

    def holding(self, key: str, digests: Digests) -> Stored | None:
        return self.ask(lambda: self._inner.holding(key, digests))

    def make_durable(self, stored: Stored) -> None:
        self.ask(lambda: self._inner.make_durable(stored))

    def listing(self, prefix: str = "", known: Callable[[], Sequence[str]] = tuple) -> Iterator[Stored]:
        entries = self._inner.listing(prefix, known)
        while some := self.ask(lambda: list(islice(entries, _LISTED))):
            yield from some

    @contextmanager
    def read(self, stored: Stored, at_once: int = 1) -> Iterator[Reading]:
        opened, hangs = self._inner.read(stored, at_once), False

        def close(_: object = None) -> None:
            opened.__exit__(None, None, None)

        def following(pieces: Iterator[bytes]) -> Iterator[bytes]:
            nonlocal hangs
            try:
                while (piece := self.ask(lambda: next(pieces, None), close)) is not None:
                    yield piece
            except _TooLate:
                hangs = True
                raise

        pieces = self.ask(opened.__enter__, lambda found: None if found is None else close())
        try:
            yield Reading(pieces.stored, following(pieces))
        finally:
            if not hangs:
                self.owe(close)

    def remove(self, stored: Stored) -> None:
        self.ask(lambda: self._inner.remove(stored))

    def sweep(self, *, now: float, older_than: float = 3600, prefix: str = "") -> int:
        return self.ask(lambda: self._inner.sweep(now=now, older_than=older_than, prefix=prefix))

    def check(self) -> list[str]:
        return self.ask(self._inner.check)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for line in idle:
            line.put(None)
        self._inner.close()


class _Asked:
    """An upload of such a destination. When a call of it hangs, the thread that hangs aborts it in the end."""

    def __init__(self, home: Answering, inner: Upload) -> None:
        self._home, self._inner = home, inner
        self._size = 0
        self._hangs = False

    @property
    def resume_token(self) -> str:
        return self._inner.resume_token

    def write(self, data: bytes | memoryview) -> None:
        kept = bytes(data)  # the buffer is used again, perhaps while the call still hangs
        self._size += len(kept)
        self._ask(lambda: self._inner.write(kept))

    def publish(self, digests: Digests, metadata: Mapping[str, str]) -> Stored:
        return self._ask(lambda: self._inner.publish(digests, metadata), more=self._size / _SLOWEST)

    def suspend(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._hangs or not self._inner.resume_token:
            return
        try:
            self._ask(self._inner.abort)
        except _TooLate:
            pass
        except Unreachable:  # it was not even asked
            self._hangs = True
            self._home.owe(self._inner.abort)

    def _ask(self, act: Callable[[], T], more: float = 0.0) -> T:
        try:
            return self._home.ask(act, lambda _: self._inner.abort(), more=more)
        except _TooLate:
            self._hangs = True
            raise
