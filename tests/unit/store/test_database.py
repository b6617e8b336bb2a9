"""Q1, Q6: what was committed survives; what cannot be used is said in one line and not touched."""

from __future__ import annotations

import gc
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from quaymaster.errors import StoreDamaged, StoreError, StoreFull, StoreTooNew, StoreUnwritable
from quaymaster.model import FileVersion, Identity
from quaymaster.store import Filter, Store
from quaymaster.store.db import FILE_NAME, Database, Transaction

_WRITER = """
import sys
from quaymaster.model import FileVersion, Identity
from quaymaster.store import Store
store = Store(sys.argv[1], create=True)
number = len(store.jobs(__import__("quaymaster.store").store.Filter()))
while True:
    number += 1
    store.enqueue([FileVersion("w", b"%d" % number, Identity(number, 1, 1))])
    print(number, flush=True)
"""


def test_what_was_acknowledged_before_sigkill_is_there_after_it(tmp_path: Path) -> None:
    randomness = random.Random(7)
    acknowledged = 0
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(randomness.randrange(1, 200)):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split("\n")
        acknowledged = max([acknowledged, *(int(line) for line in rest[:-1] if line)])
        writer.wait()
        writer.stdout.close()
        store = Store(str(tmp_path))
        numbers = [int(job.version.path) for job in store.jobs(Filter())]
        store.close()
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= acknowledged


def test_threads_that_come_and_go_leave_no_open_files(tmp_path: Path) -> None:
    """Of a file with two destinations two threads end with it: a day of such files must not end in EMFILE."""
    store = Store(str(tmp_path), create=True)
    store.custody_entry()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        thread = threading.Thread(target=store.custody_entry)
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) == before
    store.close()


def test_lists_of_every_length_do_not_fill_the_memory(tmp_path: Path) -> None:
    """A list makes a statement of its own for each length: kept by hundreds in each connection, they let memory grow
    for hours."""
    store = Store(str(tmp_path), create=True)
    before = sum(type(found).__name__ == "Statement" for found in gc.get_objects())
    for length in range(1, 200):
        assert store.jobs(Filter(ids=tuple(range(length)))) == []
    assert sum(type(found).__name__ == "Statement" for found in gc.get_objects()) - before <= 100
    store.close()


def test_a_reader_may_read_while_it_reads(tmp_path: Path) -> None:
    store = Store(str(tmp_path), create=True)
    store.note("started", {})
    store.note("stopped", {})
    assert [store.custody_entry(entry.seq) for entry in store.custody()] == list(store.custody())
    store.close()


def test_who_reads_the_custody_log_slowly_does_not_keep_the_write_ahead_log_from_its_end(tmp_path: Path) -> None:
    """``audit export`` into a pager that somebody left open."""
    store = Store(str(tmp_path), create=True)
    for number in range(2_500):
        store.note("noted", {"number": number})
    pager = store.custody()
    first = next(pager)
    store.note("later", {})
    with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as other:
        busy, _, _ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy
    rest = list(pager)
    assert [entry.seq for entry in (first, *rest)] == list(range(first.seq, first.seq + len(rest) + 1))
    assert rest[-1].fields["kind"] == "noted"
    assert len(rest) >= 2_499
    store.close()


def test_every_commit_is_flushed_to_the_disk(tmp_path: Path) -> None:
    store = Store(str(tmp_path), create=True)
    with store._db.read() as t:
        assert t.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert t.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    store.close()


def test_two_that_make_the_database_in_the_same_instant_both_get_it(tmp_path: Path) -> None:
    maker = """
import sys, time
from quaymaster.store import Store
for number, at in enumerate(float(text) for text in sys.argv[2:]):
    while time.time() < at: pass
    Store(f"{sys.argv[1]}/{number}", create=True).close()
"""
    begin = time.time() + 1.5
    instants = [str(begin + number * 0.1) for number in range(25)]
    both = [
        subprocess.Popen([sys.executable, "-c", maker, str(tmp_path), *instants], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said


def test_a_command_does_not_make_an_empty_queue_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreUnwritable, match="There is no queue in"):
        Store(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_a_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "quaymaster.db"
    file.write_bytes(b"my thesis, not a database" * 100)
    with pytest.raises(StoreDamaged):
        Store(str(tmp_path), create=True)
    assert file.read_bytes() == b"my thesis, not a database" * 100


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "quaymaster.db") as connection:
        connection.execute("PRAGMA user_version = 3")
        connection.execute("CREATE TABLE recipes (name)")
    connection.close()
    before = (tmp_path / "quaymaster.db").read_bytes()
    with pytest.raises(StoreDamaged, match="not a quaymaster database"):
        Store(str(tmp_path), create=True)
    assert (tmp_path / "quaymaster.db").read_bytes() == before


def test_a_newer_schema_is_named_and_not_touched(tmp_path: Path) -> None:
    Store(str(tmp_path), create=True).close()
    with sqlite3.connect(tmp_path / "quaymaster.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreTooNew, match="schema 99"):
        Store(str(tmp_path), create=True)


def test_a_corrupt_page_is_one_clear_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path), create=True)
    store.enqueue([FileVersion("w", b"%d" % i, Identity(i, 1, 1)) for i in range(2000)])
    store.close()
    file = tmp_path / "quaymaster.db"
    data = bytearray(file.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    file.write_bytes(data)
    with pytest.raises(StoreDamaged, match="is damaged"):
        Store(str(tmp_path)).jobs(Filter())


def test_the_database_is_private_to_its_user(tmp_path: Path) -> None:
    Store(str(tmp_path / "state"), create=True).close()
    assert os.stat(tmp_path / "state").st_mode & 0o077 == 0
    assert os.stat(tmp_path / "state/quaymaster.db").st_mode & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_said_loses_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        store = Store(str(tmp_path), create=True)
        number = 0

        def add_a_hundred() -> None:
            store.enqueue([FileVersion("w", b"%d" % i, Identity(i, 1, 1)) for i in range(number, number + 100)])

        def fill() -> None:
            nonlocal number
            while True:
                add_a_hundred()
                number += 100

        with pytest.raises(StoreFull, match="is full"):
            fill()
        subprocess.run(["mount", "-o", "remount,size=8m", str(tmp_path)], check=True)
        assert len(store.jobs(Filter())) == number
        store.enqueue([FileVersion("w", b"more", Identity(1, 1, 2))])
        assert len(store.jobs(Filter())) == number + 1
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


# -- closing --


def in_it(database: Database, how: str, entered: threading.Event, go_on: threading.Event, found: list[object]) -> None:
    """Use the database, and stay in it until told to go on."""

    def use(t: Transaction) -> object:
        entered.set()
        assert go_on.wait(60)
        return t.execute("SELECT 7").fetchone()[0]

    try:
        if how == "write":
            found.append(database.write(use))
        else:
            with database.read() as t:
                found.append(use(t))
    except BaseException as error:
        found.append(error)


@pytest.mark.parametrize("how", ["read", "write"])
def test_a_connection_is_not_closed_beneath_a_thread_that_uses_it(tmp_path: Path, how: str) -> None:
    """SQLite would crash the process there."""
    database = Database(str(tmp_path), create=True)
    entered, go_on, found = threading.Event(), threading.Event(), []
    using = threading.Thread(target=in_it, args=(database, how, entered, go_on, found))
    closing = threading.Thread(target=database.close)
    using.start()
    assert entered.wait(60)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive(), "it waits"
    go_on.set()
    for thread in (using, closing):
        thread.join(60)
    assert found == [7]
    in_it(database, how, entered, go_on, found)
    assert isinstance(found[1], StoreError)
    assert "is closed" in str(found[1])


def test_closing_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quaymaster.store.db._CLOSE_SECONDS", 0.05)
    database = Database(str(tmp_path), create=True)
    entered, go_on, found = threading.Event(), threading.Event(), []
    using = threading.Thread(target=in_it, args=(database, "read", entered, go_on, found))
    using.start()
    assert entered.wait(60)
    database.close()
    go_on.set()
    using.join(60)
    assert found == [7]
