"""Whether there is room for what a pass is about to send, told before anything is touched (PRODUCT P12)."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from quaymaster.errors import OutOfSpace
from quaymaster.model import FileVersion
from quaymaster.service import build

if TYPE_CHECKING:
    from quaymaster.config import Config, Watch

_FASTQ = (b".fastq", b".fq")
_FASTQ_RATIO = 4.0
"""How many times smaller FASTQ becomes, until there is a ratio of one's own."""


class _Standing(Protocol):
    def network(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Need:
    directory: str
    size: int
    what: str
    floor: int = 0
    """Bytes that must stay free."""


def check(
    config: Config,
    standing: Mapping[str, _Standing],
    files: Sequence[FileVersion],
    ratio: Callable[[str], float | None],
) -> None:
    """Raises OutOfSpace with the figures and what to change. ``ratio`` is what the ledger knows of a watch."""
    staged: list[FileVersion] = []
    fetchers = 0
    lacking = []
    for name, station in standing.items():
        watch = config.watches[name]
        mine = [version for version in files if version.watch == name]
        if mine and (station.network() if watch.stage is None else watch.stage):
            staged += mine
            fetchers += watch.fetchers
        lacking += _destinations(config, watch, mine, ratio)
    if staged:
        lacking += _lacking([_staging(config, staged, fetchers)])
    if lacking:
        raise OutOfSpace(lacking[0][0], lacking[0][1])


def _staging(config: Config, staged: Sequence[FileVersion], fetchers: int) -> _Need:
    """The largest files that may be in staging at once: one for each fetcher, and those that are on their way."""
    limits = config.limits
    sizes = heapq.nlargest(fetchers + limits.files, (version.size for version in staged))
    worst = sum(sizes)
    if limits.staging is not None:  # at the ceiling files wait; one alone may pass it
        worst = min(worst, max(limits.staging, sizes[0]))
    what = f"staging may need {worst:,} bytes at once ({len(sizes)} of {len(staged):,} files)"
    return _Need(config.service.staging_dir, worst, what, limits.staging_free)


def _destinations(
    config: Config, watch: Watch, files: Sequence[FileVersion], ratio: Callable[[str], float | None]
) -> list[tuple[str, str]]:
    beside = build.beside(config, watch)
    needs = []
    for name in watch.destinations if files else ():
        wanted = config.destinations[name]
        path = watch.path if name in beside else wanted.path if wanted.type == "directory" else None
        if path is not None:
            size = _stored(config, watch, files, ratio(watch.name))
            needs.append(_Need(path, size, f"the copies at {name} may need {size:,} bytes"))
    return _lacking(needs)


def _stored(config: Config, watch: Watch, files: Sequence[FileVersion], seen: float | None) -> int:
    if watch.compress is None or config.compression_disabled:
        return sum(version.size for version in files)
    total = 0.0
    for version in files:
        small = version.size <= watch.compress.min_size
        guess = _FASTQ_RATIO if version.path.endswith(_FASTQ) else 1.0
        total += version.size / (1.0 if small else seen or guess)
    return int(total)


def _lacking(needs: Sequence[_Need]) -> list[tuple[str, str]]:
    """Message and advice of each need that cannot be met."""
    found = []
    for need in needs:
        try:
            status = os.statvfs(need.directory)
        except OSError:
            continue  # what is wrong with it is told by those who use it
        free = status.f_bavail * status.f_frsize
        if free - need.floor < need.size:
            floor = f", of which {need.floor:,} must stay free" if need.floor else ""
            advice = f"Make room for {need.size + need.floor - free:,} bytes more"
            if need.floor:
                advice += ", or set limits.staging, limits.files (--workers) or fetchers lower, or service.staging_dir"
                advice += " to a larger disk"
            found.append((f"{need.what}; {need.directory} has {free:,} free{floor}. Nothing was sent", advice))
    return found
