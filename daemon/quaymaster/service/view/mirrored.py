"""One file that a mirror released: the object it came from, and everything that proves it (PRODUCT M1, I8)."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quaymaster.model import Compression, Job, shown
from quaymaster.service.view.locate import PATIENCE, below, normal
from quaymaster.service.view.records import Record, entry_record, job_record, path_record

if TYPE_CHECKING:
    from quaymaster.config import Config, Mirror
    from quaymaster.store import Downloaded, Entry, Store

_PIECE = 1 << 20
HERE = {
    "same": "as it was released (read again now: the same SHA-256)",
    "untouched": "as it was released (its inode, size and time; not read)",
    "unread": "another file than was released, by its inode, size or time; too long to be read now",
    "changed": "CHANGED since it was released: it has another SHA-256",
    "absent": "not there",
    "directory": "a directory",
    "unreadable": "cannot be read by this user",
}
"""How the file stands on the disk -> what is said of it."""


@dataclass(frozen=True, slots=True)
class MirrorPlace:
    mirror: Mirror
    path: bytes
    """Below the mirror."""

    @property
    def shown(self) -> str:
        return shown(os.path.join(os.fsencode(self.mirror.path), self.path))


@dataclass(frozen=True)
class Origin:
    """What is recorded of one file of a mirror."""

    place: MirrorPlace
    jobs: list[Job]
    """Of the objects that it can have come from, oldest first."""
    downloads: list[Entry]
    releases: list[Entry]
    """And what else was told of the units that it was in."""
    custody: list[Entry]
    """All of these, and failures and retries, in order."""
    here: str
    fault: str
    """What contradicts the proof; empty for nothing."""
    chain: bool
    """Whether the whole custody log was checked too."""


def mirror_place(config: Config, path: bytes, patience: float = PATIENCE) -> MirrorPlace | None:
    """Where a path is in a mirror; None when it is in none, or in a watch that lies below it. By its text first, as in
    :func:`locate`; links that lead over a filesystem which does not answer lead nowhere."""
    from quaymaster.config.disk import within  # not above: it would load pydantic for --help

    if not config.mirrors or not path or b"\0" in path:
        return None
    absolute = normal(os.path.join(os.getcwdb(), path))
    roots = {name: os.fsencode(mirror.path) for name, mirror in config.mirrors.items()}
    if any(below({name: os.fsencode(watch.path)}, absolute) for name, watch in config.watches.items()):
        return None

    def resolved() -> tuple[str, bytes] | None:
        real = {name: os.path.realpath(root) for name, root in roots.items()}
        return below(real, os.path.realpath(absolute))

    found = below(roots, absolute)
    if found is None:
        with suppress(TimeoutError):
            found = within(patience, resolved)
    return MirrorPlace(config.mirrors[found[0]], found[1]) if found else None


def origin(
    place: MirrorPlace, store: Store, *, quick: float = 0.0, clock: Callable[[], float] = time.monotonic
) -> Origin:
    """Reads the whole custody log, and the file. ``quick``: neither the log, nor a file that is untouched, and another
    one for so many seconds at most. Raises StoreError."""
    from quaymaster.store import Filter

    name, path = place.mirror.name, place.path
    objects = [path + form.suffix.encode() for form in Compression] if path else []
    jobs = [job for each in objects for job in store.jobs(Filter(watch=name, path=each, exact=True))]
    of_jobs = [entry for job in jobs for entry in store.history(job)]
    releases = _releases(store, name, path, objects)
    downloads = [entry for entry in of_jobs if entry.fields["kind"] == "downloaded"]
    custody = sorted([*of_jobs, *releases], key=lambda entry: entry.seq)
    now = next((d for d in store.downloaded(name).values() if d.target == path), None)
    here = _here(place, now, now.sha256 if now else _last(downloads), quick, clock)
    broken = None if quick else store.custody_broken_at()
    fault = _fault(path, now, downloads, releases) if broken is None else f"The custody log is broken at entry {broken}"
    return Origin(place, jobs, downloads, releases, custody, here, fault, not quick)


def _releases(store: Store, mirror: str, path: bytes, objects: list[bytes]) -> list[Entry]:
    """What was told of the units that had the file in them."""
    parts = path.split(b"/")
    units = [*objects, *(b"/".join(parts[:number]) for number in range(1, len(parts)))]
    told = store.told_of(mirror, units)
    mine = {e.fields["path_hex"] for e in told if shown(path) in (e.fields.get("files") or {})}
    return [entry for entry in told if entry.fields["path_hex"] in mine]


def _last(downloads: list[Entry]) -> str:
    return str(downloads[-1].fields["sha256"]) if downloads else ""


def _here(place: MirrorPlace, now: Downloaded | None, wanted: str, quick: float, clock: Callable[[], float]) -> str:
    from quaymaster.mirror.release import untouched

    digest, end = hashlib.sha256(), clock() + quick
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(os.path.join(os.fsencode(place.mirror.path), place.path), flags), "rb", buffering=0) as file:
            if quick and now and untouched(os.fstat(file.fileno()), now):
                return "untouched"
            while piece := file.read(_PIECE):
                digest.update(piece)
                if quick and clock() > end:
                    return "unread"
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    except IsADirectoryError:
        return "directory"
    except OSError:
        return "unreadable"
    return "same" if digest.hexdigest() == wanted else "changed"


def _fault(path: bytes, now: Downloaded | None, downloads: list[Entry], releases: list[Entry]) -> str:
    if now is None:
        return ""
    wanted = {"sha256": now.sha256, "size": now.size, "evidence": now.evidence or "size"}
    if not any(wanted.items() <= entry.fields.items() for entry in downloads if entry.fields.get("job") == now.job):
        return f"What is recorded of its download (job {now.job}) is not what the custody log says"
    said = [entry.fields for entry in releases if entry.fields["kind"] == "released"]
    if said and said[-1]["files"].get(shown(path)) not in (now.sha256, None):
        return "The custody log tells of a release with another SHA-256 than was downloaded"
    return ""


def download_record(entry: Entry) -> Record:
    said: dict[str, Any] = entry.fields
    names = ("job", "key", "etag", "version_id", "stored_size", "size", "sha256", "compression", "evidence")
    return {**{name: said.get(name, "") for name in names}, "downloaded_at": said["at"]}


def origin_record(found: Origin) -> Record:
    return {
        "mirror": found.place.mirror.name,
        "mirror_path": found.place.mirror.path,
        **path_record(found.place.path),
        "here": found.here,
        "downloads": [download_record(entry) for entry in found.downloads],
        "jobs": [job_record(job) for job in found.jobs],
        "custody": [entry_record(entry) for entry in found.custody],
        "fault": found.fault,
        "chain_checked": found.chain,
    }
