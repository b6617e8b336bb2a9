"""A distant share: a FUSE passthrough to a directory that answers after a while, and moves so many bytes a second.

``SlowFilesystem`` is for benchmarks; run as a program, this module is that process.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from system.faulty_filesystem import FaultyFilesystem, reason_to_skip, serve

__all__ = ["SlowFilesystem", "reason_to_skip"]


class SlowFilesystem(FaultyFilesystem):
    """``latency``: seconds before each answer. ``rate``: bytes a second, reading and writing together."""

    program = __file__

    def __init__(self, below: Path, *, latency: float, rate: float) -> None:
        super().__init__(below)
        self.arguments = [str(latency), str(rate)]


class _Line:
    """What all transfers share: they queue for it, while latency passes for each by itself."""

    def __init__(self, latency: float, rate: float) -> None:
        self._latency, self._rate = latency, rate
        self._free = 0.0
        self._lock = threading.Lock()

    def pass_through(self, length: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._free = max(now, self._free) + length / self._rate
            ends = self._free
        time.sleep(max(0.0, ends - now) + self._latency)

    def around(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any) -> Any:
            answer = act(*arguments)
            moved = len(answer) if name == "read" else len(arguments[1]) if name == "write" else 0
            if name not in ("release", "flush", "statfs"):  # what a client need not wait for
                self.pass_through(moved)
            return answer

        return operation


if __name__ == "__main__":
    held, seen, faults, direct, latency, rate = sys.argv[1:7]
    serve(held, seen, faults, direct, _Line(float(latency), float(rate)).around)
