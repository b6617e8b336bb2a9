"""The life of the service: build, start, watch over, stop. Read :meth:`Daemon.run` from top to bottom."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import quaymaster
from quaymaster.config import Config, Watch, load, problems_on_disk
from quaymaster.destinations.base import Destination
from quaymaster.destinations.directory import etag_of
from quaymaster.errors import Conflict, NameRefused, StoreError, StoreUnwritable
from quaymaster.intake.intake import Intake, WatchStatus
from quaymaster.intake.observe import ignore_lease_breaks
from quaymaster.keys import escape
from quaymaster.model import Emit, Event, FileVersion, Identity, Level
from quaymaster.pipeline.budget import Pool, Staging
from quaymaster.pipeline.transfer import Bounds
from quaymaster.pipeline.worker import Workers
from quaymaster.service import build, journal
from quaymaster.service.lock import Lock
from quaymaster.service.repeats import Repeats
from quaymaster.service.systemd import notify
from quaymaster.store import Store

_TICK = 1.0
"""Seconds between looks at what the parts say of themselves."""
_OF_ONE_FILE = frozenset({Conflict.code, NameRefused.code})
"""Failures that say nothing about the destination as a whole."""
_WORTH_TELLING = 10.0
"""Seconds of failing after which it is told that a destination works again: a full disk may fail large files only."""
_RESCAN_AFTER = 30.0
"""Seconds between rescans of a watch because its files changed under a job: what only touches a file makes no event."""


def run(config_path: str) -> int:
    """``quaymaster run``: load the configuration, serve until SIGTERM or SIGINT, return the exit status."""
    config = load(config_path, os.environ)
    # Libraries' own warnings repeat, without saying what to do, what we report ourselves.
    logging.basicConfig(level=logging.DEBUG if os.environ.get("QUAYMASTER_DEBUG") else logging.CRITICAL)
    return Daemon(config, journal.plain()).run()


class Daemon:
    """One configured service."""

    def __init__(self, config: Config, tell: Emit) -> None:
        self._config = config
        self._tell = Repeats(tell)
        self._stop = threading.Event()
        self._wake: Callable[[], None] = lambda: None  # the workers' own, once they exist
        self._changed: set[str] = set()
        self._rescanned: dict[str, float] = {}
        self._reported: dict[str, dict[str, Any]] = {}
        self._destinations: dict[str, dict[str, Any]] = {
            name: {"state": "unused", "error": "", "since": time.time()} for name in config.destinations
        }

    def run(self) -> int:
        config = self._config
        with _signals(self._stop.set), self._state() as store:
            self._warn_of_disk()
            recovered = store.recover()
            store.note("service-started", {"version": quaymaster.__version__, "config": config.digest})
            shared = self._shared_destinations(store)
            intakes = [self._intake(watch, store) for watch in config.watches.values()]
            workers = self._workers(store, shared, {intake.name: intake for intake in intakes})
            self._wake = workers.wake
            for intake in intakes:
                intake.start()
            workers.start()
            for intake in intakes:
                intake.first_scan_started.wait(5.0)
            self._ready(store, recovered)
            while not self._stop.wait(_TICK):
                self._report(store, workers, intakes)
                self._tell.tick()
                self._rescan_changed(intakes)
            ended = self._shut_down(store, workers, intakes)
            for destination in shared.values():
                destination.close()
        if not ended:
            # A thread hangs in a system call (a dead mount). All it would have done is in the queue.
            os._exit(0)
        return 0

    # -- start --

    @contextmanager
    def _state(self) -> Iterator[Store]:
        service = self._config.service
        for directory in (service.state_dir, service.staging_dir):
            try:
                os.makedirs(directory, mode=0o700, exist_ok=True)
            except OSError as error:
                raise StoreUnwritable(
                    f"The directory {directory} cannot be made ({error.strerror})",
                    "Make it and give it to the service's user, or set service.state_dir and service.staging_dir",
                ) from None
        lock = Lock(service.state_dir)
        try:
            store = Store(service.state_dir, create=True)
            try:
                self._sweep_staging(store)
                yield store
            finally:
                store.close()
        finally:
            lock.release()

    def _sweep_staging(self, store: Store) -> None:
        """Remove staged copies that no open job will use."""
        directory = self._config.service.staging_dir
        for name in os.listdir(directory):
            number, _, kind = name.partition(".")
            if kind == "source" and number.isdigit() and not store.is_open(int(number)):
                with suppress(OSError):
                    os.unlink(os.path.join(directory, name))

    def _warn_of_disk(self) -> None:
        for problem in problems_on_disk(self._config):
            self._emit(Event("config-warning", problem, Level.WARNING))

    def _shared_destinations(self, store: Store) -> dict[str, Destination]:
        said = store.reports()
        found = {}
        for name in self._config.destinations:
            pinned = said.get(f"pins:{name}", (0.0, {}))[1]
            destination = build.destination(
                self._config,
                name,
                self._emit,
                pins=pinned,
                on_pins=lambda pins, name=name: store.report(f"pins:{name}", pins),  # type: ignore[misc]
            )
            if destination is not None:
                found[name] = destination
        return found

    def _intake(self, watch: Watch, store: Store) -> Intake:
        beside = build.beside(self._config, watch)

        def made_here(versions: Sequence[tuple[bytes, Identity]]) -> list[bool]:
            """Which of these are compressed copies that we put beside their sources: not sources themselves."""
            objects = [(escape(path), etag_of(v.inode, v.mtime_ns)) for path, v in versions]
            found = [store.put_there_by_us(destination, objects) for destination in beside]
            return [any(ours) for ours in zip(*found, strict=True)] if found else [False] * len(versions)

        def known(name: str, versions: Sequence[tuple[bytes, Identity]]) -> list[bool]:
            had = store.known(name, versions)
            return [a or b for a, b in zip(had, made_here(versions), strict=True)]

        def enqueue(versions: list[FileVersion]) -> int:
            ours = made_here([(v.path, v.identity) for v in versions])
            new = store.enqueue([v for v, made in zip(versions, ours, strict=True) if not made])
            self._wake()
            return new

        return Intake(watch, known=known, enqueue=enqueue, emit=self._emit, report=lambda _: None)

    def _workers(self, store: Store, shared: Mapping[str, Destination], intakes: Mapping[str, Intake]) -> Workers:
        config = self._config
        limits = config.limits

        def present(name: str) -> Callable[[], bool]:
            return lambda: intakes[name].status().state != "outage"

        def bounds(waiting: Callable[[], int]) -> Bounds:
            return Bounds(
                memory=Pool(limits.memory),
                staging=Staging(config.service.staging_dir, ceiling=limits.staging, floor=limits.staging_free),
                compress_threads=limits.compress_threads,
                cpus=len(os.sched_getaffinity(0)),
                waiting=waiting,
            )

        lanes = {
            name: build.lane(config, watch, shared, self._emit, present(name)) for name, watch in config.watches.items()
        }
        return Workers(store, bounds, lanes, limits.files, self._emit)

    def _ready(self, store: Store, recovered: int) -> None:
        store.report(
            "service",
            {
                "pid": os.getpid(),
                "version": quaymaster.__version__,
                "started_at": time.time(),
                "state": "running",
                "config_digest": self._config.digest,
            },
        )
        watches = _many(len(self._config.watches), "directory", "directories")
        again = f", {_many(recovered, 'job continues', 'jobs continue')} after an interruption" if recovered else ""
        self._emit(
            Event(
                "started",
                f"quaymaster {quaymaster.__version__} watches {watches}{again}",
                Level.NOTICE,
            )
        )
        notify("READY=1", "STATUS=watching")

    # -- while it runs --

    def _emit(self, event: Event) -> None:
        """Every event passes here: to the operator, and into what ``status`` says of the destinations."""
        failing = event.kind == "delivery-failed" and event.code not in _OF_ONE_FILE
        if event.destination in self._destinations and (failing or event.kind == "delivered"):
            self._of_destination(event.destination, event.message if failing else "")
        if event.kind == "superseded":
            self._changed.add(event.watch)
        if event.level < Level.DEBUG:
            self._tell(event)

    def _of_destination(self, name: str, error: str) -> None:
        now, before = time.time(), self._destinations[name]
        state = "failing" if error else "ok"
        since = before["since"] if before["state"] == state else now
        self._destinations[name] = {"state": state, "error": error, "since": since}
        lasted = now - before["since"]
        if before["state"] == "failing" and not error and lasted >= _WORTH_TELLING:
            back = f"destination {name} works again after {lasted:.0f} s"
            self._tell(Event("destination-back", back, Level.NOTICE, destination=name))

    def _rescan_changed(self, intakes: list[Intake]) -> None:
        now = time.monotonic()
        for intake in intakes:
            if intake.name in self._changed and now - self._rescanned.get(intake.name, -_RESCAN_AFTER) >= _RESCAN_AFTER:
                self._changed.discard(intake.name)
                self._rescanned[intake.name] = now
                intake.rescan()

    def _report(self, store: Store, workers: Workers, intakes: list[Intake]) -> None:
        """Leave in the store what changed since the last time; an idle service writes nothing."""
        said: dict[str, dict[str, Any]] = {f"watch:{i.name}": _of_watch(i.status()) for i in intakes}
        said |= {f"destination:{name}": dict(body) for name, body in self._destinations.items()}
        said["progress"] = {
            "jobs": {
                str(number): {
                    "stage": r.stage.value,
                    "source_bytes": r.source_bytes,
                    "size": r.job.version.size,
                    "stored_bytes": r.stored_bytes,
                    "since": r.since,
                }
                for number, r in list(workers.running.items())
            }
        }
        with suppress(StoreError):  # a full disk is told by those who have something to lose
            for name, body in said.items():
                if self._reported.get(name) != body or (name == "progress" and body["jobs"]):
                    store.report(name, body)
                    self._reported[name] = body
        running = len(workers.running)
        notify(f"STATUS={running} running" if running else "STATUS=idle, watching")

    # -- stop --

    def _shut_down(self, store: Store, workers: Workers, intakes: list[Intake]) -> bool:
        """Finish or checkpoint what runs within ``stop_timeout``; True when every thread ended."""
        timeout = self._config.service.stop_timeout
        notify("STOPPING=1", "STATUS=finishing what runs", f"EXTEND_TIMEOUT_USEC={int((timeout + 15) * 1e6)}")
        running = _many(len(workers.running), "file")
        self._emit(Event("stopping", f"stopping; {running} in flight may take {timeout:.0f} s", Level.NOTICE))
        ended = [intake.stop(2.0) for intake in intakes]
        finished = workers.stop(timeout)
        open_jobs = sum(
            number for states in store.counts().values() for state, (number, _) in states.items() if not state.final
        )
        with suppress(StoreError):
            store.note("service-stopped", {"open_jobs": open_jobs})
            store.report("service", {"pid": 0, "state": "stopped", "at": time.time()})
        self._tell.tick(last=True)
        left = _many(open_jobs, "job stays", "jobs stay")
        self._emit(Event("stopped", f"stopped; {left} in the queue", Level.NOTICE))
        return finished and all(result is not False for result in ended)


def _many(number: int, one: str, more: str = "") -> str:
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _of_watch(status: WatchStatus) -> dict[str, Any]:
    body = asdict(status)
    body.pop("heartbeat", None)  # it changes all the time and means something in this process only
    return body


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM, SIGINT and a closed terminal stop the service in order; a second one ends it at once."""

    def on_signal(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop()

    ignore_lease_breaks()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    earlier = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
