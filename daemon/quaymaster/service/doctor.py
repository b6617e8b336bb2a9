"""``quaymaster doctor``: looks at everything that the service needs from this machine (PRODUCT S6).

It looks as the service's own user, because root may do everything and so finds nothing. Each :class:`Finding` that
is not fine says what to do. Whatever a filesystem or a server does, one check delays the others by some seconds only.
"""

from __future__ import annotations

import email.utils
import http.client
import os
import shutil
import ssl
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from quaymaster.config import Config, Mirror, S3Destination, Watch, problems_on_disk
from quaymaster.config.credentials import DIRECTORY as CREDENTIALS
from quaymaster.config.disk import within
from quaymaster.destinations.base import Destination
from quaymaster.errors import QuaymasterError, StoreError, StoreUnwritable
from quaymaster.intake.mounts import blind_below, filesystem_of
from quaymaster.model import shown
from quaymaster.service import anchor, build, sandbox
from quaymaster.service.view.units import overdue_text, units_of_watches
from quaymaster.store import Store

PATIENCE = 5.0
"""Seconds that a filesystem may take to answer."""
LARGEST_SKEW = 300.0
"""Seconds between this clock and a server's. S3 refuses requests at 15 minutes ("RequestTimeTooSkewed")."""
LEAST_FREE = 256 << 20
"""Bytes that should be free where the queue is."""
_INOTIFY = "/proc/sys/fs/inotify"
_MOST_ENTRIES = 5_000
"""Of each watch, so many files and directories are tried; one example of what keeps the service out is enough."""
_MOST_DIRECTORIES = 500_000
_TRYING = 12
"""Times the patience that one file has: a destination's probe is several requests, each tried again."""


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    """What was looked at, e.g. ``watch sequencer``."""
    state: str
    """``ok``, ``warning`` or ``failed``."""
    text: str
    fix: str = ""
    """What to do; several lines when a file has to be written."""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def split(problem: str) -> tuple[str, str]:
    """ "what is wrong; what to do" in two."""
    what, _, fix = problem.partition("; ")
    return what, fix


class Doctor:
    """The checks that the service's own user makes. ``inotify`` is the directory with the kernel's limits."""

    def __init__(
        self, config: Config, *, unit: sandbox.Unit | None = None, inotify: str = _INOTIFY, patience: float = PATIENCE
    ) -> None:
        self._config = config
        self._unit = unit
        self._inotify = inotify
        self._patience = patience

    def findings(self) -> Iterator[Finding]:
        """Every check, each as soon as it is done."""
        checks: list[Callable[[], Iterator[Finding]]] = [
            self._paths, self._watches, self._limits_of_inotify, self._space, self._state, self._clock, self._clocks,
            self._destinations, self._mirrors,
        ]  # fmt: skip
        for check in checks:
            yield from check()

    # -- paths and what is in them --

    def _paths(self) -> Iterator[Finding]:
        problems = problems_on_disk(self._config, os.environ, self._patience)
        for key in ("state_dir", "staging_dir"):
            path, named = getattr(self._config.service, key), f": [service] {key}: "
            if self._unit and path in self._unit.made and not os.path.lexists(path):
                problems = [problem for problem in problems if named not in problem]  # systemd makes it
        for problem in problems:
            yield Finding("paths", "failed", *split(problem))
        if not problems:
            yield Finding("paths", "ok", "every directory and file that the configuration names can be used")

    def _watches(self) -> Iterator[Finding]:
        for watch in self._config.watches.values():
            name = f"watch {watch.name}"
            try:
                yield within(self._patience, lambda watch=watch: self._ground(watch))  # type: ignore[misc]
                yield within(2 * self._patience, lambda watch=watch: self._contents(watch))  # type: ignore[misc]
            except TimeoutError:
                yield Finding(name, "failed", f"{watch.path} does not answer", "See whether its server runs (mount)")
            except OSError as error:
                yield Finding(name, "failed", f"{watch.path}: {error.strerror}", "Create it, or mount what it is on")

    def _ground(self, watch: Watch) -> Finding:
        real = os.path.realpath(watch.path, strict=True)
        filesystem, blind = filesystem_of(real), blind_below(real)
        seen = filesystem.inotify and not blind
        polled = watch.mode == "poll" or (watch.mode == "auto" and not seen)
        how = f"scanned every {watch.poll_interval:g} s" if polled else "watched by inotify"
        text = f"{watch.path} is on the {filesystem} ({'network' if filesystem.network else 'local'}); it is {how}"
        if watch.mode == "inotify" and not seen:
            why = (
                f"inotify does not see what others change on {filesystem.type}" if not blind else f"{blind[0]} is blind"
            )
            return Finding(f"watch {watch.name}", "failed", f"{text}, but {why}", 'Set mode = "auto" for this watch')
        return Finding(f"watch {watch.name}", "ok", text)

    def _contents(self, watch: Watch) -> Finding:
        kept_out: list[bytes] = []
        looked = 0
        for folder, names, files in os.walk(os.fsencode(watch.path), onerror=lambda e: kept_out.append(e.filename)):
            for path in (os.path.join(folder, name) for name in (*names, *files)):
                looked += 1
                readable = os.R_OK | (os.X_OK if os.path.isdir(path) else 0)
                if not os.path.islink(path) and not os.access(path, readable) and path not in kept_out:
                    kept_out.append(path)
            if looked >= _MOST_ENTRIES:
                break
        name = f"watch {watch.name}"
        if not kept_out:
            return Finding(name, "ok", f"all of {looked:,} files and directories looked at can be read")
        first, user = shown(kept_out[0]), _user()
        text = f"{len(kept_out):,} of {looked:,} files and directories cannot be read by {user}, the first is {first}"
        fix = f"setfacl -R -m u:{user}:rX -m d:u:{user}:rX {watch.path}   (or put {user} into the files' group)"
        return Finding(name, "failed", text, fix)

    # -- the kernel's limits --

    def _limits_of_inotify(self) -> Iterator[Finding]:
        watched = [w for w in self._config.watches.values() if self._by_inotify(w)]
        if not watched:
            return
        try:
            needed = within(4 * self._patience, lambda: sum(map(_directories, watched)))
            limits = {name: self._limit(name) for name in ("max_user_watches", "max_user_instances")}
        except (TimeoutError, OSError, ValueError):
            yield Finding(
                "inotify", "warning", "the limits or the number of directories could not be read", "Try again"
            )
            return
        number = f"{needed:,} director{'y' if needed == 1 else 'ies'}"
        text = f"{number} to watch; the kernel allows {limits['max_user_watches']:,} watches for a user"
        wanted = {"max_user_watches": (needed + needed // 5, max(65_536, 2 * needed))}
        wanted["max_user_instances"] = (2 * len(watched) + 2, max(128, 4 * len(watched)))
        short = [f"fs.inotify.{name} = {to}" for name, (least, to) in wanted.items() if limits[name] < least]
        if short:
            lines = "\n".join(["Write to /etc/sysctl.d/60-quaymaster.conf, then run: sysctl --system", *short])
            yield Finding("inotify", "failed", f"{text} and {limits['max_user_instances']:,} instances", lines)
        else:
            yield Finding("inotify", "ok", text)

    def _limit(self, name: str) -> int:
        with open(os.path.join(self._inotify, name)) as file:
            return int(file.read())

    def _by_inotify(self, watch: Watch) -> bool:
        return watch.mode == "inotify" or (watch.mode == "auto" and filesystem_of(watch.path).inotify)

    # -- what belongs to the service --

    def _space(self) -> Iterator[Finding]:
        service, floor = self._config.service, self._config.limits.staging_free
        for what, path, least in (("state", service.state_dir, LEAST_FREE), ("staging", service.staging_dir, floor)):
            try:
                found = within(self._patience, lambda path=path: os.statvfs(_existing(path)))  # type: ignore[misc]
            except (TimeoutError, OSError):
                continue  # the paths were looked at before
            free = found.f_bavail * found.f_frsize
            text = f"{path} has {free / (1 << 30):,.1f} GiB free"
            if free < least:
                fix = f"Make room on that disk, or set service.{what}_dir to a larger one"
                yield Finding(f"space for {what}", "failed", f"{text}; {least >> 20:,} MiB are needed", fix)
            elif found.f_files and found.f_favail < 1000:
                fix = "Remove files there: the filesystem has room for bytes but not for names"
                yield Finding(f"space for {what}", "failed", f"{text}, but only {found.f_favail} inodes", fix)
            else:
                yield Finding(f"space for {what}", "ok", text)

    def _state(self) -> Iterator[Finding]:
        directory = self._config.service.state_dir
        empty = os.access(directory, os.X_OK) and not os.path.exists(os.path.join(directory, "quaymaster.db"))
        if empty or not os.path.lexists(directory):
            yield Finding("queue", "ok", f"there is none in {directory} yet; the service makes it when it starts")
            return
        try:
            mode = stat.S_IMODE(os.stat(directory).st_mode)
            if mode & 0o077:
                text = f"{directory} is open to others (mode {mode:04o})"
                yield Finding("queue", "failed", text, f"chmod 0700 {directory}")
            store = Store(directory)
            try:
                yield self._integrity(store)
                yield from self._units(store)
            finally:
                store.close()
        except StoreUnwritable as error:
            yield Finding("queue", "failed", error.message, f"chown -R {_user()}: {directory}")
        except StoreError as error:
            yield Finding("queue", "failed", error.message, error.advice)
        except OSError as error:
            yield Finding("queue", "failed", f"{directory}: {error.strerror}", f"chown -R {_user()}: {directory}")

    def _integrity(self, store: Store) -> Finding:
        damage = store.damage()
        if damage:
            fix = "Stop the service, copy the file away, and restore a backup of it"
            return Finding("queue", "failed", f"{store.path} is damaged: {damage}", fix)
        broken = store.custody_broken_at()
        if broken is not None:
            fix = "Somebody changed it: compare with a backup. quaymaster audit verify tells more"
            return Finding("queue", "failed", f"the custody log does not hold at entry {broken}", fix)
        return Finding("queue", "ok", f"{store.path} is sound, and the custody log holds")

    def _units(self, store: Store) -> Iterator[Finding]:
        for name, units in units_of_watches(self._config, store, time.time()).items():
            if text := overdue_text(name, units):
                fix = (
                    f"quaymaster units --watch {name} says what each waits for; units complete publishes what there is"
                )
                yield Finding("units", "warning", text, fix)
            else:
                yield Finding("units", "ok", f"none of watch {name} is overdue")

    # -- time --

    def _clock(self) -> Iterator[Finding]:
        if not shutil.which("timedatectl"):
            return
        command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self._patience)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return
        if done.stdout.strip() == "yes":
            yield Finding("clock", "ok", "it is synchronized (timedatectl)")
        elif done.stdout.strip() == "no":
            yield Finding("clock", "warning", "it is not synchronized by NTP", "timedatectl set-ntp true")

    def _clocks(self) -> Iterator[Finding]:
        for name, destination in self._config.destinations.items():
            if not isinstance(destination, S3Destination):
                continue
            before = time.time()
            there = _time_of(destination, self._patience)
            if there is None:
                continue  # the destination's own check says what is wrong
            skew = (before + time.time()) / 2 - there
            text = f"it is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server of {name}"
            if abs(skew) > LARGEST_SKEW:
                yield Finding("clock", "failed", text, "Correct the clock that is wrong: timedatectl set-ntp true")
            else:
                yield Finding("clock", "ok", text)

    # -- destinations --

    def _destinations(self) -> Iterator[Finding]:
        for name in self._config.destinations:
            for where, destination in places(self._config, name):
                yield from self._tried(where, destination, name in self._config.only_read)

    def _mirrors(self) -> Iterator[Finding]:
        for mirror in self._config.mirrors.values():
            name = f"mirror {mirror.name}"
            try:
                yield within(self._patience, lambda mirror=mirror: self._mirrored(mirror))  # type: ignore[misc]
            except TimeoutError:
                yield Finding(name, "failed", f"{mirror.path} does not answer", "See whether its server runs (mount)")
            except (OSError, QuaymasterError) as error:
                advice = getattr(error, "advice", "") or "Create it, or mount what it is on"
                yield Finding(name, "failed", getattr(error, "message", "") or f"{mirror.path}: {error}", advice)

    def _mirrored(self, mirror: Mirror) -> Finding:
        """Whether what is released can be put there in one step."""
        name = f"mirror {mirror.name}"
        filesystem = filesystem_of(os.path.realpath(mirror.path, strict=True))
        status = os.statvfs(mirror.path)
        free = status.f_bavail * status.f_frsize
        text = f"{mirror.path} is on the {filesystem}, with {free >> 20:,} MiB free"
        if filesystem.network:
            fix = "Put it on a local filesystem: a version that changes is swapped by exchanging two names"
            return Finding(name, "warning", text, fix)
        if free < mirror.disk_free:
            return Finding(name, "failed", f"{text}; {mirror.disk_free >> 20:,} must stay free", "Make room there")
        return Finding(name, "ok", text)

    def _tried(self, where: str, destination: Destination, only_read: bool) -> Iterator[Finding]:
        def check() -> list[str] | QuaymasterError:
            try:
                return trial(destination, only_read)
            except QuaymasterError as error:
                return error
            finally:
                destination.close()

        try:
            found = within(_TRYING * self._patience, check)
        except TimeoutError:
            seconds = _TRYING * self._patience
            yield Finding(where, "failed", f"it does not answer within {seconds:g} s", "See whether its server runs")
            return
        if isinstance(found, QuaymasterError):
            yield Finding(where, "failed", found.message, found.advice)
            return
        for fact in found:
            yield Finding(where, "ok", fact)


def trial(destination: Destination, only_read: bool) -> list[str]:
    """Facts about a destination, after really trying it. What is only read from is not written to."""
    if not only_read:
        return destination.check()
    some = next(iter(destination.listing()), None)
    return ["it can be listed" if some else "it can be listed, and is empty"]


def places(config: Config, name: str) -> Iterator[tuple[str, Destination]]:
    """What stands behind one destination's name, each with what to call it: for one of type "beside" the directory of
    each of its watches."""
    shared = build.destination(config, name, lambda _: None, anchored=lambda _: anchor.anywhere)
    if shared is not None:
        yield f"destination {name}", shared
        return
    for watch in config.watches.values():
        if name in watch.destinations:
            yield (
                f"destination {name} of {watch.name}",
                build.next_to_sources(name, watch, lambda _: None, anchor.anywhere),
            )


def secrets(config: Config, unit: sandbox.Unit | None) -> Iterator[Finding]:
    """The modes of files with key pairs and tokens. For root: others do not see them."""
    for name in config.secrets:
        loaded = (unit.credentials.get(name, "") if unit else "") or os.path.join(CREDENTIALS, name)
        path = name if name.startswith("/") else loaded
        try:
            mode = stat.S_IMODE(os.stat(path).st_mode)
        except OSError as error:
            fix = "Put the key pair or token there, with mode 0600; quaymaster.toml(5) shows how"
            yield Finding(f"credential {name}", "failed", f"{path}: {error.strerror}", fix)
            continue
        if mode & 0o077:
            yield Finding(f"credential {name}", "failed", f"{path} has mode {mode:04o}", f"chmod 0600 {path}")
        else:
            yield Finding(f"credential {name}", "ok", f"{path} is read by its owner alone")


def sandboxed(config: Config, unit: sandbox.Unit | None) -> Iterator[Finding]:
    """Whether the unit lets the service do what its configuration wants."""
    if unit is None:
        return
    lines = sandbox.drop_in(config, unit)
    if lines:
        fix = "\n".join(
            [f"systemctl edit {unit.name}, write this, then: systemctl restart {unit.name}", "[Service]", *lines]
        )
        yield Finding("unit", "failed", f"{unit.name} does not let the service do all that it is to do", fix)
    else:
        yield Finding("unit", "ok", f"{unit.name} lets the service do what its configuration wants")


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _existing(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _directories(watch: Watch) -> int:
    count = 0
    for _ in os.walk(watch.path):
        count += 1
        if count >= _MOST_DIRECTORIES:
            break
    return count


def _time_of(destination: S3Destination, patience: float) -> float | None:
    """The server's clock, from the Date of any answer (RFC 9110, 6.6.1): seconds since the epoch, or None."""
    url = urlsplit(destination.endpoint_url or f"https://s3.{destination.region or 'us-east-1'}.amazonaws.com")
    connection: Any
    if url.scheme == "https":
        try:
            context = ssl.create_default_context(cafile=destination.ca_bundle)
        except (OSError, ssl.SSLError):
            return None
        connection = http.client.HTTPSConnection(url.hostname or "", url.port, timeout=patience, context=context)
    else:
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=patience)
    try:
        connection.request("HEAD", "/")
        told = connection.getresponse().getheader("Date")
        return email.utils.parsedate_to_datetime(told).timestamp() if told else None
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        return None
    finally:
        connection.close()
