"""The life of the service: build, start, watch over, reload, stop. Read :meth:`Daemon.run` from top to bottom."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import quaymaster
from quaymaster.config import Config, load, problems_on_disk
from quaymaster.errors import ConfigError, Conflict, InternalError, NameRefused, StoreError, StoreUnwritable
from quaymaster.intake.intake import WatchStatus
from quaymaster.intake.observe import ignore_lease_breaks
from quaymaster.memory import Freed
from quaymaster.model import Emit, Event, Level, State
from quaymaster.pipeline.retry import decide
from quaymaster.pipeline.worker import Running
from quaymaster.service import heads, journal, standing
from quaymaster.service.api import Api
from quaymaster.service.ceilings import Ceilings, give_memory_back
from quaymaster.service.crew import Crew
from quaymaster.service.hooks import Hooks
from quaymaster.service.lock import Lock
from quaymaster.service.outages import Outages
from quaymaster.service.repeats import Repeats
from quaymaster.service.systemd import notify, taking_time, watchdog_period
from quaymaster.service.view.live import HEARD, Live
from quaymaster.service.watchdog import Stall, Watchdog
from quaymaster.store import Filter, Store

_TICK = 1.0
"""Seconds between looks at what the parts say of themselves."""
_OF_ONE_FILE = frozenset({Conflict.code, NameRefused.code})
"""Failures that say nothing about the destination as a whole."""
_WORTH_TELLING = 10.0
"""Seconds of failing after which it is told that a destination works again: a full disk may fail large files only."""
_LONGEST_START = 3600.0
"""Seconds for which a start may ask systemd for more time: a large database is migrated, much is recovered."""
_LEAVING = 15.0
"""Seconds that a stop may take beyond ``stop_timeout``: what runs is put back, the log is closed."""
_HOOKS_LEAVING = 7.0
"""Of these, seconds for hooks that are cut off; a command has five between SIGTERM and SIGKILL."""
_COUNT_EVERY = 5.0
"""Seconds between two counts of the queue for systemd's status line."""
_RESCAN_AFTER = 30.0
"""Seconds between rescans of a watch because its files changed under a job: what only touches a file makes no event."""


def run(config_path: str) -> int:
    """``quaymaster run``: load the configuration, serve until SIGTERM or SIGINT, return the exit status."""
    give_memory_back()
    config = load(config_path, os.environ)
    # Libraries' own warnings repeat, without saying what to do, what we report ourselves.
    logging.basicConfig(level=logging.DEBUG if os.environ.get("QUAYMASTER_DEBUG") else logging.CRITICAL)
    period = watchdog_period(os.environ, os.getpid())
    if period and not faulthandler.is_enabled():
        faulthandler.enable()  # systemd ends a hung service by SIGABRT: the journal then says where each thread was
    return Daemon(config, lambda: load(config_path, os.environ), journal.plain(), Watchdog(period)).run()


class Daemon:
    """The service on one state directory. ``reload`` reads the configuration again (SIGHUP)."""

    def __init__(
        self, config: Config, reload: Callable[[], Config], tell: Emit, watchdog: Watchdog | None = None
    ) -> None:
        self._config = config
        self._load = reload
        self._tell = Repeats(tell)
        self._watchdog = watchdog or Watchdog(0)
        self._debug = bool(os.environ.get("QUAYMASTER_DEBUG"))
        self._stalled: set[str] = set()
        self._freed = Freed(time.monotonic())
        self._rate = standing.Rate()
        self._live = Live()
        self._crew: Crew | None = None
        self._api: Api | None = None
        self._hooks: Hooks | None = None
        self._outages: Outages | None = None
        self._scans: Mapping[str, int] = {}
        self._open: dict[State, int] = {}
        self._counted_at = float("-inf")
        self._said = ""
        self._stopping = False
        self._reload_wanted = False
        self._woken = threading.Event()
        self._retired: list[Crew] = []
        self._changed: set[str] = set()
        self._rescanned: dict[str, float] = {}
        self._reported: dict[str, dict[str, Any]] = {}
        self._destinations: dict[str, dict[str, Any]] = {}

    def run(self) -> int:
        with self._signals(), self._state() as store:
            with taking_time(_LONGEST_START):
                self._warn_of_disk()
                recovered = store.recover()
                self._strike_hung(store)
                store.note("service-started", {"version": quaymaster.__version__, "config": self._config.digest})
                self._live.remember(store.reports().get("rates", (0.0, {}))[1])
                api = self._api = Api(self._config, store, self._emit)
                api.start()
                crew = self._new_crew(store)
                self._outages = Outages(store)
                hooks = self._hooks = Hooks(store, self._emit, lambda: heads.log_of(store))
                hooks.serve(self._config)
            self._ready(store, recovered)
            while not self._stopping:
                self._woken.wait(_TICK)
                if self._reload_wanted:
                    crew = self._reload(store, crew)
                self._obey(store, crew)
                self._report(store, crew)
                api.tend()
                self._give_sign(store, crew)
                self._tell.tick()
                self._freed.tick(time.monotonic())
                self._rescan_changed(crew)
            with taking_time(self._config.service.stop_timeout + _LEAVING):
                self._shut_down(store, crew)
                api.stop()
        return 0

    # -- start --

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop the service in order, a second one at once. SIGHUP reads the configuration again; on
        a terminal it says that the terminal was closed, and stops."""

        def on_stop(number: int, _frame: object) -> None:
            signal.signal(number, signal.SIG_DFL)
            self._stopping = True
            self._woken.set()

        def on_reload(_number: int, _frame: object) -> None:
            self._reload_wanted = True
            self._woken.set()

        ignore_lease_breaks()
        on_hangup = on_stop if os.isatty(0) or os.isatty(2) else on_reload
        handlers = {signal.SIGTERM: on_stop, signal.SIGINT: on_stop, signal.SIGHUP: on_hangup}
        earlier = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

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
            with taking_time(_LONGEST_START):
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

    def _strike_hung(self, store: Store) -> None:
        """Jobs that stood still when systemd restarted the service: it counts against them, so that a file which hangs
        every time is parked in the end and does not restart the service for ever."""
        hung = store.reports().get("hung", (0.0, {}))[1].get("jobs", {})
        for job in store.jobs(Filter(ids=tuple(map(int, hung)))) if hung else []:
            if not job.state.final:
                error = InternalError(f"It stood still ({hung[str(job.id)]}), and the service was restarted")
                to = decide(error, job, random.random)
                retry_at = time.time() + to.wait if to.state is State.WAITING else None
                store.fail(job, to.state, error.code, str(error), retry_at=retry_at, strike=to.strike)
        if hung:
            store.report("hung", {})

    def _warn_of_disk(self) -> None:
        for problem in problems_on_disk(self._config):
            self._emit(Event("config-warning", problem, Level.WARNING))

    def _new_crew(self, store: Store, ceilings: Ceilings | None = None) -> Crew:
        now = time.time()
        self._destinations = {
            name: self._destinations.get(name, {"state": "unused", "error": "", "since": now})
            for name in self._config.destinations
        }
        crew = self._crew = Crew(self._config, store, self._emit, ceilings)
        control = store.control()
        self._scans = control.scans  # each watch is scanned when it starts
        crew.pause(frozenset(control.paused))
        crew.start()
        crew.wait_for_first_scans(5.0)
        return crew

    def _ready(self, store: Store, recovered: int) -> None:
        self._report_service(store)
        watches = _served(self._config)
        again = f", {_many(recovered, 'job continues', 'jobs continue')} after an interruption" if recovered else ""
        self._emit(Event("started", f"quaymaster {quaymaster.__version__} watches {watches}{again}", Level.NOTICE))
        self._tell_custody_head(store)
        notify("READY=1", "STATUS=watching")
        self._watchdog.gave(time.monotonic())

    def _tell_custody_head(self, store: Store) -> None:
        """An anchor outside the database: what was told here must still be there later (quaymaster audit verify)."""
        if event := heads.told(store):
            self._emit(event)

    def _report_service(self, store: Store) -> None:
        said = {"pid": os.getpid(), "version": quaymaster.__version__, "started_at": time.time(), "state": "running"}
        store.report("service", said | {"config_digest": self._config.digest})

    # -- while it runs --

    def _reload(self, store: Store, crew: Crew) -> Crew:
        """Serve the configuration as it is now, if it is right; what runs goes on as it began."""
        self._reload_wanted, self._said = False, ""
        self._woken.clear()
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reading the configuration")
        try:
            new = self._load()
            self._refuse_moved_state(new)
        except ConfigError as error:
            for problem in error.problems:
                self._emit(Event("config-refused", problem, Level.ERROR))
            kept = "the new configuration is wrong: the earlier one stays in effect"
            self._emit(Event("config-kept", kept, Level.ERROR))
            notify("READY=1", f"STATUS={kept}")
            return crew
        self._config = new
        self._warn_of_disk()
        store.note("config-changed", {"config": new.digest})
        crew.retire()
        self._retired = [old for old in [*self._retired, crew] if old.running]
        crew = self._new_crew(store, crew.ceilings)
        if self._api:
            self._api.reload(new)
        if self._hooks:
            self._hooks.serve(new)
        self._report_service(store)
        watches = _served(new)
        self._emit(Event("config-reloaded", f"the configuration was read again; watches {watches}", Level.NOTICE))
        notify("READY=1", "STATUS=watching")
        return crew

    def _refuse_moved_state(self, new: Config) -> None:
        for key in ("state_dir", "staging_dir"):
            if getattr(new.service, key) != getattr(self._config.service, key):
                where = new.where("service", key)
                raise ConfigError([f"{where}: [service] {key}: cannot change while the service runs; restart it"])

    def _emit(self, event: Event) -> None:
        """Every event passes here: to the operator, and into what ``status`` says of the destinations."""
        self._freed.work()
        if event.kind == "delivered":
            self._rate.delivered(event)
        if event.kind in HEARD and self._crew:
            self._live.heard(event, self._running(self._crew))
        failing = event.kind == "delivery-failed" and event.code not in _OF_ONE_FILE
        if event.destination in self._destinations and (failing or event.kind == "delivered"):
            self._of_destination(event.destination, event.message if failing else "")
        if self._api:
            self._api.heard(event)
        if event.kind == "superseded":
            self._changed.add(event.watch)
        if event.level < Level.DEBUG or self._debug:
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

    def _rescan_changed(self, crew: Crew) -> None:
        now = time.monotonic()
        for name, intake in crew.intakes.items():
            if name in self._changed and now - self._rescanned.get(name, -_RESCAN_AFTER) >= _RESCAN_AFTER:
                self._changed.discard(name)
                self._rescanned[name] = now
                intake.rescan()

    def _obey(self, store: Store, crew: Crew) -> None:
        """Do what operators have asked for since the last look (``quaymaster pause``, ``rescan`` …)."""
        with suppress(StoreError):
            control = store.control()
            crew.pause(frozenset(control.paused))
            asked, self._scans = self._scans, control.scans
            for name, number in control.scans.items():
                if number != asked.get(name):
                    crew.rescan(name)

    def _report(self, store: Store, crew: Crew) -> None:
        """Leave in the store what changed since the last time; an idle service writes nothing."""
        self._retired = [old for old in self._retired if old.running]
        running = self._running(crew)
        crew.listen()
        said: dict[str, dict[str, Any]] = {f"watch:{n}": _of_watch(i.status()) for n, i in crew.intakes.items()}
        mirrors = {name: mirror.record() for name, mirror in crew.mirrors.items()}
        said |= {f"mirror:{name}": body for name, body in mirrors.items()}
        said |= {f"destination:{name}": dict(body) for name, body in self._destinations.items()}
        self._live.tick(running)
        said["progress"] = {"jobs": self._live.progress(running)}
        if rates := self._live.rates():
            said["rates"] = rates
        said["ceilings"] = crew.ceilings.record(running)
        with suppress(StoreError):  # a full disk is told by those who have something to lose
            moving = {"progress"} if said["progress"]["jobs"] else set()
            new = {name: body for name, body in said.items() if name in moving or self._reported.get(name) != body}
            if new:
                store.report_all(new)
                self._reported |= new
            if self._outages:
                watches = [intake.status() for intake in crew.intakes.values()]
                self._outages.look(watches, self._destinations, mirrors, time.time())
        self._tell_standing(store, crew, running)

    def _running(self, crew: Crew) -> dict[int, Running]:
        return {number: job for each in [*self._retired, crew] for number, job in each.running.items()}

    def _tell_standing(self, store: Store, crew: Crew, running: dict[int, Running]) -> None:
        now = time.monotonic()
        if now - self._counted_at >= _COUNT_EVERY:
            with suppress(StoreError):
                self._open, self._counted_at = store.open_jobs(), now
        watches = [intake.status() for intake in crew.intakes.values()]
        stalled = "standing still: " + ", ".join(sorted(self._stalled)) if self._stalled else ""
        said = standing.line(len(running), self._rate.per_second(running, now), self._open, watches, stalled)
        if said != self._said:
            self._said = said
            notify(f"STATUS={said}")

    def _give_sign(self, store: Store, crew: Crew) -> None:
        """Tell systemd that the service lives, unless something stands still that should move."""
        now = time.monotonic()
        if not self._watchdog.due(now):
            return
        stalls = [
            stall
            for each in [*self._retired, crew]
            for stall in self._watchdog.stalls(
                each.config, each.running, [i.status() for i in each.intakes.values()] if each is crew else [], now
            )
        ]
        if stalls or self._stalled:
            self._tell_stalls(store, stalls)
        if not stalls:
            notify("WATCHDOG=1")
            self._watchdog.gave(now)

    def _tell_stalls(self, store: Store, stalls: list[Stall]) -> None:
        found = {stall.what for stall in stalls}
        for stall in stalls:
            if stall.what not in self._stalled:
                message = (
                    f"{stall.what} has stood still for {stall.still:.0f} s; unless it moves, systemd restarts the"
                    f" service within {self._watchdog.period:.0f} s"
                )
                self._tell(Event("hang", message, Level.ERROR, job=stall.job))
        if found != self._stalled:
            self._stalled = found
            jobs = {str(stall.job): f"{stall.what}, for {stall.still:.0f} s" for stall in stalls if stall.job}
            with suppress(StoreError):
                store.report("hung", {"jobs": jobs})

    # -- stop --

    def _shut_down(self, store: Store, crew: Crew) -> None:
        """Finish or checkpoint what runs within ``stop_timeout``. A thread that hangs in a system call (a dead mount)
        is left behind: all it would have done is in the queue."""
        timeout = self._config.service.stop_timeout
        notify("STOPPING=1", "STATUS=finishing what runs")
        running = _many(sum(len(each.running) for each in [*self._retired, crew]), "file")
        self._emit(Event("stopping", f"stopping; {running} in flight may take {timeout:.0f} s", Level.NOTICE))
        deadline = time.monotonic() + timeout
        hooks = [self._hooks] if self._hooks else []
        for each_hook in hooks:
            each_hook.end()
        for each in [crew, *self._retired]:
            each.stop(max(0.1, deadline - time.monotonic()))
        for each_hook in hooks:
            each_hook.stop(_HOOKS_LEAVING)
        open_jobs = sum(
            number for states in store.counts().values() for state, (number, _) in states.items() if not state.final
        )
        with suppress(StoreError):
            store.note("service-stopped", {"open_jobs": open_jobs})
            store.report("service", {"pid": 0, "state": "stopped", "at": time.time()})
            self._tell_custody_head(store)
        self._tell.tick(last=True)
        left = _many(open_jobs, "job stays", "jobs stay")
        self._emit(Event("stopped", f"stopped; {left} in the queue", Level.NOTICE))


def _many(number: int, one: str, more: str = "") -> str:
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _served(config: Config) -> str:
    """What the service looks after."""
    watches = _many(len(config.watches), "directory", "directories")
    return f"{watches}, and mirrors {_many(len(config.mirrors), 'bucket')}" if config.mirrors else watches


def _of_watch(status: WatchStatus) -> dict[str, Any]:
    body = asdict(status)
    body.pop("heartbeat", None)  # it changes all the time and means something in this process only
    return body
