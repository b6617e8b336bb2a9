"""Keeps the head of the custody log where who edits the database does not reach (PRODUCT I8).

Beside the database every few seconds, which finds a lost or older database at the next start; and at each destination
at most once an hour, as an object of its own that is never overwritten:

    .quaymaster-custody/HOST/LOG/SEQ.json     {"at":…,"host":…,"log":…,"seq":…,"sha256":…}

LOG is the beginning of the first entry's digest: a rebuilt log has another one. ``quaymaster audit verify --elsewhere``
compares them with the log.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from quaymaster import keys
from quaymaster.destinations.base import OWN, Destination, Put
from quaymaster.errors import StoreError, TransferError
from quaymaster.model import Digests, Emit, Event, Level
from quaymaster.store import Head, Store

FOLDER = f"{OWN}custody"
_KEEP_EVERY = 5.0
"""Seconds between looks at the head."""
AT_DESTINATION_EVERY = 3600.0
"""Seconds between two heads at one destination."""
IN_JOURNAL_EVERY = 3600.0
"""Seconds between two heads in the journal; the service also tells it when it starts and stops."""
_AGAIN_AFTER = 300.0
"""Seconds until a destination that failed is tried again."""
_LIMIT = 4096
"""Bytes of a head that are read."""


@dataclass(frozen=True, slots=True)
class KeptHead:
    """A head as a destination holds it."""

    head: Head
    log: str
    destination: str
    key: str


def log_of(store: Store) -> str:
    """What tells this custody log from others, or an empty string while it is empty."""
    first = store.custody_entry(1)
    return first.sha256[:16] if first else ""


def folder(host: str) -> str:
    """Where the heads of a host's logs are, at any destination."""
    return f"{FOLDER}/{keys.escape(host.encode()).replace('/', '%2F')}/"


def told(store: Store) -> Event | None:
    """The head as an event for the journal; journal.heads() finds it again. None while the log is empty."""
    if (last := store.custody_entry()) is None:
        return None
    number = f"{last.seq:,} entr{'y' if last.seq == 1 else 'ies'}"
    return Event("custody-head", f"custody log {log_of(store)}: {number}, head {last.seq}:{last.sha256}", Level.NOTICE)


def put(store: Store, destination: Destination, host: str, at: float) -> KeptHead | None:
    """Leave the head at a destination and note that in the log; None while the log is empty. Raises TransferError."""
    last, log = store.custody_entry(), log_of(store)
    if last is None:
        return None
    said = {"at": round(at, 3), "host": host, "log": log, "seq": last.seq, "sha256": last.sha256}
    body = json.dumps(said, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    key = f"{folder(host)}{log}/{last.seq:012d}.json"
    upload = destination.begin(Put(key, len(body)))
    try:
        upload.write(body)
        upload.publish(Digests(len(body), hashlib.sha256(body).hexdigest()), {})
    finally:
        upload.abort()
    store.note("head-kept", {"destination": destination.name, "key": key, "head": f"{last.seq}:{last.sha256}"})
    return KeptHead(Head(last.seq, last.sha256), log, destination.name, key)


def held(destination: Destination, host: str) -> Iterator[KeptHead]:
    """Every head of this host's logs that the destination holds. Raises TransferError."""
    for stored in destination.listing(folder(host)):
        with destination.read(stored) as pieces:
            body = b"".join(pieces) if stored.size <= _LIMIT else b""
        if kept := _kept_head(body, destination.name, stored.key):
            yield kept


def _kept_head(body: bytes, destination: str, key: str) -> KeptHead | None:
    try:
        said = json.loads(body)
        head = Head.parsed(f"{said['seq']}:{said['sha256']}")
        return KeptHead(head, str(said["log"]), destination, key) if head else None
    except (ValueError, TypeError, KeyError):
        return None


class Heads:
    """The threads that do it while the service runs: a destination that hangs does not keep the file beside the
    database from being written."""

    def __init__(
        self,
        store: Store,
        destinations: Mapping[str, Destination],
        host: str,
        emit: Emit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._destinations, self._host = store, destinations, host
        self._emit, self._clock = emit, clock
        self._stopping = threading.Event()
        self._due: dict[str, float] = {}
        self._told_of, self._tell_at = 0, clock() + IN_JOURNAL_EVERY
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for name, acts in (("head-beside", [self.keep]), ("head-elsewhere", [self.clear, self.look])):
            self._threads.append(threading.Thread(target=self._repeat, args=acts, name=name, daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """Returns at once: a destination that hangs holds nobody up."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait until they have ended, for so many seconds at most."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def keep(self) -> None:
        """Note the head beside the database; once an hour in the journal too, when anything happened."""
        self._store.keep_head()
        newest = self._store.last_job_entry()
        if newest > self._told_of and self._clock() >= self._tell_at:
            self._told_of, self._tell_at = newest, self._clock() + IN_JOURNAL_EVERY
            if event := told(self._store):
                self._emit(event)

    def clear(self) -> None:
        """Remove what a process that was killed left of a head: no job tells of it."""
        for destination in self._destinations.values():
            with suppress(TransferError):  # told when a head is to be left there
                destination.sweep(now=self._clock(), older_than=0, prefix=folder(self._host))

    def _repeat(self, *acts: Callable[[], None]) -> None:
        """The last one again and again, those before it once."""
        *first, act = acts
        for once in first:
            once()
        while not self._stopping.wait(_KEEP_EVERY):
            with suppress(StoreError):  # told by those who have something to lose
                act()

    def look(self) -> None:
        """Leave the head at each destination that is due and does not have the newest entry of a job."""
        newest = self._store.last_job_entry()
        for name, destination in self._destinations.items():
            put_at, was = self._store.reports().get(f"head:{name}", (0.0, {}))
            due = max(put_at + AT_DESTINATION_EVERY, self._due.get(name, 0.0))
            if self._stopping.is_set() or self._clock() < due or newest <= int(was.get("seq", 0)):
                continue
            try:
                if kept := put(self._store, destination, self._host, self._clock()):
                    self._store.report(f"head:{name}", {"seq": kept.head.seq, "key": kept.key})
            except TransferError as error:
                self._due[name] = self._clock() + _AGAIN_AFTER
                text = f"the head of the custody log could not be left at {name}: {error}"
                self._emit(Event("head-not-kept", text, Level.WARNING, destination=name, code=error.code))
