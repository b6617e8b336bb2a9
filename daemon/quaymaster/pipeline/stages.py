"""Running the stages of one file's pass ahead of each other, in threads, without ever leaving one behind.

A stage is a generator that draws from the stage before it. :meth:`Stages.ahead` moves everything up to that stage
into a thread of its own; what it yields waits in a short queue. The first failure anywhere stops every stage and is
raised, unchanged, where the last stage is consumed: in the calling thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from time import monotonic
from types import TracebackType
from typing import Generic, TypeVar, cast

from quaymaster.pipeline.budget import Cancelled

T = TypeVar("T")

_TICK = 0.1
"""Seconds between two looks at ``cancelled`` and the time limit while the calling thread waits."""

_GRACE = 5.0
"""Seconds that a codec call may still take after the pass has failed, before its thread is left to end by itself."""


class CompressionFailed(Exception):
    """The file must travel uncompressed; ``reason`` goes into the record (PRODUCT P3)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Stopped(Exception):
    """Unwinds a stage after another one failed."""


class _Queue(Generic[T]):
    """What one stage has ready for the next: items in tuples of one; None after the last."""

    def __init__(self, changed: threading.Condition) -> None:
        self.changed = changed
        self.ready: deque[tuple[T | None]] = deque()


class Stages:
    """The threads of one pass. Use as a context manager; after it no stage calls ``read`` or ``write`` any more.

    ``cancelled`` is asked in the calling thread, about ten times a second. ``timeout`` is how long one call into the
    compressor may take (seconds); waiting in ``read`` or ``write`` is not the compressor's fault and is not counted.
    """

    def __init__(self, cancelled: Callable[[], bool], timeout: float) -> None:
        self._cancelled = cancelled
        self._timeout = timeout
        self._lock = threading.Lock()
        self._waits: list[threading.Condition] = []  # one a queue, so that only whom it concerns wakes up
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._caller = threading.get_ident()
        self._codec: tuple[threading.Thread, float] | None = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._fail(error)
        left = _GRACE
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_TICK)
                with self._lock:
                    stuck = self._codec is not None and self._codec[0] is thread
                left -= _TICK if stuck else 0
                if stuck and (left <= 0 or self._overdue()):
                    break  # it holds only memory, and ends when the compressor lets go of it

    def check(self) -> None:
        """Raise if the pass must not go on. For the calling thread, between two steps."""
        if self._failure is not None:
            raise self._failure
        if self._cancelled():
            raise Cancelled
        with self._lock:
            if self._overdue():
                raise CompressionFailed(f"no progress for {self._timeout:g} s")

    def codec_call(self, call: Callable[[], T]) -> T:
        """What ``call``, one call into the compressor, returns. CompressionFailed when it raises anything or takes
        longer than the time limit."""
        self._codec = threading.current_thread(), monotonic()
        error, result = None, None
        try:
            result = call()
        except Exception as caught:
            error = caught
        with self._lock:
            overdue, self._codec = self._overdue(), None
        if overdue:
            raise CompressionFailed(f"no progress for {self._timeout:g} s")
        if error is not None:
            raise CompressionFailed(f"failed: {error}") from error
        return cast(T, result)

    def ahead(self, items: Generator[T, None, None], depth: int, name: str) -> Generator[T, None, None]:
        """The same items, made in a thread called ``name`` that keeps at most ``depth`` of them ready.

        So a consumer holds one, the queue ``depth``, and the thread one more.
        """
        queue = _Queue[T](threading.Condition(self._lock))
        self._waits.append(queue.changed)

        def work() -> None:
            try:
                for item in items:
                    self._put(queue, item, depth)
                self._put(queue, None, depth + 1)
            except Stopped:
                pass
            except BaseException as error:
                self._fail(error)
            finally:
                items.close()

        thread = threading.Thread(target=work, name=f"quaymaster-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return self._taken(queue)

    def _taken(self, queue: _Queue[T]) -> Generator[T, None, None]:
        in_caller = threading.get_ident() == self._caller
        while True:
            with self._lock:
                while not queue.ready and self._failure is None:
                    if not queue.changed.wait(_TICK if in_caller else None):
                        break
                if self._failure is not None and not in_caller:
                    raise Stopped
                taken = queue.ready.popleft() if queue.ready else ()
                queue.changed.notify()
            if in_caller:
                self.check()
            for item in taken:
                if item is None:
                    return
                yield item

    def _put(self, queue: _Queue[T], item: T | None, depth: int) -> None:
        with self._lock:
            while len(queue.ready) >= depth and self._failure is None:
                queue.changed.wait()
            if self._failure is not None:
                raise Stopped
            queue.ready.append((item,))
            queue.changed.notify()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
            for changed in self._waits:
                changed.notify_all()

    def _overdue(self) -> bool:
        return self._codec is not None and monotonic() - self._codec[1] > self._timeout
