"""The database file: opening, migrating, committing. SQLite in WAL mode with synchronous=FULL.

A commit that has returned survives a power cut (https://www.sqlite.org/wal.html#performance_considerations), so
every write here is durable when its call returns. To make that cheap, writers that arrive while another commits are
committed together (group commit).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from quaymaster.errors import StoreBusy, StoreDamaged, StoreError, StoreFull, StoreTooNew, StoreUnwritable

Transaction = sqlite3.Connection
T = TypeVar("T")

APPLICATION_ID = 0x51554159  # "QUAY"
FILE_NAME = "quaymaster.db"
_BATCH = 1000  # writers committed together; bounds how long one commit holds the lock
_BUSY_SECONDS = 20.0
_CLOSE_SECONDS = 5.0  # that closing waits for those who are reading or writing
_STATEMENTS = 64  # kept prepared by each connection, at about 10 KiB; lists of each length make one of their own
_READER_CACHE_KIB = 256  # of each connection: there may be many, and the kernel caches the file anyhow
DAMAGED = (
    "Nothing was changed. Stop the service and restore a backup, or run quaymaster rebuild: it keeps the damaged file, "
    "carries over what can be read and asks the destinations for the rest"
)


class _Entry:
    __slots__ = ("act", "done", "error", "result")

    def __init__(self, act: Callable[[Transaction], Any]) -> None:
        self.act = act
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


class _Reader:
    """A connection for reading. Who uses it has the lock: SQLite crashes when a connection is closed beneath
    a thread that is in it."""

    __slots__ = ("connection", "lock")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.lock = threading.Lock()


class Database:
    """One database file: a connection for writing, shared under group commit, and as many for reading as there were
    ever readers at once. None belongs to a thread: many threads live for one file alone."""

    def __init__(self, directory: str, *, create: bool = False) -> None:
        """Open ``directory``/quaymaster.db, migrating an older one; ``create`` makes a missing one (and the
        directory)."""
        self.path = os.path.join(directory, FILE_NAME)
        self._pending: list[_Entry] = []
        self._pending_lock = threading.Lock()
        self._writer_lock = threading.Lock()
        self._idle: list[_Reader] = []
        self._readers: list[_Reader] = []
        self._closed = False
        if create:
            _make_directory(directory)
        else:
            _require(self.path)
        with _mapped(self.path):
            self._writer = self._connect()
            try:
                _prepare(self._writer, self.path)
            except BaseException:
                self._writer.close()
                raise

    def write(self, act: Callable[[Transaction], T]) -> T:
        """Run ``act`` in a transaction and return its result once that is durable. ``act`` touches nothing but the
        database: it is rolled back alone when it raises."""
        entry = _Entry(act)
        with self._pending_lock:
            self._pending.append(entry)
        with self._writer_lock:
            if not entry.done:
                with self._pending_lock:
                    batch, self._pending = self._pending[:_BATCH], self._pending[_BATCH:]
                self._commit(batch)
                if not entry.done:  # more than a batch was waiting: this entry's turn is the next one
                    with self._pending_lock:
                        self._pending.remove(entry)
                    self._commit([entry])
        if entry.error is not None:
            raise entry.error
        return entry.result  # type: ignore[no-any-return]

    def _commit(self, batch: list[_Entry]) -> None:
        try:
            with _mapped(self.path):
                self._require_open()
                self._writer.execute("BEGIN IMMEDIATE")
                for entry in batch:
                    self._run(entry, alone=len(batch) == 1)
                self._writer.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):
                if not self._closed and self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
            for entry in batch:
                entry.error = entry.error or error
        for entry in batch:
            entry.done = True

    def _run(self, entry: _Entry, *, alone: bool) -> None:
        if alone:
            entry.result = entry.act(self._writer)
            return
        self._writer.execute("SAVEPOINT entry")
        try:
            entry.result = entry.act(self._writer)
        except sqlite3.OperationalError:
            raise  # full, read-only, I/O: nothing of this batch can be committed
        except Exception as error:
            entry.error = error
            self._writer.execute("ROLLBACK TO entry")
        self._writer.execute("RELEASE entry")

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view for reading; sees every commit made before it began."""
        with _mapped(self.path):
            reader = self._idle_reader() or self._new_reader()
            with reader.lock:
                self._require_open()
                connection = reader.connection
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    if connection.in_transaction:
                        connection.execute("COMMIT")
                    self._idle.append(reader)

    def _idle_reader(self) -> _Reader | None:
        """The one that was used last, whose cache is warm."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _new_reader(self) -> _Reader:
        self._require_open()
        connection = self._connect()
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
        reader = _Reader(connection)
        self._readers.append(reader)
        return reader

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError(f"The database {self.path} is closed", "The service or command that used it has ended")

    def damage(self) -> str:
        """The first thing that SQLite finds wrong with the file, or an empty string."""
        with self.read() as t:
            found = str(t.execute("PRAGMA quick_check(1)").fetchone()[0])
        return "" if found == "ok" else found

    def close(self) -> None:
        """From now on everybody else gets StoreError. Waits for those who are in it; a connection that is still used
        after some seconds stays open."""
        self._closed = True
        end = time.monotonic() + _CLOSE_SECONDS
        used = [(each.lock, each.connection) for each in self._readers]
        for lock, connection in [*used, (self._writer_lock, self._writer)]:
            if lock.acquire(timeout=max(0.0, end - time.monotonic())):
                with suppress(sqlite3.Error):
                    connection.close()
                lock.release()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_STATEMENTS,
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # Checkpoints cost two more fsyncs: every 16 MiB of log instead of every 4.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        return connection


def _require(path: str) -> None:
    folder = os.path.dirname(path)
    try:
        os.stat(path)
    except PermissionError:
        raise StoreUnwritable(
            f"You have no permission to enter {folder}", "Run the command as root or as the service's user"
        ) from None
    except OSError:
        raise StoreUnwritable(
            f"There is no queue in {folder}", "Start the service once, or name the right file with --config"
        ) from None


def _make_directory(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreUnwritable(
            f"The state directory {directory} cannot be made ({os.strerror(error.errno or 0)})",
            "Make it and give it to the service's user, or set service.state_dir",
        ) from None


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("BEGIN")  # all three as of one moment: another process may be making the file
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute("COMMIT")
    if application not in (0, APPLICATION_ID) or (application == 0 and (version or tables)):
        raise StoreDamaged(f"{path} is not a quaymaster database", "Move it away, or set service.state_dir")
    steps = _migrations()
    if version > len(steps):
        raise StoreTooNew(
            f"{path} was written by a newer quaymaster (schema {version}; this one knows {len(steps)})",
            "Install that version again, or name another service.state_dir; nothing was changed",
        )
    end = time.monotonic() + _BUSY_SECONDS
    while version != len(steps):
        # Changing to WAL answers "busy" at once, without waiting, when another process opens the new file as well.
        try:
            _migrate(connection, steps)
        except sqlite3.OperationalError as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= end:
                raise
            time.sleep(0.02)
        else:
            os.chmod(path, 0o600)
        version = connection.execute("PRAGMA user_version").fetchone()[0]


def _migrate(connection: sqlite3.Connection, steps: list[str]) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have migrated while this one waited for the lock.
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, step in enumerate(steps[version:], start=version + 1):
        with open(step, encoding="utf-8") as script:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("COMMIT")


def _migrations() -> list[str]:
    """Their files, in order. importlib.resources would know them too, but takes as long as the rest of this room."""
    folder = os.path.join(os.path.dirname(__file__), "migrations")
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".sql")]


def _statements(script: Iterable[str]) -> Iterator[str]:
    # executescript() would commit first, and a migration must be one transaction.
    statement = ""
    for line in script:
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def _mapped(path: str) -> Iterator[None]:
    """sqlite3's errors as ours, by result code (https://www.sqlite.org/rescode.html)."""
    try:
        yield
    except sqlite3.Error as error:
        raise _store_error(error, path) from error


def _store_error(error: sqlite3.Error, path: str) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    folder = os.path.dirname(path)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreDamaged(f"The database {path} is damaged ({error})", DAMAGED)
    if code == sqlite3.SQLITE_FULL:
        advice = "Make room on it: a service that runs then goes on by itself"
        return StoreFull(f"The disk that holds {folder} is full", advice)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return StoreUnwritable(
            f"The database {path} cannot be opened for writing ({error})",
            "Run the command as root or as the service's user, and check the directory's owner",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(f"The database {path} stayed locked for {_BUSY_SECONDS:.0f} s", "Try again")
    if code == sqlite3.SQLITE_IOERR:
        return StoreUnwritable(f"The disk that holds {path} has a fault ({error})", "Look at the kernel's log")
    return StoreError(f"The database {path} answered: {error}")
