"""One hook at work: a thread that keeps the books, and as many senders as are needed, up to ``parallel``.

Events of one subject go one after the other, whatever fails; subjects do not wait for each other. What fails is tried
again, later each time. When nothing is taken any more it is the receiver that fails: then one event at a time is tried
until one is taken.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from quaymaster.errors import StoreError
from quaymaster.model import Emit, Event, Level
from quaymaster.service.hooks.answer import Answer
from quaymaster.service.hooks.payload import encoded, payload
from quaymaster.store.outbox import DOWN, LONGEST_WAIT, Message, Outbox, Settled

if TYPE_CHECKING:
    from quaymaster.config import Hook

FIRST_WAIT = 1.0
"""Seconds before the second try; doubled each time."""
_LOOK = 1.0
"""Seconds between looks at the custody log and at what other processes ask."""
_STORE_PAUSE = 2.0
_WORTH_TELLING = 10.0
"""Seconds of failing after which it is told that a hook works again."""


class Sender(Protocol):
    def send(self, event: str, number: str, body: bytes) -> Answer:
        """Tell it once. Never raises; ``number`` tells the event from all others."""

    def cut_off(self) -> None:
        """End what is under way."""


class Line:
    """Doing nothing until :meth:`start`."""

    def __init__(
        self,
        hook: Hook,
        sender: Sender,
        outbox: Outbox,
        log: Callable[[], str],
        host: str,
        emit: Emit,
        clock: Callable[[], float],
        randomness: Callable[[], float],
    ) -> None:
        """``log`` names the custody log, once there is one."""
        self.hook, self.host = hook, host
        self._sender, self._outbox, self._log = sender, outbox, log
        self._log_name = ""
        self._emit, self._clock, self._randomness = emit, clock, randomness
        self._given: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._done: list[tuple[Message, Answer]] = []
        self._in_flight: set[int] = set()
        self._position = 0
        self._failures = 0
        self._failing_since: float | None = None
        self._hold_until = 0.0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._senders: list[threading.Thread] = []
        self._keeper = threading.Thread(target=self._keep, name=f"hook-{hook.name}", daemon=True)
        self._earlier: Line | None = None

    def start(self, earlier: Line | None = None) -> None:
        """``earlier`` is what served this hook before: first that comes to its end."""
        self._earlier = earlier
        self._keeper.start()

    def end(self) -> None:
        """Begin nothing more. Returns at once."""
        self._stopping.set()
        self._wake.set()

    def stop(self, timeout: float) -> bool:
        """Cut off what is still under way, which is told again later; True when it has ended within ``timeout``."""
        self.end()
        self._sender.cut_off()
        return self.join(timeout)

    def join(self, timeout: float | None = None) -> bool:
        if self._keeper.is_alive():
            self._keeper.join(timeout)
        return not self._keeper.is_alive()

    # -- keeping the books --

    def _keep(self) -> None:
        if self._earlier is not None:
            self._earlier.join()
            self._earlier = None
        while not self._stopping.is_set() or self._busy():
            self._wake.clear()
            try:
                if not self.turn():
                    self._wake.wait(_LOOK)
            except StoreError:  # told by those who have something to lose
                self._wake.wait(_STORE_PAUSE)
        with suppress(StoreError):  # then it is told again
            self._settle()
        for _ in self._senders:
            self._given.put(None)

    def turn(self) -> bool:
        """Record what was sent, take what is new from the log, and hand out what is due; True when there is more to
        do at once. Raises StoreError, and loses nothing by it."""
        self._settle()
        if self._stopping.is_set():
            return False
        self._position, more = self._outbox.feed(self.hook.name, self._position)
        self._hand_out()
        return more

    def _busy(self) -> bool:
        with self._lock:
            return len(self._in_flight) > len(self._done)

    def _settle(self) -> None:
        with self._lock:
            done = list(self._done)
        if not done:
            return
        now = self._clock()
        outcomes = [self._outcome(message, answer, now) for message, answer in done if not answer.cut]
        if outcomes:
            self._outbox.settle(self.hook.name, outcomes)
        with self._lock:
            del self._done[: len(done)]
            self._in_flight -= {message.id for message, _ in done}
        for outcome in outcomes:
            if not outcome.message.test:
                self._tell(outcome)

    def _outcome(self, message: Message, answer: Answer, now: float) -> Settled:
        if not answer.error:
            return Settled(message, now)
        late = self.hook.give_up is not None and now - message.since >= self.hook.give_up
        if answer.gone or late or message.test:
            return Settled(message, now, answer.error)
        return Settled(message, now, answer.error, now + max(self._wait(message.attempts), answer.retry_after))

    def _wait(self, failures: int) -> float:
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures, 30))
        return longest * (0.5 + self._randomness() / 2)

    def _hand_out(self) -> None:
        now = self._clock()
        room = self._room(now)
        with self._lock:
            busy = set(self._in_flight)
        if room <= len(busy):
            return
        held = self._failures >= DOWN and now < self._hold_until
        due = self._outbox.due(self.hook.name, room - len(busy), now, busy)
        self._log_name = self._log_name or (self._log() if due else "")
        for message in due:
            if held and not message.test:
                continue
            with self._lock:
                self._in_flight.add(message.id)
            if len(self._senders) < min(self.hook.parallel, len(self._in_flight)):
                name = f"hook-{self.hook.name}-{len(self._senders) + 1}"
                self._senders.append(threading.Thread(target=self._send, name=name, daemon=True))
                self._senders[-1].start()
            self._given.put(message)

    def _room(self, now: float) -> int:
        """How many may be under way."""
        if self._failures < DOWN:
            return self.hook.parallel
        if self._outbox.failures(self.hook.name) < self._failures:  # an operator wants it to be tried
            self._failures, self._hold_until = 0, 0.0
        if self._hold_until - now > LONGEST_WAIT:  # the clock was set back
            self._hold_until = 0.0
        return 1

    def _tell(self, outcome: Settled) -> None:
        """Of failures the journal sums up what repeats; that it works again is told once."""
        name, message = self.hook.name, outcome.message
        if not outcome.error:
            if self._failing_since is not None and outcome.at - self._failing_since >= _WORTH_TELLING:
                lasted = outcome.at - self._failing_since
                self._emit(Event("hook-back", f"hook {name} works again after {lasted:.0f} s", Level.NOTICE))
            self._failures, self._failing_since = 0, None
            return
        self._failures += 1
        self._failing_since = self._failing_since or outcome.at
        if self._failures >= DOWN:
            self._hold_until = outcome.at + self._wait(self._failures - DOWN + 3)
        what = f"hook {name} was not told of {message.event} (entry {message.entry}): {outcome.error}"
        watch = str(message.fields.get("watch", ""))
        if outcome.retry_at is None:
            text = f"{what}. Given up: quaymaster hooks retry {name}"
            self._emit(Event("hook-given-up", text, Level.ERROR, watch=watch, code=f"hook-{name}"))
        else:
            text = f"{what}. Next try in {max(0.0, outcome.retry_at - outcome.at):.0f} s"
            self._emit(Event("hook-failing", text, Level.WARNING, watch=watch, code=f"hook-{name}"))

    # -- sending --

    def _send(self) -> None:
        while (message := self._given.get()) is not None:
            try:
                found = payload(message, self._log_name, self.host)
                answer = self._sender.send(message.event, found["id"], encoded(found))
            except Exception as error:  # a defect of ours: the event is kept, the service goes on
                answer = Answer(f"Internal error: {type(error).__name__}: {error}")
            with self._lock:
                self._done.append((message, answer))
            self._wake.set()
