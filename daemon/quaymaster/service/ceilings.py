"""What all files together may use, over reloads too: memory, threads, staging and bandwidth (PRODUCT P12).

A reload replaces the parts that serve a configuration while files of the earlier one are still on their way; the
ceilings are those of the newer one for all of them, at once.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection
from typing import Any

from quaymaster.config import Config
from quaymaster.config.bandwidth import clock
from quaymaster.pipeline.apart import Rests
from quaymaster.pipeline.bandwidth import Meter, Traffic
from quaymaster.pipeline.budget import Pool, Staging
from quaymaster.pipeline.route import Bounds

_ARENA_MAX, _MMAP_THRESHOLD = -8, -3
"""Parameters of mallopt(3)."""
_MAPPED_FROM = 2 << 20
"""Bytes. Buffers of parts are larger, pieces of a file smaller: those are reused at once by the same pass."""


def give_memory_back() -> None:
    """Let what is freed leave the process, so that it holds what is in use and no more. glibc would keep the buffers of
    parts for itself, in as many arenas as there are threads. (musl has no such call, and no such habit.)"""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 2)
        mallopt(_MMAP_THRESHOLD, _MAPPED_FROM)  # a fixed one: else it grows with what was freed


_UNCOUNTED = 16 << 20
"""Bytes that threads, requests and the allocator's gaps take beside buffers, however few those are."""


def _for_buffers(memory: int) -> int:
    """Of ``limits.memory``; an eighth is left for what nobody can count, and of a small one up to a quarter."""
    return memory - max(memory // 8, min(memory // 4, _UNCOUNTED))


class Ceilings:
    def __init__(self, config: Config) -> None:
        limits = config.limits
        self._files = limits.files
        self._memory = Pool(_for_buffers(limits.memory))
        self._compressing = Pool(limits.compress_threads)
        self._staging = Staging(config.service.staging_dir, ceiling=limits.staging, floor=limits.staging_free)
        self._traffic = Traffic(Meter(limits.bandwidth))
        self._rests = Rests()
        self.set(config)

    def set(self, config: Config) -> None:
        """Another configuration is in effect."""
        limits = config.limits
        self._files = limits.files
        self._memory.set(_for_buffers(limits.memory))
        self._compressing.set(limits.compress_threads)
        self._staging.set(limits.staging, limits.staging_free)
        self._traffic.set(limits.bandwidth, {name: to.bandwidth for name, to in config.destinations.items()})

    def bounds(self, waiting: Callable[[], int]) -> Bounds:
        """As the jobs of one crew see them; ``waiting`` is how many of its files are in flight or wait."""
        return Bounds(
            memory=self._memory,
            staging=self._staging,
            compressing=self._compressing,
            traffic=self._traffic,
            rests=self._rests,
            cpus=len(os.sched_getaffinity(0)),
            waiting=waiting,
            files=lambda: self._files,
        )

    def record(self, running: Collection[object]) -> dict[str, Any]:
        """How much of each is in use, and how many files wait for it: what ``status`` shows."""
        names = {"": self._traffic.total} | self._traffic.of
        return {
            "files": {"used": len(running), "ceiling": self._files},
            "memory": {"used": self._memory.used, "ceiling": self._memory.ceiling, "waiting": self._memory.waiting},
            "compressing": {
                "used": self._compressing.used,
                "ceiling": self._compressing.ceiling,
                "waiting": self._compressing.waiting,
            },
            "staging": {"used": self._staging.used, "ceiling": self._staging.ceiling},
            "bandwidth": [found for name, meter in names.items() if (found := _flow(name, meter))],
        }


def _flow(destination: str, meter: Meter) -> dict[str, Any] | None:
    """None for a meter that limits nothing now."""
    rate, limit, until = meter.now()
    if limit is None:
        return None
    return {
        "destination": destination,
        "rate": int(rate),
        "limit": limit,
        "until": None if until is None else clock(until),
        "waiting": meter.waiting,
    }
