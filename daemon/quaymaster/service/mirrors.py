"""The mirrors of a configuration, at work: one thread each, and more while something is downloaded (PRODUCT M)."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from quaymaster.errors import StoreError
from quaymaster.model import Emit, Event, Level, State
from quaymaster.pipeline.lane import Running
from quaymaster.pipeline.retry import defect
from quaymaster.pipeline.route import Bounds

if TYPE_CHECKING:
    from quaymaster.config import Mirror
    from quaymaster.destinations.base import Destination
    from quaymaster.destinations.s3 import S3
    from quaymaster.mirror.follow import Follower
    from quaymaster.store import Store

_NEXT_LOOK = 1.0
"""Seconds between looks at whether something was asked for, or a retry is due."""
_STOP = 5.0


class MirrorService:
    """Built, but doing nothing until :meth:`start` or :meth:`once`."""

    def __init__(
        self,
        mirror: Mirror,
        store: Store,
        source: Destination,
        bounds: Callable[[Callable[[], int]], Bounds],
        emit: Emit,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.mirror, self._store, self._source, self._bounds = mirror, store, source, bounds
        self._emit, self._clock, self._monotonic = emit, clock, monotonic
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._cancelled = threading.Event()
        self._looking, self._arrived = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"follow-{mirror.name}", daemon=True)
        self.heartbeat = monotonic()
        """When it last came round (monotonic)."""
        self._follower, self._downloads = self._parts()

    def _parts(self) -> tuple[Follower, Any]:
        from quaymaster.intake.scan import Rules
        from quaymaster.mirror.download import Download
        from quaymaster.mirror.follow import Follower
        from quaymaster.mirror.release import Ground
        from quaymaster.mirror.serving import Serving
        from quaymaster.mirror.works import Downloads

        mirror = self.mirror
        ground = Ground(mirror.path, mirror.name, lambda: secrets.token_hex(8), self._clock)
        download = Download(
            mirror,
            cast("S3", self._source),
            ground,
            self._bounds(lambda: len(downloads.running)),
            self._cancelled.is_set,
            _boot(),
        )
        downloads = Downloads(
            mirror.name,
            mirror.downloads,
            self._store,
            download,
            lambda path: follower.listed(path),
            self._emit,
            self._note_arrival,
        )
        takes = Rules(mirror.include, mirror.exclude).takes if mirror.include or mirror.exclude else lambda _: True
        serving = Serving(mirror, self._stopping.is_set)
        follower = Follower(
            mirror, self._store, self._source, ground, downloads, serving, takes, self._emit, self._clock
        )
        return follower, downloads

    def _note_arrival(self) -> None:
        """A thread has downloaded what there was."""
        self._arrived.set()
        self._wake.set()

    # -- in the service --

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> dict[int, Running]:
        return dict(self._downloads.running)

    def record(self) -> dict[str, Any]:
        return {"name": self.mirror.name, "path": self.mirror.path, **asdict(self._follower.state)}

    def look_now(self) -> None:
        """An operator wants the bucket to be listed now."""
        self._looking.set()
        self._wake.set()

    def pause(self, paused: bool) -> None:
        ended = self._downloads.paused and not paused
        self._downloads.paused = paused
        if ended:
            self.look_now()

    def retire(self) -> None:
        """List and claim nothing more; what runs goes on. Returns at once."""
        self._stopping.set()
        self._wake.set()
        self._downloads.retire()

    def stop(self, timeout: float) -> bool:
        """Let downloads finish for ``timeout`` seconds, then put them back: they go on from where they are."""
        self.retire()
        ended = self._downloads.join(timeout)
        self._cancelled.set()
        if self._thread.is_alive():
            self._thread.join(_STOP)
        return (ended or self._downloads.join(_STOP)) and not self._thread.is_alive()

    def _follow(self) -> None:
        due = self._monotonic()
        while not self._stopping.is_set():
            self.heartbeat = self._monotonic()
            self._wake.clear()
            listing = self._looking.is_set() or self._monotonic() >= due
            self._looking.clear()
            try:
                if self._downloads.paused:
                    due = self._monotonic()
                elif listing:
                    due = self._monotonic() + self.mirror.interval
                    self._follower.look()
                elif self._arrived.is_set() and not self._downloads.busy:
                    self._arrived.clear()
                    self._follower.go_on()
                self._wake_downloads()
            except StoreError as error:
                self._emit(Event("store-failing", str(error), Level.ERROR, code=error.code))
                self._stopping.wait(_NEXT_LOOK)
            except Exception as error:  # a defect of ours: the mirror is looked at again, the service goes on
                text = str(defect(error))
                self._emit(Event("mirror-failing", text, Level.ERROR, watch=self.mirror.name, code="internal"))
            self._wake.wait(max(0.05, min(due - self._monotonic(), self._patience())))

    def _patience(self) -> float:
        return _NEXT_LOOK if self._follower.state.waiting or self._downloads.paused else self.mirror.interval

    def _wake_downloads(self) -> None:
        """Retries may be due, also where one listing follows the other."""
        if not self._follower.state.waiting:
            return
        due = self._store.next_retry()
        queued = self._store.counts().get(self.mirror.name, {}).get(State.QUEUED, (0, 0))[0]
        if queued or (due is not None and due <= self._clock()):
            self._downloads.wake(max(1, queued))

    # -- by a command --

    def once(self) -> None:
        """One pass, and as many listings as a version needs to prove that it stands still."""
        for number in range(3):
            self._follower.look()
            while self._downloads.busy:
                self._downloads.join(_NEXT_LOOK)
                if not self._downloads.busy:
                    self._follower.go_on()
            said = self._follower.state
            if said.state == "outage" or number == 2 or not any("next listing" in w for w in said.waiting.values()):
                return
            self._stopping.wait(self.mirror.interval)

    @property
    def follower(self) -> Follower:
        return self._follower


def _boot() -> str:
    """Of the running kernel (random(4)): what it holds in its cache is lost with it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip().partition("-")[0]
    except OSError:
        return f"{os.getpid():x}"
