"""Signs of life, given only while the work goes on (PRODUCT S1).

systemd restarts a service that is silent for WatchdogSec=. The main loop gives the sign, and withholds it while
something that should move stands still: a running job, or the watching of a local directory. So a thread that hangs
costs a restart and not the night; its job is queued again by the start that follows.

What may stand still without being a hang, and therefore counts differently:

- A network mount whose server does not answer. No restart can help, and the others go on: that watch is an outage.
- A request to an S3 server. It has limits of its own (connect_timeout, read_timeout, 3 tries) and a slow line.
- A stage that reads a whole file again says nothing meanwhile: a first digest, reading back, the look before disposal.

So each job has its own patience: the longest of these that can happen to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from quaymaster.config import Config, DirectoryDestination, S3Destination, Watch
from quaymaster.intake.intake import WatchStatus
from quaymaster.intake.mounts import filesystem_of
from quaymaster.model import Stage, shown
from quaymaster.pipeline.worker import Running

SLOWEST_DISK = 4 << 20
"""Bytes a second: a local disk that reads a file more slowly is taken for one that hangs."""
SLOWEST_LINE = 256 << 10
"""Bytes a second, for all files in flight together: the slowest way to an S3 server that is believed in."""
RANGES = 96 << 20
"""Bytes of one download that may be under way before the first of them counts."""
_TRIES = 3  # of one request: destinations/s3_tries.py
_HEARTBEAT = 30.0  # seconds within which a watch says something, however little happens: intake/intake.py
_MARGIN = 30.0  # seconds on top of a limit that ends a wait by itself

IsNetwork = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Stall:
    """Something that should move and does not."""

    what: str
    """For the operator, e.g. ``job 42 (landing/reads.fastq) in stage transfer``."""
    still: float
    """Seconds since it last moved."""
    job: int = 0
    """0: not a job."""


def on_network(path: str) -> bool:
    """Whether the path's filesystem is one that can hang with its server; asks the mount table, never the mount."""
    return filesystem_of(os.path.abspath(path)).network


class Watchdog:
    """``period``: seconds within which systemd wants a sign (0: none, and nothing is ever due)."""

    def __init__(self, period: float, is_network: IsNetwork = on_network) -> None:
        self.period = period
        self._is_network = is_network
        self._given = float("-inf")

    def due(self, now: float) -> bool:
        """Whether it is time to give a sign, if there is life."""
        return self.period > 0 and now - self._given >= self.period / 4

    def gave(self, now: float) -> None:
        self._given = now

    def stalls(
        self, config: Config, running: Mapping[int, Running], watches: Iterable[WatchStatus], now: float
    ) -> list[Stall]:
        """What stands still longer than it may, the longest first. ``now`` is monotonic, in seconds."""
        found = [self._of_watch(config, status, now) for status in watches]
        found += [self._of_job(config, job, running, now) for job in running.values()]
        found += [self._of_download(config, job, now) for job in running.values()]
        return sorted((stall for stall in found if stall), key=lambda stall: -stall.still)

    def _of_watch(self, config: Config, status: WatchStatus, now: float) -> Stall | None:
        still = now - status.heartbeat
        watch = config.watches.get(status.name)
        if watch is None or still <= max(_HEARTBEAT, self._shortest()) or self._is_network(watch.path):
            return None
        return Stall(f"the watching of {watch.path}", still)

    def _of_job(self, config: Config, job: Running, running: Mapping[int, Running], now: float) -> Stall | None:
        still = now - job.moved_at
        watch = config.watches.get(job.job.version.watch)
        if (
            watch is None
            or still <= self._patience(config, watch, job, running)
            or self._is_outside(config, watch, job)
        ):
            return None
        version = job.job.version
        path = os.fsdecode(version.path).encode("unicode_escape").decode()
        return Stall(f"job {job.job.id} ({version.watch}/{path}) in stage {job.stage}", still, job.job.id)

    def _of_download(self, config: Config, job: Running, now: float) -> Stall | None:
        mirror = config.mirrors.get(job.job.version.watch)
        still = now - job.moved_at
        if mirror is None or self._is_network(mirror.path):
            return None
        source, version = config.destinations[mirror.source], job.job.version
        assert isinstance(source, S3Destination)
        patience = _TRIES * (source.connect_timeout + 2 * source.read_timeout) + _MARGIN
        patience += version.size / SLOWEST_DISK + RANGES / SLOWEST_LINE
        if still <= max(self._shortest(), patience):
            return None
        return Stall(f"download {job.job.id} ({version.watch}/{shown(version.path)})", still, job.job.id)

    def _shortest(self) -> float:
        """Half the period, so that systemd still waits a whole period after the last sign."""
        return self.period / 2

    def _patience(self, config: Config, watch: Watch, job: Running, running: Mapping[int, Running]) -> float:
        limits = [self._shortest()]
        if watch.compress is not None:
            limits.append(watch.compress.timeout + _MARGIN)
        servers = [d for d in map(config.destinations.get, watch.destinations) if isinstance(d, S3Destination)]
        limits += [_TRIES * (d.connect_timeout + 2 * d.read_timeout) + _MARGIN for d in servers]
        size = job.job.version.size
        if not servers:
            return max(limits) + size / SLOWEST_DISK
        in_flight = max(d.part_size for d in servers) * config.limits.parts
        line = sum(min(each.job.version.size, in_flight) for each in running.values())
        if watch.verify == "readback":
            line += size
        return max(limits) + size / SLOWEST_DISK + line / SLOWEST_LINE

    def _is_outside(self, config: Config, watch: Watch, job: Running) -> bool:
        """Whether the stage touches a filesystem that hangs when its server does."""
        source = self._is_network(watch.path)
        if job.apart and source:
            return True
        chosen = map(config.destinations.get, watch.destinations)
        places = [d.path for d in chosen if isinstance(d, DirectoryDestination)]
        beside = any(config.destinations[name].type == "beside" for name in watch.destinations)
        there = any(map(self._is_network, places)) or (source and beside)
        match job.stage:
            case Stage.FETCH:
                return source
            case Stage.DISPOSE:
                return source or there or (watch.after_dir is not None and self._is_network(watch.after_dir))
            case _:
                staged = watch.stage if watch.stage is not None else source
                return there or (source and not staged)
