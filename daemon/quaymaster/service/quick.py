"""The quick answer of a pass: nothing has changed (PRODUCT I2). Without it, most of the time of such a pass goes into
reading and checking a configuration that is the same as the last time.

What a pass looks at is noted, with what tells the configuration's files apart (inode, size, mtime), after each pass
that read them. A note that does not fit any more, or a file that is not known, means the whole way: this never decides
that something is to be done. Nothing here imports pydantic.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from quaymaster import __version__
from quaymaster.config.runs import Layout
from quaymaster.errors import QuaymasterError
from quaymaster.intake.footing import Memory
from quaymaster.intake.scan import Rules
from quaymaster.intake.settle import Policy
from quaymaster.intake.survey import Narrow, Survey
from quaymaster.service.station import Station
from quaymaster.service.summary import Summary
from quaymaster.source import Root

if TYPE_CHECKING:
    from quaymaster.config import Config, Watch
    from quaymaster.store import Store

_VARIABLES = ("QUAYMASTER_DISABLE_COMPRESSION", "STATE_DIRECTORY", "CACHE_DIRECTORY", "QUAYMASTER_CONFIG")
_FIELDS = (
    "name", "path", "include", "exclude", "ignored", "marker", "sentinel", "hang_after", "hard_links", "after",
    "settle", "settle_closed", "settle_per_gib", "destinations", "key", "unit", "unit_depth", "unit_pattern",
    "upload",
)  # fmt: skip
"""Of a watch: what decides which files are taken, whether it is where it was, and where its copies are."""


_NEVER_ASKED = Policy(0, 0, 0, False)
"""Whether a file is whole matters only for one that is not known."""


class Looked:
    """The fields of a table of the configuration that a pass looks at."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.__dict__.update(fields)


@dataclass(frozen=True, slots=True)
class Note:
    """What a pass over a configuration looks at."""

    key: str
    state_dir: str
    watches: dict[str, dict[str, Any]] = field(default_factory=dict)
    destinations: dict[str, dict[str, Any]] = field(default_factory=dict)
    host: str = ""
    files: int = 1
    parts: int = 1
    compression_disabled: bool = False

    @classmethod
    def of(cls, key: str, config: Config) -> Note:
        return cls(
            key,
            config.service.state_dir,
            {name: _noted(watch) for name, watch in config.watches.items()},
            {name: destination.model_dump(mode="json") for name, destination in config.destinations.items()},
            config.service.host,
            config.limits.files,
            config.limits.parts,
            config.compression_disabled,
        )

    def config(self) -> Config:
        """What a pass that only looks needs of the configuration, without the models that check it."""
        fields = {
            "service": Looked({"state_dir": self.state_dir, "host": self.host}),
            "limits": Looked({"files": self.files, "parts": self.parts}),
            "watches": {name: _looked_watch(fields) for name, fields in self.watches.items()},
            "destinations": {name: Looked(fields) for name, fields in self.destinations.items()},
            "compression_disabled": self.compression_disabled,
        }
        return cast("Config", Looked(fields))


def _noted(watch: Watch) -> dict[str, Any]:
    compress = watch.compress and {"format": watch.compress.format, "min_size": watch.compress.min_size}
    return {f: getattr(watch, f) for f in _FIELDS} | {"compress": compress}


def _looked_watch(fields: Mapping[str, Any]) -> Looked:
    compress = fields["compress"]
    layout = Layout.of(fields["unit_depth"], fields["unit_pattern"])
    unit_of = layout.unit_of if fields["unit"] else lambda path: None
    return Looked({**fields, "compress": compress and Looked(compress), "unit_of": unit_of})


def key_of(config_path: str, environ: Mapping[str, str]) -> str:
    """What tells this configuration from every other: an empty string when its files cannot be looked at."""
    folder = os.path.join(os.path.dirname(os.path.abspath(config_path)), "conf.d")
    parts: list[object] = [__version__, os.path.abspath(config_path), [environ.get(name) for name in _VARIABLES]]
    try:
        with suppress(FileNotFoundError):
            parts.append(_told(os.stat(folder)))
        files = [config_path]
        with suppress(FileNotFoundError):
            files += sorted(os.path.join(folder, name) for name in os.listdir(folder))
        parts += [(file, _told(os.stat(file))) for file in files]
    except OSError:
        return ""
    return hashlib.sha256(repr(parts).encode(errors="surrogateescape")).hexdigest()


def _told(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def key_of_pair(state_dir: str) -> str:
    """The same for a directory and a destination without a configuration."""
    return hashlib.sha256(f"{__version__}\0{state_dir}".encode(errors="surrogateescape")).hexdigest()


def place_of(key: str, environ: Mapping[str, str]) -> str:
    """Where the note of a configuration is kept: in the cache of whoever runs the command (XDG Base Directory)."""
    home = environ.get("XDG_CACHE_HOME") or (os.path.join(environ["HOME"], ".cache") if environ.get("HOME") else "")
    return os.path.join(home, "quaymaster", f"sync-{key[:16]}.json") if os.path.isabs(home) else ""


def read(place: str, key: str) -> Note | None:
    """None when there is no note that may be trusted."""
    try:
        with open(place, encoding="utf-8", errors="surrogateescape") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return None
            found = json.load(file)
        note = Note(**found)
        whole = all({*_FIELDS, "compress"} <= set(fields) for fields in note.watches.values())
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return note if key and note.key == key and whole else None


def write(place: str, note: Note) -> None:
    """Keep it for the next pass; that this fails does no harm."""
    if not place or not note.key:
        return
    new = f"{place}.{os.getpid()}"
    with suppress(OSError, ValueError):
        os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(asdict(note), file)
        os.replace(new, place)


def unchanged(note: Note, scope: Mapping[str, Narrow]) -> Summary | None:
    """What a pass comes to when nothing is to be done; None when that is not so, or cannot be told."""
    began = time.monotonic()
    if not set(scope) <= set(note.watches):
        return None
    import quaymaster.store  # noqa: F401  # before there are two who need it

    middles = {name: _middle(note.watches[name]["path"]) for name in scope}
    with _helper(note, scope, middles) as of_helper:
        mine = _known(note, scope, {name: (b"", middle) for name, middle in middles.items()})
        theirs = of_helper() if any(middles.values()) else 0
    if mine is None or theirs is None:
        return None
    summary = Summary(files=mine + theirs, skipped=mine + theirs)
    summary.seconds = summary.stages["scan"] = time.monotonic() - began
    return summary


def _middle(path: str) -> bytes:
    """The entry of a watch's top that divides it in two; b"" when it is not worth it, or cannot be told."""
    try:
        names = sorted(os.listdir(os.fsencode(path)))
    except OSError:
        return b""
    return names[len(names) // 2] if len(names) > 1 else b""


@contextmanager
def _helper(
    note: Note, scope: Mapping[str, Narrow], middles: Mapping[str, bytes]
) -> Iterator[Callable[[], int | None]]:
    """A second process that looks at the other half: listing a tree is the work of a processor. Nothing here has begun
    a thread or opened the store yet. Yields what gives its answer."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        found: int | None = None
        try:
            parts = {name: (middle, b"") for name, middle in middles.items() if middle}
            found = _known(note, {name: scope[name] for name in parts}, parts)
        finally:  # nothing of the parent's may be flushed or closed here
            os.write(writing, str(found).encode())
            os._exit(0)
    os.close(writing)

    def answer() -> int | None:
        said = os.read(reading, 32).decode()
        return int(said) if said.isdigit() else None

    try:
        yield answer
    finally:
        os.close(reading)
        os.waitpid(process, 0)


def _known(note: Note, scope: Mapping[str, Narrow], parts: Mapping[str, tuple[bytes, bytes]]) -> int | None:
    """How many files there are in this part; None when not all of them are known and done."""
    from quaymaster.store import Store

    number = 0
    try:
        with closing(Store(note.state_dir)) as store:
            reports = store.reports()
            for name, narrow in scope.items():
                watch = cast("Watch", Looked(note.watches[name]))
                stands_on = reports.get(f"mount:watch:{name}", (0.0, {}))[1]
                station = Station(watch, Memory(watch.name, watch.path, partial(dict, stands_on)))
                found = _known_of(store, watch, narrow, station, parts[name])
                if found is None:
                    return None
                number += found
    except (OSError, QuaymasterError):
        return None
    return number


def _known_of(store: Store, watch: Watch, narrow: Narrow, station: Station, part: tuple[bytes, bytes]) -> int | None:
    if store.open_of(watch.name):
        return None
    ground = station.ground()
    inodes = ground is None or ground.filesystem.keeps_inodes
    root, rules = Root(watch.path, hard_links=watch.hard_links), Rules(watch.include, watch.exclude, watch.ignored)
    marker = os.fsencode(watch.marker or "")
    survey = Survey(root, rules, _NEVER_ASKED, marker, narrow, 0, part)
    number = 0
    for rows in survey.chunks():
        number += len(rows)
        if store.unknown(watch.name, rows, inodes=inodes):
            return None
    station.scanned(survey.tally.entries)
    return None if survey.problems or survey.tally.held else number
