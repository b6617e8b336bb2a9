"""Pieces that are asked for together and come in order: one request alone is bound by latency."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator


def in_order(fetch: Callable[[int], bytes], offsets: range, at_once: int) -> Generator[bytes, None, None]:
    """What ``fetch`` gives for each offset, in their order, with so many requests under way or not yet looked at.
    Raises what it raises. Requests that are running when it is closed end by themselves."""
    ahead: deque[_Fetch] = deque()
    for offset in offsets:
        ahead.append(_Fetch(fetch, offset))
        if len(ahead) == at_once:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


class _Fetch:
    """One request, on a thread that nobody has to wait for."""

    def __init__(self, fetch: Callable[[int], bytes], offset: int) -> None:
        self._fetch, self._offset = fetch, offset
        self._body = b""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"range-{offset}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._body = self._fetch(self._offset)
        except BaseException as error:
            self._error = error

    def result(self) -> bytes:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._body
