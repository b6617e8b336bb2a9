"""The parts that serve one configuration: destinations, intakes, workers. A reload replaces the whole crew.

:class:`Carriers` are those parts of it that carry files, without anything that notices them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from quaymaster.config import Config, Mirror, Watch
from quaymaster.destinations.base import Destination
from quaymaster.destinations.directory_upload import etag_of
from quaymaster.intake.attend import Known
from quaymaster.intake.intake import Intake
from quaymaster.keys import escape
from quaymaster.model import Emit, FileVersion, Identity, watch_of
from quaymaster.pipeline.worker import Lane, Running, Workers
from quaymaster.service import anchor, build, travel
from quaymaster.service.ceilings import Ceilings
from quaymaster.service.heads import Heads
from quaymaster.service.scrubber import Scrubber
from quaymaster.store import Store

if TYPE_CHECKING:
    from quaymaster.service.mirrors import MirrorService
    from quaymaster.service.units import Keeper

_INTAKE_STOP = 2.0
"""Seconds that a watch has to stop; one that takes longer hangs in its filesystem and is left behind."""

_HEADS_STOP = 1.0
"""Seconds that the head of the custody log has to be written down; a destination may hang."""


class Carriers:
    """The destinations of a configuration, and workers on a store."""

    def __init__(self, config: Config, store: Store, emit: Emit, ceilings: Ceilings | None = None) -> None:
        """``ceilings`` are those that an earlier crew had."""
        self.config = config
        self.ceilings = ceilings or Ceilings(config)
        self.ceilings.set(config)
        self._store = store
        self._emit = emit
        self.destinations = self._shared_destinations()

    def close(self) -> None:
        for destination in self.destinations.values():
            destination.close()

    def workers(self, standing: Mapping[str, travel.Attended]) -> Workers:
        """They carry the files of the watches in ``standing``, and of no others."""
        config = self.config

        def lane(watch: Watch) -> Lane:
            moved_to = self._anchor(anchor.of_move(watch.name), watch.name, watch.after_dir or "")
            return travel.lane(config, watch, self.destinations, self._emit, standing[watch.name], moved_to)

        lanes = {name: lane(config.watches[name]) for name in standing}
        for name in standing:
            own = travel.own(config, config.watches[name], self.destinations)
            lanes |= {each.route.watch.name: each for each in own}
        return Workers(self._store, self.ceilings.bounds, lanes, config.limits.files, self._emit)

    def _shared_destinations(self) -> dict[str, Destination]:
        said = self._store.reports()
        found = {}
        for name in self.config.destinations:
            destination = build.destination(
                self.config,
                name,
                self._emit,
                anchored=lambda path, name=name: self._anchor(anchor.of_destination(name), name, path),  # type: ignore[misc]
                pins=said.get(f"pins:{name}", (0.0, {}))[1],
                on_pins=lambda pins, name=name: self._store.report(f"pins:{name}", pins),  # type: ignore[misc]
            )
            if destination is not None:
                found[name] = destination
        return found

    def _anchor(self, kept_as: str, name: str, path: str) -> anchor.Anchor:
        return anchor.Remembered(path, anchor.memory(self._store, kept_as, name, path))


class Crew(Carriers):
    """Built, but doing nothing until :meth:`start`."""

    def __init__(self, config: Config, store: Store, emit: Emit, ceilings: Ceilings | None = None) -> None:
        super().__init__(config, store, emit, ceilings)
        self._keepers: list[Keeper] = []
        self.intakes = {watch.name: self._intake(watch) for watch in config.watches.values()}
        self._noticing: list[Intake] = []
        self._workers = self.workers(self.intakes)
        written = {name: each for name, each in self.destinations.items() if name not in config.only_read}
        self._heads = Heads(store, written, config.service.host, emit)
        self._scrubber = Scrubber(config, store, emit)
        self.mirrors = {name: self._mirror(mirror) for name, mirror in config.mirrors.items()}

    def _mirror(self, mirror: Mirror) -> MirrorService:
        from quaymaster.service.mirrors import MirrorService

        source = self.destinations[mirror.source]
        return MirrorService(mirror, self._store, source, self.ceilings.bounds, self._emit)

    @property
    def running(self) -> dict[int, Running]:
        """What each job in flight is doing."""
        found = dict(self._workers.running)
        for mirror in self.mirrors.values():
            found |= mirror.running
        return found

    def pause(self, watches: frozenset[str]) -> None:
        """Begin no job of these watches, and of all others again; what runs goes on."""
        lanes = frozenset(name for name in self._workers.lanes if watch_of(name) in watches)
        ended, self._workers.paused = self._workers.paused - lanes, lanes
        if ended:
            self._workers.wake()
        for name, mirror in self.mirrors.items():
            mirror.pause(name in watches)

    def rescan(self, name: str) -> None:
        """Look at a watch, or list the bucket of a mirror, now."""
        if name in self.intakes:
            self.intakes[name].rescan()
        elif name in self.mirrors:
            self.mirrors[name].look_now()

    def start(self) -> None:
        self._noticing = list(self.intakes.values())
        for intake in self._noticing:
            intake.start()
        self._workers.start()
        self._heads.start()
        self._scrubber.start()
        for keeper in self._keepers:
            keeper.start()
        self._store.declare(self.mirrors, self.intakes)
        for mirror in self.mirrors.values():
            mirror.start()

    def wait_for_first_scans(self, timeout: float) -> None:
        """Until each watch has begun its first scan, or ``timeout`` seconds: a dead mount holds nobody up."""
        end = time.monotonic() + timeout
        for intake in self.intakes.values():
            intake.first_scan_started.wait(max(0.0, end - time.monotonic()))

    def listen(self) -> None:
        """To be called about once a second: notices filesystems that have stopped answering."""
        for intake in self.intakes.values():
            intake.listen()

    def stop(self, timeout: float) -> bool:
        """Let what runs finish for ``timeout`` seconds, then put it back into the queue. True when every thread
        ended."""
        noticed = self._stop_intakes()
        for mirror in self.mirrors.values():
            mirror.retire()
        end = time.monotonic() + timeout
        finished = self._workers.stop(timeout)
        mirrored = [mirror.stop(max(0.1, end - time.monotonic())) for mirror in self.mirrors.values()]
        self._heads.join(_HEADS_STOP)
        self.close()
        return noticed and finished and all(mirrored)

    def retire(self) -> None:
        """Notice and claim nothing more, and end by itself when what runs is finished. Returns at once."""
        self._stop_intakes()
        self._workers.retire()
        for mirror in self.mirrors.values():
            mirror.retire()
        threading.Thread(target=self._close_when_done, name="retire", daemon=True).start()

    def _stop_intakes(self) -> bool:
        self._heads.stop()
        self._scrubber.stop()
        for keeper in self._keepers:
            keeper.stop()
        ended = [intake.stop(_INTAKE_STOP) for intake in self._noticing]
        self._noticing = []
        return all(ended)

    def _close_when_done(self) -> None:
        while self.running:
            time.sleep(1.0)
        self.close()

    # -- building --

    def _intake(self, watch: Watch) -> Intake:
        store, beside = self._store, build.beside(self.config, watch)

        def made_here(versions: Sequence[tuple[bytes, Identity]]) -> list[bool]:
            """Which of these are compressed copies that we put beside their sources: not sources themselves."""
            objects = [(escape(path), etag_of(v.inode, v.mtime_ns)) for path, v in versions]
            found = [store.put_there_by_us(destination, objects) for destination in beside]
            return [any(ours) for ours in zip(*found, strict=True)] if found else [False] * len(versions)

        def known(name: str, versions: Sequence[tuple[bytes, Identity]]) -> list[bool]:
            ground = self.intakes[name].ground()
            had = store.known(name, versions, inodes=ground is None or ground.filesystem.keeps_inodes)
            return [a or b for a, b in zip(had, made_here(versions), strict=True)]

        def enqueue(versions: list[FileVersion]) -> int:
            ours = made_here([(v.path, v.identity) for v in versions])
            others = [v for v, made in zip(versions, ours, strict=True) if not made]
            new = store.units.enqueue(others, lambda v: watch.unit_of(v.path)) if watch.unit else store.enqueue(others)
            self._workers.wake()
            return new

        memory = anchor.memory(store, anchor.of_watch(watch.name), watch.name, watch.path)
        held = self._held(watch)
        intake = Intake(
            watch,
            known=known,
            enqueue=enqueue,
            emit=self._emit,
            report=lambda _: None,
            memory=memory,
            held=held,
        )
        if watch.unit:
            self._keepers.append(self._keeper(watch, intake, known))
        return intake

    def _held(self, watch: Watch) -> Callable[[bytes], bool]:
        if not watch.unit:
            return lambda path: False
        from quaymaster.service.units import Held

        return Held(watch, self._store)

    def _keeper(self, watch: Watch, intake: Intake, known: Known) -> Keeper:
        from quaymaster.service.units import Keeper

        return Keeper(
            watch,
            self._store,
            intake,
            known,
            self.destinations,
            staging_dir=self.config.service.staging_dir,
            host=self.config.service.host,
            emit=self._emit,
            wake=lambda: self._workers.wake(),
        )
