"""One thread for each watch (PRODUCT W2, W3, W6): a mount that hangs holds up its own watch and no other.

The thread finds out what the watched directory stands on, attends it until that changes, and starts over. Files are
only ever added to the queue: that something is not there any more is never taken for a deletion.

Those who carry the files ask here first: :meth:`Intake.here` whether the watch can be read now, :meth:`Intake.confirm`
whether it really is where it was, when a file is missing or another one than expected.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quaymaster.errors import QuaymasterError, SourceUnavailable, StoreError
from quaymaster.intake.attend import Attendance, Clock, Counts, Enqueue, Known
from quaymaster.intake.footing import Footing, Memory
from quaymaster.intake.mounts import MOUNTINFO, Ground
from quaymaster.model import Emit, Event, FileVersion, Identity, Level
from quaymaster.source import Pulse

if TYPE_CHECKING:
    from quaymaster.config import Watch

_RETRY = 1.0  # seconds between two looks for a root that is away
_CHECK = 5.0  # seconds between two looks whether the root is still the same one; also the slowest heartbeat
_GATHER_MS = 20  # a burst is read in few large pieces: waking for each event costs more than the event
_REPORT = 5.0


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """What one watch is doing. ``heartbeat`` (monotonic seconds) is when its thread last got round."""

    name: str
    mode: str = ""
    """``inotify`` or ``poll``; empty before it is known."""
    state: str = "starting"
    """``starting``, ``watching``, ``degraded`` (polls instead of being told), ``outage``."""
    reason: str = ""
    since: float = 0.0
    """When this state began (seconds since the epoch)."""
    filesystem: str = ""
    directories: int = 0
    pending: int = 0
    """Files that are settling."""
    files_seen: int = 0
    """By the last full scan, as are the next four."""
    held: int = 0
    """Without their marker."""
    skipped_links: int = 0
    skipped_special: int = 0
    unreadable_directories: int = 0
    refused: int = 0
    """Files that cannot be taken; ``quaymaster why`` says why."""
    enqueued: int = 0
    """New versions since the start."""
    scans: int = 0
    last_scan_at: float = 0.0
    last_scan_seconds: float = 0.0
    heartbeat: float = 0.0


class Intake:
    """Notices the files of one watch and puts each version of them into the queue, once it is whole.

    ``known(watch, versions)`` says of each (path, identity) whether queue or ledger have it. ``enqueue(versions)``
    is durable when it returns, and returns how many were new. Both may raise StoreError: nothing is lost then, it is
    tried again. ``report`` is given the status when it changes, and every few seconds while something is going on.
    ``memory`` keeps what the directory stands on, ``held`` says of a path that it is not to be taken yet. All
    six are called in the watch's thread.

    ``pulse`` is entered by everyone who asks the watch's filesystem something.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        known: Known,
        enqueue: Enqueue,
        emit: Emit,
        report: Callable[[WatchStatus], None],
        memory: Memory | None = None,
        held: Callable[[bytes], bool] = lambda _: False,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._watch, self._ask_known, self._ask_enqueue, self._emit, self._report = watch, known, enqueue, emit, report
        self._ask_held = held
        self.pulse = Pulse(monotonic)
        self._clock = Clock(monotonic, wall)
        self._counts = Counts()
        self._memory = memory or Memory(watch.name, watch.path)
        self._footing = Footing(watch, self._memory)
        self._ground: Ground | None = None
        self._attended: Ground | None = None  # None while the watch is away
        self._away = ""
        self._silent_since: float | None = None
        self._doubted = False
        self._stopping = False
        self._rescan = False
        self._closing = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._status = WatchStatus(watch.name, since=wall(), heartbeat=monotonic())
        self._reported_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name=f"intake-{watch.name}", daemon=True)
        self.first_scan_started = threading.Event()
        """Set when the first scan is under way, or the root is known to be away. Wait for it with a time limit: on a
        mount that hangs it never comes."""

    @property
    def name(self) -> str:
        return self._watch.name

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End the thread; False if it did not within ``timeout`` seconds (its mount hangs: leave it behind)."""
        self._stopping = True
        self._rouse()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        with self._closing:
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1
        return True

    def rescan(self) -> None:
        """Scan everything now, from any thread."""
        self._rescan = True
        self._rouse()

    def status(self) -> WatchStatus:
        """As of the last heartbeat; never waits."""
        status, since = self._status, self._silent_since
        if since is None:
            return status
        return replace(status, state="outage", reason=f"No answer from {self._place()}", since=since)

    # -- for those who carry the files, from any thread --

    def here(self) -> bool:
        """Whether the watch is where it was and answers, as far as is known without asking it."""
        return self._attended is not None and self.pulse.silence() <= self._watch.hang_after

    def network(self) -> bool:
        """Whether what it stands on may hang."""
        ground = self._attended
        return ground is not None and ground.network

    def ground(self) -> Ground | None:
        """What it stands on; None while it is away."""
        return self._attended

    def confirm(self) -> None:
        """Look whether the watch is where it was. Raises SourceUnavailable when it is not; may hang with it."""
        ground = self._attended
        if ground is None:
            raise SourceUnavailable(self._away or f"{self._watch.path} was not looked at yet")
        try:
            with self.pulse:
                if self._footing.look() != ground:
                    raise SourceUnavailable(f"{self._watch.path} is not the same directory as before")
        except SourceUnavailable:
            self._attended = None  # until the watch's own thread has looked
            self._doubted = True
            self._rouse()
            raise

    def listen(self) -> None:
        """To be called about once a second: tells when the filesystem has stopped answering and when it answers
        again, which the watch's own thread cannot."""
        silence, since = self.pulse.silence(), self._silent_since
        if since is None and silence > self._watch.hang_after:
            self._silent_since = self._clock.wall() - silence
            self._say("watch-outage", Level.ERROR, f"No answer from {self._place()} for {silence:.0f} s")
        elif since is not None and silence <= self._watch.hang_after:
            self._silent_since = None
            lasted = self._clock.wall() - since
            self._say("watch-back", Level.NOTICE, f"{self._place()} answers again after {lasted:.0f} s")
            self.rescan()

    def _place(self) -> str:
        return f"the {self._ground.filesystem}" if self._ground else f"the filesystem of {self._watch.path}"

    def _rouse(self) -> None:
        with self._closing:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._attend()
            except SourceUnavailable as error:
                self._outage(error)
            except Exception as error:
                # Whatever it is, this watch must not fall silent: the next full scan finds what was missed.
                what = str(error) if isinstance(error, QuaymasterError) else f"{type(error).__name__}: {error}"
                self._outage(SourceUnavailable(f"{self._watch.path} could not be attended ({what})"))

    def _known(self, watch: str, versions: Sequence[tuple[bytes, Identity]]) -> list[bool]:
        with self.pulse.elsewhere():
            return self._ask_known(watch, versions)

    def _enqueue(self, versions: list[FileVersion]) -> int:
        with self.pulse.elsewhere():
            return self._ask_enqueue(versions)

    def _attend(self) -> None:
        """Attend the root until it changes, is lost (SourceUnavailable), or the service stops."""
        with open(MOUNTINFO, "rb") as mounts:
            with self.pulse:
                ground = self._footing.stand()
            attendance = Attendance(
                self._watch,
                ground,
                self._counts,
                self._clock,
                self._known,
                self._enqueue,
                self._emit,
                beat=self.pulse.beat if ground.network else lambda: None,
                scanned=self._footing.scanned,
                held=self._ask_held,
            )
            try:
                self._arrived(ground, attendance)
                self._keep_attending(attendance, ground, mounts.fileno())
            finally:
                self._attended = None
                with self.pulse:
                    attendance.close()

    def _keep_attending(self, attendance: Attendance, ground: Ground, mounts: int) -> None:
        check_at, around = self._clock.monotonic() + _CHECK, ground.mounts
        while not self._stopping:
            if self._rescan:
                self._rescan = False
                attendance.rescan()
            with self.pulse:
                idle = attendance.step()
            self._publish(attendance)
            remounted = self._wait(attendance, mounts, min(idle, _CHECK))
            now = self._clock.monotonic()
            if remounted or self._doubted or now >= check_at:
                check_at, self._doubted = now + _CHECK, False
                with self.pulse:
                    now_on = self._footing.stand()
                if now_on != ground:
                    raise SourceUnavailable(f"{self._watch.path} is not the same directory as before")
                self._attended = ground
                if now_on.mounts != around:
                    around = now_on.mounts
                    attendance.rescan()  # something below has come or gone; mounts elsewhere are not our concern

    def _wait(self, attendance: Attendance | None, mounts: int, seconds: float) -> bool:
        """Wait until there is something to do. True when the mount table changed (proc_pid_mountinfo(5))."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if mounts >= 0:
            poller.register(mounts, select.POLLPRI)
        inotify = attendance.fileno() if attendance else -1
        if inotify >= 0:
            poller.register(inotify, select.POLLIN)
        ready = {descriptor for descriptor, _ in poller.poll(max(0.0, seconds) * 1000)}
        if inotify in ready and seconds and not self._stopping:
            poller.unregister(inotify)
            ready |= {descriptor for descriptor, _ in poller.poll(_GATHER_MS)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        return mounts in ready

    def _arrived(self, ground: Ground, attendance: Attendance) -> None:
        before, self._ground, self._attended = self._ground, ground, ground
        how = "inotify" if attendance.mode == "inotify" else f"a scan every {self._watch.poll_interval:g} s"
        message = f"{self._watch.path} ({ground.filesystem}) is watched by {how}"
        if ground.blind and attendance.mode == "poll":
            message += f", because of the {ground.blind[0]} below it"
        if self._away:
            self._away = ""
            if before is not None and before.filesystem != ground.filesystem:
                message += f"; it was on the {before.filesystem}"
            self._say("watch-back", Level.NOTICE, message)
        else:
            self._say("watch-started", Level.INFO, message)
        self._publish(attendance)
        self.first_scan_started.set()

    def _outage(self, error: SourceUnavailable) -> None:
        if self._away != str(error):
            self._away = str(error)
            self._say("watch-outage", Level.ERROR, str(error))
        self._publish(None)
        self.first_scan_started.set()
        self._wait(None, -1, _RETRY)

    def _publish(self, attendance: Attendance | None) -> None:
        counts, tally, now = self._counts, self._counts.tally, self._clock.monotonic()
        if attendance is None:
            state, reason, mode, pending = "outage", self._away, self._status.mode, 0
            directories = 0
        else:
            reason, mode, pending = attendance.reason, attendance.mode, attendance.pending
            directories = attendance.directories
            state = "degraded" if reason else "watching" if counts.scans else "starting"
        before = self._status
        self._status = WatchStatus(
            name=self._watch.name,
            mode=mode,
            state=state,
            reason=reason,
            since=before.since if state == before.state else self._clock.wall(),
            filesystem=str(self._ground.filesystem) if self._ground else "",
            directories=directories,
            pending=pending,
            files_seen=tally.files,
            held=tally.held,
            skipped_links=tally.links,
            skipped_special=tally.special,
            unreadable_directories=tally.unreadable_count,
            refused=len(counts.aside),
            enqueued=counts.enqueued,
            scans=counts.scans,
            last_scan_at=counts.last_scan_at,
            last_scan_seconds=counts.last_scan_seconds,
            heartbeat=now,
        )
        if (before.state, before.mode, before.reason) != (state, mode, reason) or now - self._reported_at >= _REPORT:
            self._reported_at = now
            try:
                self._report(self._status)
            except StoreError:
                pass  # whoever keeps the status will hear of the store from those who need it more

    def _say(self, kind: str, level: Level, message: str) -> None:
        self._emit(Event(kind, message, level, watch=self._watch.name))
