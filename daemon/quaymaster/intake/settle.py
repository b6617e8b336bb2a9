"""When a file is whole (PRODUCT W4). Pure: no clock and no disk; times come in as monotonic seconds.

A file is ready when one of these holds, and no program has it open for writing:

- it did not change for the quiet time: two looks at it, at least that long apart, saw the same (inode, size, mtime),
  and nothing in between hinted at a change. The quiet time is ``settle`` plus ``settle_per_gib`` for its size;
- it was closed by its writer, or renamed into place, ``settle_closed`` ago, and a file lease proves that nobody has
  it open for writing now;
- a scan found it, its mtime is older than the quiet time, and a lease proves the same.

The second and third need leases that tell the truth: ``Policy.leases`` is False on network filesystems (a lease
falsely succeeds on NFSv4), and so is trust in the age, which would compare two machines' clocks.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import Enum

from quaymaster.model import Identity

_GIB = 1 << 30


class Hint(Enum):
    SEEN = "seen"
    """A scan saw it. No change: it may have been like this for years."""
    CHANGED = "changed"
    """It was created, or linked into place."""
    CLOSED = "closed"
    """A program that had it open for writing closed it."""
    MOVED_IN = "moved-in"
    """It was renamed into place."""


class Writer(Enum):
    OPEN = "open"
    NONE = "none"
    """Proven by a lease."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds, and seconds per GiB."""

    settle: float
    settle_closed: float
    settle_per_gib: float
    leases: bool

    def quiet(self, size: int) -> float:
        """The quiet time of a file of ``size`` bytes."""
        return self.settle + self.settle_per_gib * size / _GIB

    @property
    def closed(self) -> float:
        return min(self.settle, self.settle_closed)


@dataclass(frozen=True, slots=True)
class Observation:
    identity: Identity | None
    """None: there is no such file."""
    writer: Writer = Writer.UNKNOWN
    age: float | None = None
    """Seconds since its mtime by the clock that stamped it; None where that is not to be trusted."""


@dataclass(frozen=True, slots=True)
class Ready:
    identity: Identity


@dataclass(frozen=True, slots=True)
class Wait:
    until: float
    """When the next look is due (monotonic seconds)."""
    unchanged: float
    """Seconds that it has been quiet …"""
    quiet: float
    """… and those that it must be."""
    writing: bool = False
    """A program has it open for writing."""

    @property
    def evidence(self) -> str:
        """What is missing, for people."""
        if self.writing:
            return "a program has it open for writing"
        return f"unchanged for {max(self.unchanged, 0.0):.1f} s of the {self.quiet:.1f} s that it must stay so"


@dataclass(frozen=True, slots=True)
class Gone:
    pass


class _File:
    __slots__ = ("changed_at", "closed", "due", "hinted", "identity", "looked", "queued")

    def __init__(self, now: float) -> None:
        self.changed_at = now
        self.due = now
        self.queued: float | None = None  # the time of its valid heap item: never later than due
        self.identity: Identity | None = None
        self.closed = False
        self.hinted = False  # something changed it since it is here: its age says nothing
        self.looked = False  # observed since the last hint


class Settler:
    """Files that are not yet known to be whole. Not thread-safe: its watch's thread owns it.

    O(log n) for each call; a file costs about 300 bytes.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._files: dict[bytes, _File] = {}
        self._heap: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: bytes) -> bool:
        return path in self._files

    def hint(self, path: bytes, kind: Hint, now: float) -> None:
        """Something happened to ``path`` at ``now``. Restarts its quiet time, unless it was merely seen."""
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = _File(now)
            if kind is Hint.SEEN:
                self._schedule(path, file, now)
        if kind is Hint.SEEN:
            return
        file.changed_at = now
        file.hinted = True
        file.looked = False
        file.closed = kind is not Hint.CHANGED
        if self._policy.leases and (file.closed or file.identity is None):
            wait = self._policy.closed
        else:  # without a lease only two looks prove anything: have the first one at once
            wait = 0.0 if file.identity is None else self._policy.quiet(file.identity.size)
        self._schedule(path, file, now + wait)

    def seen(self, path: bytes, identity: Identity, now: float) -> None:
        """A scan saw a file that changed lately, and what it saw is as good as a first look."""
        if path not in self._files:
            file = self._files[path] = _File(now)
            file.identity = identity
            file.looked = True
            self._schedule(path, file, now + self._policy.quiet(identity.size))

    def due(self, now: float, limit: int) -> list[bytes]:
        """Up to ``limit`` files to look at now. Each must be answered by observe, postpone or forget."""
        paths: list[bytes] = []
        heap = self._heap
        while heap and heap[0][0] <= now and len(paths) < limit:
            at, path = heapq.heappop(heap)
            file = self._files.get(path)
            if file is None or file.queued != at:
                continue
            file.queued = None
            if file.due > now:
                self._schedule(path, file, file.due)
            else:
                paths.append(path)
        return paths

    def next_due(self) -> float | None:
        """No file is due before this time; None when there is none at all."""
        heap = self._heap
        while heap:
            file = self._files.get(heap[0][1])
            if file is not None and file.queued == heap[0][0]:
                return heap[0][0]
            heapq.heappop(heap)
        return None

    def observe(self, path: bytes, observation: Observation, now: float) -> Ready | Wait | Gone:
        """Judge a look at ``path`` that ended at ``now``. Ready and Gone forget the file."""
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = _File(now)
        identity = observation.identity
        if identity is None:
            self.forget(path)
            return Gone()
        proven = self._policy.leases and observation.writer is Writer.NONE
        if observation.writer is Writer.OPEN:
            file.changed_at = now
            file.hinted = True
            file.closed = False
        elif identity != file.identity:
            # A close or rename already accounts for a difference from before it, if no writer came since: a lease
            # says so. Without one, what happened between the hint and this look is not known.
            if file.looked or not (proven and file.closed):
                file.changed_at = now
            file.hinted = file.hinted or file.identity is not None
        file.identity = identity
        file.looked = True
        quiet = self._policy.quiet(identity.size)
        short = proven and file.closed
        until = file.changed_at + (self._policy.closed if short else quiet)
        old = proven and not file.hinted and observation.age is not None and observation.age >= quiet
        # changed_at == now: this very look saw a writer or a change, or is the first. Even settle = 0 needs another.
        quiet_enough = until <= now and (short or file.changed_at < now)
        if quiet_enough or old:
            self.forget(path)
            return Ready(identity)
        self._schedule(path, file, until)
        changed_at = file.changed_at
        return Wait(until, now - changed_at, until - changed_at, observation.writer is Writer.OPEN)

    def postpone(self, path: bytes, until: float) -> None:
        """The file could not be looked at just now: do so at ``until``."""
        file = self._files.get(path)
        if file is not None:
            self._schedule(path, file, until)

    def forget(self, path: bytes) -> None:
        self._files.pop(path, None)

    def _schedule(self, path: bytes, file: _File, due: float) -> None:
        file.due = due
        # An item that comes up too early is put back then, so that a file hinted at a thousand times has one item.
        if file.queued is None or due < file.queued:
            file.queued = due
            heapq.heappush(self._heap, (due, path))
