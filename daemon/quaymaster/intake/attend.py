"""Attending one root for as long as it stays the same: scans, hints, settling, and into the queue (PRODUCT W3, W4).

Everything here runs in the thread of one watch, a step at a time. Nothing grows without bound: what is more than can
be held is forgotten and found again by a scan of everything, which is the truth anyhow.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from quaymaster.errors import SourceRefused, SourceUnavailable, StoreError
from quaymaster.intake.mounts import Ground, unusable
from quaymaster.intake.observe import Looks, listed_identity, policy_for
from quaymaster.intake.scan import BATCH, Found, Rules, Tally, batches, has_marker
from quaymaster.intake.settle import Gone, Hint, Ready, Settler
from quaymaster.intake.watch import Inotify, WatchLimit
from quaymaster.model import Emit, Event, FileVersion, Identity, Level
from quaymaster.source import Root

if TYPE_CHECKING:
    from quaymaster.config import Watch

_MOST_SETTLING = 100_000
_SCAN_PAUSES_AT = 50_000
_MOST_READY = 1_000
_MOST_REMEMBERED = 1_000_000
_MOST_ASIDE = 10_000
_MOST_TREES = 100_000
_TOLD_EACH_SCAN = 20
_STEP = 0.05  # seconds of scanning between two looks at inotify
_MARKER_KNOWN_FOR = 1.0
_STORE_RETRY = (0.5, 30.0)
_CLOCK_JUMP = 1.0

Known = Callable[[str, Sequence[tuple[bytes, Identity]]], list[bool]]
Enqueue = Callable[[list[FileVersion]], int]
_T = TypeVar("_T")


class Clock:
    """Monotonic time to wait by; wall-clock time to compare with mtimes, until it jumps."""

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self.monotonic = monotonic
        self.wall = wall
        self._offset = wall() - monotonic()
        self._jumped = False

    def wall_ns(self) -> int | None:
        """Nanoseconds since the epoch; None for good once the clock was set: which mtimes are from before is not
        known, and a file that seems old may be new."""
        wall = self.wall()
        if abs(wall - self.monotonic() - self._offset) > _CLOCK_JUMP:
            self._jumped = True
        return None if self._jumped else int(wall * 1e9)


@dataclass(slots=True)
class Counts:
    """What one watch saw, for its status; kept over outages."""

    tally: Tally = field(default_factory=Tally)
    enqueued: int = 0
    scans: int = 0
    last_scan_at: float = 0.0
    last_scan_seconds: float = 0.0
    aside: dict[bytes, tuple[str, Identity | None]] = field(default_factory=dict)
    """Files that were refused or cannot be read, as they were then: told once, tried again by full scans."""


class Attendance:
    """``step`` does a little of what is to do. SourceUnavailable from any method: the root is lost, close this."""

    def __init__(
        self,
        watch: Watch,
        ground: Ground,
        counts: Counts,
        clock: Clock,
        known: Known,
        enqueue: Enqueue,
        emit: Emit,
        *,
        beat: Callable[[], None] = lambda: None,
        scanned: Callable[[int], None] = lambda _: None,
        held: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        """``beat`` is called after each answer of the filesystem, ``scanned`` with the number of all directory entries
        after each full scan; it may raise SourceUnavailable. ``held`` says of a path that it is not to be taken yet:
        whoever says so asks for a scan when that is over."""
        self._beat, self._scanned, self._held = beat, scanned, held
        self._watch, self._ground, self._counts, self._clock = watch, ground, counts, clock
        self._known, self._enqueue, self._emit = known, enqueue, emit
        self._root = Root(ground.path, hard_links=watch.hard_links)
        self._rules = Rules(watch.include, watch.exclude, watch.ignored)
        self._policy = policy_for(watch, ground)
        self._settler = Settler(self._policy)
        self._marker = os.fsencode(watch.marker or "")
        self._marked: dict[bytes, tuple[bool, float]] = {}
        self._ready: list[FileVersion] = []
        self._unasked: list[Found] = []  # scanned, not yet compared with queue and ledger
        self._trees: dict[bytes, bool] = {}  # directories to scan; True: even if they are watched already
        self._tree: Iterator[list[Found]] | None = None
        self._full: Iterator[list[Found]] | None = None
        self._full_began = 0.0
        self._tally = Tally()
        self._reconciling = True  # the scan that runs takes nothing as known from an earlier one
        self._full_wanted = True
        self._next_reconcile = self._next_poll = clock.monotonic()
        self._remembered: set[int] = set()  # polling: versions that queue or ledger have, hashed
        self._remembering: set[int] = set()
        self._store_at = self._store_delay = 0.0
        self._told = self._untold = 0
        self.reason = ""
        """Why it polls although it should not, and what to do; empty when all is well."""
        self._inotify: Inotify | None = None
        self._want_inotify = watch.mode == "inotify" or (watch.mode == "auto" and ground.inotify)
        self._open_inotify()

    @property
    def mode(self) -> str:
        return "inotify" if self._inotify else "poll"

    @property
    def directories(self) -> int:
        return self._inotify.directories if self._inotify else self._counts.tally.directories

    @property
    def pending(self) -> int:
        return len(self._settler) + len(self._ready)

    def fileno(self) -> int:
        """What becomes readable when there is something to do; -1 when polling."""
        return self._inotify.fileno() if self._inotify else -1

    def rescan(self) -> None:
        """Scan everything soon, and ask queue and ledger about every file."""
        self._full_wanted = True

    def close(self) -> None:
        for walk in (self._tree, self._full):
            if walk is not None:
                walk.close()  # type: ignore[attr-defined]  # it is a generator
        if self._inotify:
            self._inotify.close()
            self._inotify = None

    def step(self) -> float:
        """Do what is due, for about a twentieth of a second. Returns the seconds until there is more to do."""
        try:
            self._drain()
            self._scan()
        except WatchLimit as limit:
            self._degrade(limit)
        except OSError as error:
            raise unusable(self._watch.path, error) from error
        self._look_at_due()
        self._flush()
        return self._idle_for()

    # -- hints --------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        if self._inotify is None:
            return
        drained = self._inotify.drain()
        if drained.root_lost:
            raise SourceUnavailable(
                f"{self._watch.path} was removed, renamed or unmounted", "It is watched again as soon as it is back"
            )
        if drained.overflow:
            self._say(
                "watch-overflow",
                Level.WARNING,
                f"More happened in {self._watch.path} than the kernel keeps events for; everything is scanned instead",
            )
            self._full_wanted = True
        now = self._clock.monotonic()
        for path, kind in drained.hints.items():
            self._hint(path, kind, now)
        for path in drained.trees:
            self._want_tree(path, self._trees.get(path, False))

    def _hint(self, path: bytes, kind: Hint, now: float) -> None:
        if self._marker and os.path.basename(path) == self._marker:
            self._marked.clear()
            self._want_tree(os.path.dirname(path), True)
            if not self._rules.takes(path):
                return
        if len(self._settler) < _MOST_SETTLING or path in self._settler:
            self._settler.hint(path, kind, now)
        else:
            self._full_wanted = True

    def _want_tree(self, path: bytes, even_if_watched: bool) -> None:
        if not path or len(self._trees) >= _MOST_TREES:
            self._trees.clear()
            self._full_wanted = True
        else:
            self._trees[path] = even_if_watched

    # -- scans --------------------------------------------------------------------------------------------------

    def _scan(self) -> None:
        end = self._clock.monotonic() + _STEP
        while len(self._unasked) < BATCH and len(self._settler) < _SCAN_PAUSES_AT:
            batch = self._next_batch()
            if batch is None:
                break
            self._unasked.extend(batch)
            if self._clock.monotonic() >= end:
                break
        if self._unasked:
            self._compare()

    def _next_batch(self) -> list[Found] | None:
        """The next piece of whatever is to be scanned; None when there is nothing."""
        if self._tree is None and self._trees:
            path = next(iter(self._trees))
            enter = None if self._inotify is None else self._enter_any if self._trees[path] else self._inotify.watch
            del self._trees[path]
            self._tree = self._batches(Tally(), path, enter)
        if self._tree is not None:
            batch = next(self._tree, None)
            if batch is None:
                self._tree = None
                return []
            return batch
        if self._full is None and not self._begin_full():
            return None
        batch = next(self._full, None) if self._full else None
        if batch is None:
            if self._unasked:
                return None  # the scan has ended when all that it found is compared
            self._end_full()
            return []
        return batch

    def _enter_any(self, path: bytes, descriptor: int) -> bool:
        if self._inotify is not None:
            self._inotify.watch(path, descriptor)
        return True

    def _begin_full(self) -> bool:
        now = self._clock.monotonic()
        if self._full_wanted or now >= self._next_reconcile:
            self._reconciling = True
            self._open_inotify()
        elif self._inotify is None and now >= self._next_poll:
            self._reconciling = False
        else:
            return False
        self._full_wanted = False
        self._full_began = now
        self._tally = Tally()
        self._remembering = set()
        enter = None
        if self._inotify is not None:
            self._inotify.begin_sweep()
            enter = self._enter_any
        self._full = self._batches(self._tally, b"", enter)
        return True

    def _batches(self, tally: Tally, path: bytes, enter: Callable[[bytes, int], bool] | None) -> Iterator[list[Found]]:
        return batches(self._root, self._rules, tally, path, marker=self._marker, enter=enter, beat=self._beat)

    def _end_full(self) -> None:
        now = self._clock.monotonic()
        took = now - self._full_began
        self._full = None
        self._scanned(self._tally.entries)
        if self._inotify is not None:
            self._inotify.end_sweep()
            if self.reason:
                self._say("watch-recovered", Level.NOTICE, f"{self._watch.path} is watched by inotify again")
            self.reason = ""
        else:
            self._remembered = self._remembering
            # A tree that takes longer to scan than the interval is not scanned without pause.
            self._next_poll = max(self._full_began + self._watch.poll_interval, now + took)
        if self._reconciling:
            self._next_reconcile = self._full_began + self._watch.rescan_interval
            for path in [path for path in self._counts.aside if listed_identity(self._root, path) is None]:
                del self._counts.aside[path]
        before, counts = self._counts.tally, self._counts
        counts.tally, counts.scans = self._tally, counts.scans + 1
        counts.last_scan_at, counts.last_scan_seconds = self._clock.wall(), took
        known_unreadable = dict(before.unreadable)
        for path, why in self._tally.unreadable:
            if path not in known_unreadable:
                message = f"The directory {self._root.shown(path)} cannot be listed ({why}); what is in it is not seen"
                self._say("directory-unreadable", Level.WARNING, message, path)
        if self._untold:
            message = f"{self._untold} more files of {self._watch.path} cannot be taken: quaymaster why PATH says why"
            self._say("source-refused", Level.WARNING, message)
        self._told = self._untold = 0

    def _compare(self) -> None:
        """Ask queue and ledger about what was scanned, and let settle what they do not have."""
        remembered = set() if self._inotify or self._reconciling else self._remembered
        asked = []
        for found in self._unasked[:BATCH]:
            if found.path in self._settler:
                continue
            if hash(found) in remembered:
                self._remember(found)
                continue
            aside = self._counts.aside.get(found.path)
            if aside is not None and aside[1] == found.identity and not self._reconciling:
                continue
            asked.append(found)
        known = self._with_store(partial(self._known, self._watch.name, asked)) if asked else []
        if known is None:
            return
        del self._unasked[:BATCH]
        for found, has in zip(asked, known, strict=True):
            if has:
                self._remember(found)
            elif self._held(found.path):
                self._tally.held += 1
            else:
                self._seen(found)

    def _remember(self, found: Found) -> None:
        if self._inotify is None and len(self._remembering) < _MOST_REMEMBERED:
            self._remembering.add(hash(found))

    def _seen(self, found: Found) -> None:
        now = self._clock.monotonic()
        wall = self._clock.wall_ns()
        identity = found.identity
        quiet = self._policy.quiet(identity.size)
        if self._policy.leases and (wall is None or wall - identity.mtime_ns < quiet * 1e9):
            # On a local filesystem the listing is as true as a look, and spares one. An old file needs the lease.
            self._settler.seen(found.path, identity, now)
        else:
            self._settler.hint(found.path, Hint.SEEN, now)

    # -- settling, and into the queue ---------------------------------------------------------------------------

    def _look_at_due(self) -> None:
        due = self._settler.due(self._clock.monotonic(), min(BATCH, _MOST_READY - len(self._ready)))
        if not due:
            return
        leases = self._policy.leases
        with Looks(self._root, leases=leases, wall_ns=self._clock.wall_ns() if leases else None) as looks:
            for path in sorted(due):
                self._look(path, looks)
                self._beat()

    def _look(self, path: bytes, looks: Looks) -> None:
        try:
            observation = looks.look(path)
        except SourceRefused as error:
            self._set_aside(path, "source-refused", str(error))
        except OSError as error:
            self._cannot_look(path, error)
        else:
            verdict = self._settler.observe(path, observation, self._clock.monotonic())
            if isinstance(verdict, Ready):
                self._ready.append(FileVersion(self._watch.name, path, verdict.identity))
            if self._counts.aside and isinstance(verdict, Ready | Gone):
                self._counts.aside.pop(path, None)

    def _cannot_look(self, path: bytes, error: OSError) -> None:
        where = self._root.shown(path)
        if error.errno in (errno.EACCES, errno.EPERM):
            advice = "Give the service's user read permission; it is tried again with every full scan"
            self._set_aside(path, "source-unreadable", f"{where} cannot be read (permission denied). {advice}")
        elif error.errno in (errno.ELOOP, errno.EXDEV):
            self._set_aside(
                path, "source-refused", f"{where} is reached through a symbolic link; links are not followed"
            )
        else:
            # EIO, ESTALE, ENOMEM …: it may be over in a moment. When the whole root is concerned, the scan says so.
            self._tell(path, "source-unreadable", f"{where} cannot be read now ({error.strerror}); it is tried again")
            self._settler.postpone(path, self._clock.monotonic() + max(1.0, self._policy.settle))

    def _set_aside(self, path: bytes, kind: str, message: str) -> None:
        self._settler.forget(path)
        self._tell(path, kind, message)

    def _tell(self, path: bytes, kind: str, message: str) -> None:
        """Say it once for each version of a file, and not of a hundred thousand files."""
        aside, identity = self._counts.aside, listed_identity(self._root, path)
        if aside.get(path) == (kind, identity):
            return
        if len(aside) >= _MOST_ASIDE:
            del aside[next(iter(aside))]
        aside[path] = (kind, identity)
        if self._told < _TOLD_EACH_SCAN:
            self._told += 1
            self._say(kind, Level.WARNING, message, path)
        else:
            self._untold += 1

    def _flush(self) -> None:
        while self._ready:
            batch = [version for version in self._ready[:BATCH] if self._is_released(version.path)]
            new = self._with_store(partial(self._enqueue, batch)) if batch else 0
            if new is None:
                return
            self._counts.enqueued += new
            del self._ready[:BATCH]

    def _is_released(self, path: bytes) -> bool:
        """A file without its marker is dropped here: the scan that the marker sets off finds it again."""
        if self._held(path):
            return False
        if not self._marker:
            return True
        directory, now = os.path.dirname(path), self._clock.monotonic()
        answer, at = self._marked.get(directory, (False, float("-inf")))
        if now - at > _MARKER_KNOWN_FOR:
            if len(self._marked) >= _MOST_ASIDE:
                self._marked.clear()
            answer = has_marker(self._root, directory, self._marker)
            self._marked[directory] = (answer, now)
        return answer

    def _with_store(self, call: Callable[[], _T]) -> _T | None:
        """What the store answers; None while it is in trouble: everything is kept and asked again later."""
        if self._clock.monotonic() < self._store_at:
            return None
        try:
            answer = call()
        except StoreError as error:
            if not self._store_delay:
                self._say("store-trouble", Level.ERROR, f"files wait to be queued: {error}")
            self._store_delay = min(_STORE_RETRY[1], max(_STORE_RETRY[0], 2 * self._store_delay))
            self._store_at = self._clock.monotonic() + self._store_delay
            return None
        if self._store_delay:
            self._say("store-back", Level.NOTICE, "files can be queued again")
            self._store_delay = 0.0
        return answer

    def _idle_for(self) -> float:
        now = self._clock.monotonic()
        if self._store_delay and (self._unasked or self._ready):
            wait = self._store_at - now
            due = self._settler.next_due() if len(self._ready) < _MOST_READY else None
            return max(0.0, wait if due is None else min(wait, due - now))
        scanning = self._tree or self._trees or self._full or self._full_wanted or self._unasked
        if scanning and len(self._settler) < _SCAN_PAUSES_AT:
            return 0.0
        times = [self._next_reconcile]
        if self._inotify is None:
            times.append(self._next_poll)
        due = self._settler.next_due()
        if due is not None:
            times = [*times, due] if not scanning else [due]
        return max(0.0, min(times) - now)

    # -- inotify or not -----------------------------------------------------------------------------------------

    def _open_inotify(self) -> None:
        if not self._want_inotify or self._inotify is not None:
            return
        try:
            self._inotify = Inotify(self._rules, self._marker)
        except WatchLimit as limit:
            self._degrade(limit)

    def _degrade(self, limit: WatchLimit) -> None:
        """Poll until the next full scan, which tries inotify again."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
            self._tree = self._full = None
            self._full_wanted = False
            self._next_poll = self._clock.monotonic()
            self._next_reconcile = self._next_poll + self._watch.rescan_interval
            self._remembered = set()
        reason = f"{limit.reason}, so {self._watch.path} is polled every {self._watch.poll_interval:g} s"
        if limit.advice:
            reason += f". To have it watched: {limit.advice}"
        if not self.reason:
            self._say("watch-degraded", Level.WARNING, reason)
        self.reason = reason

    def _say(self, kind: str, level: Level, message: str, path: bytes = b"") -> None:
        self._emit(Event(kind, message, level, watch=self._watch.name, path=path))
