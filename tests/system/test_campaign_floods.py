"""More than there is room for: more events than the kernel keeps, more directories than may be watched; and a wall
clock that is set by days while files are on their way (PRODUCT W2, W3, W4, Q2)."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from quaymaster.model import State
from quaymaster.store import FILE_NAME
from system.conftest import Home
from system.faulty_filesystem import FaultyFilesystem, reason_to_skip
from system.mishaps import is_calm, told
from system.service import Service, until

Serve = Callable[..., Service]
QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")


def queued(home: Home) -> int:
    """How many files the queue has had."""
    with closing(sqlite3.connect(f"file:{home.folder / 'state' / FILE_NAME}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(DISTINCT path) FROM jobs").fetchone()[0])


def queued_twice(home: Home) -> int:
    with closing(sqlite3.connect(f"file:{home.folder / 'state' / FILE_NAME}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) - count(DISTINCT path) FROM jobs").fetchone()[0])


# -- more events than the kernel keeps --


@contextmanager
def short_event_queue(events: int) -> Iterator[None]:
    """An inotify instance gets its limit when it is made (inotify(7)): so only one that is made meanwhile has it."""
    before = QUEUE.read_text()
    QUEUE.write_text(str(events))
    try:
        yield
    finally:
        QUEUE.write_text(before)


def flood(home: Home, serve: Serve, files: int) -> None:
    # The files are queued, not delivered: their way to the destination is what other tests are about.
    config = home.config(limits="files = 1")
    if os.access(QUEUE, os.W_OK):
        with short_event_queue(100):
            service = serve(config)
    else:
        service = serve(config)
    for number in range(files):
        name = b"d%d/%d" % (number % 50, number)
        if number < 50:
            os.mkdir(os.path.join(os.fsencode(home.landing), name.partition(b"/")[0]))
        with open(os.path.join(os.fsencode(home.landing), name), "wb") as file:
            file.write(b"%d" % number)
    landed = time.monotonic()
    until(lambda: queued(home) == files, 100 + files / 200, f"{files} files queued")
    seconds = time.monotonic() - landed
    assert queued_twice(home) == 0
    overflows = len(service.lines("than the kernel keeps events for"))
    assert overflows >= 1, "the flood was none"
    service.kill()
    is_calm(service.log)
    print(f"{files} files in a burst, {overflows} overflows told, all queued once, {seconds:.1f} s after the last one")


def test_an_overflow_of_events_loses_no_file(home: Home, serve: Serve) -> None:
    flood(home, serve, 20_000)


@pytest.mark.soak
@pytest.mark.timeout(2 * 3600)
def test_a_larger_overflow_of_events_loses_no_file(home: Home, serve: Serve) -> None:
    flood(home, serve, 100_000)


# -- more directories than may be watched --


def may_limit_inotify() -> bool:
    script = "echo 20 >/proc/sys/user/max_inotify_watches"
    return not subprocess.run(["unshare", "-U", "-r", "sh", "-c", script], capture_output=True).returncode


def exhaust(home: Home, directories: int) -> None:
    for number in range(directories):
        (home.landing / f"d{number}").mkdir()
    script = f'echo {directories // 5} >/proc/sys/user/max_inotify_watches; exec "$@"'
    wrapper = ["unshare", "-U", "-r", "sh", "-c", script, "sh"]
    service = Service(home.config('poll_interval = "0.5s"'), home.folder, wrapper=wrapper)
    chance = random.Random(50)
    try:
        service.start()
        told(service, "warning", f"so {home.landing} is polled every 0.5 s", "max_user_watches=")
        landed = {}
        for number in range(200):
            folder = f"d{chance.randrange(directories)}" if number % 4 else f"new-{number}/below"
            landed[f"{folder}/{number}".encode()] = content = b"%d" % number
            home.land(f"{folder}/{number}", content)
        service.until_done(len(landed), 100 + directories / 50)
        assert home.arrived() == landed
        service.stop()
        is_calm(service.log)
    finally:
        service.kill()
    print(f"{directories} directories, {directories // 5} watches allowed: {len(landed)} files all delivered")


@pytest.mark.skipif(not may_limit_inotify(), reason="no user namespace with limits of its own can be made")
def test_directories_beyond_the_limit_of_watches_are_polled(home: Home) -> None:
    exhaust(home, 5_000)


@pytest.mark.soak
@pytest.mark.timeout(2 * 3600)
@pytest.mark.skipif(not may_limit_inotify(), reason="no user namespace with limits of its own can be made")
def test_very_many_directories_beyond_the_limit_of_watches_are_polled(home: Home) -> None:
    exhaust(home, 50_000)


# -- a clock that jumps --


DAY = 86_400


class Jumping(Service):
    """The service under a wall clock that the test sets."""

    def set_clock(self, ahead: float) -> None:
        new = self.folder / "clock.new"
        new.write_text(str(ahead))
        new.replace(self.folder / "clock")

    def launch(self) -> None:
        self.set_clock(0)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*JUMPING, str(self.folder / "clock"), "run", "--config", str(self.config_file)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip


JUMPING = [sys.executable, "-m", "system.clock_jumps"]
TESTS = str(Path(__file__).parent.parent)


@pytest.mark.parametrize(("days", "mode"), [(2, "inotify"), (-2, "inotify"), (2, "poll")])
def test_a_clock_that_is_set_by_days_neither_ships_early_nor_stalls(home: Home, days: int, mode: str) -> None:
    """A file that is being written is not taken for an old one, and one that settles does so in its own time: also
    when only scans find it, and nothing but its time tells how old it is."""
    times = 'settle = "2s"\nsettle_closed = "2s"\nrescan_interval = "1s"\npoll_interval = "0.2s"\n'
    service = Jumping(home.config(f'{times}mode = "{mode}"'), home.folder)
    try:
        service.launch()
        until(lambda: service.lines("watches 1 directory"), 60)
        home.land("before", b"before the jump")
        until(lambda: service.states()[State.DONE] == 1, 60)
        half = home.landing / "half"
        with half.open("wb") as file:
            file.write(b"one half, ")
            file.flush()
            home.land("during", b"landed just before the jump")
            landed = time.monotonic()
            time.sleep(0.5)  # it has been noticed, and settles
            service.set_clock(days * DAY)
            home.land("with", b"landed with the jump: the service looks what is due")
            landed_with = time.monotonic()
            until(lambda: (home.archive / "during").exists(), 60)
            assert time.monotonic() - landed >= 1.9, "shipped before it had settled"
            until(lambda: (home.archive / "with").exists(), 60)
            assert time.monotonic() - landed_with >= 1.9, "shipped before it had settled"
            assert not (home.archive / "half").exists(), "shipped while it was being written"
            service.set_clock(0)
            home.land("after", b"landed with the jump back")
            until(lambda: (home.archive / "after").exists(), 60)
            assert not (home.archive / "half").exists(), "shipped while it was being written"
            file.write(b"the other half")
        until(lambda: service.states()[State.DONE] == 5, 60)
        arrived = home.arrived()
        assert arrived[b"half"] == b"one half, the other half"
        assert sorted(arrived) == [b"after", b"before", b"during", b"half", b"with"]
        service.stop()
        is_calm(service.log)
    finally:
        service.kill()
        print(service.log)
    print(f"the clock was set by {days} days and back while 5 files landed: all whole, none early, none stalled")


@pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
@pytest.mark.parametrize("days", [2, -2])
def test_a_clock_that_is_set_by_days_does_not_put_off_the_next_try(home: Home, days: int) -> None:
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        home.archive = filesystem.seen
        filesystem.fail(fsync="EIO")
        service = Jumping(home.config(), home.folder)
        try:
            service.launch()
            until(lambda: service.lines("watches 1 directory"), 60)
            home.land("a", b"content")
            until(lambda: service.lines("Next try in"), 60)
            service.set_clock(days * DAY)
            filesystem.fail()
            until(lambda: service.states()[State.DONE] == 1, 60)
            service.stop()
            is_calm(service.log)
        finally:
            service.kill()
            print(service.log)
