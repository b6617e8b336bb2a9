"""Runs quaymaster under a wall clock that jumps: FILE holds the seconds to add, and may change at any time.

    python -m system.clock_jumps FILE run --config CONFIG

The monotonic clock and the times of files are the kernel's, as they are when somebody sets the clock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def jump_with(file: str) -> None:
    real, real_ns = time.time, time.time_ns

    def offset() -> float:
        with open(file) as given:
            return float(given.read() or 0)

    def patched(clock: Callable[[], float], unit: float) -> Callable[[], float]:
        return lambda: type(clock())(clock() + offset() * unit)

    time.time = patched(real, 1.0)
    time.time_ns = patched(real_ns, 1e9)  # type: ignore[assignment]


if __name__ == "__main__":
    given, *arguments = sys.argv[1:]
    jump_with(given)
    from quaymaster.cli import main

    raise SystemExit(main(arguments))
