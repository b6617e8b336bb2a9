"""A running watch on real directories (PRODUCT W1 to W4, W6 to W8, X1)."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quaymaster.errors import StoreFull
from quaymaster.intake import attend, intake, observe
from quaymaster.model import FileVersion, Level
from quaymaster.source import identity_of

MODES = pytest.mark.parametrize("mode", ["inotify", "poll"])
ODD_NAMES = [b"\xff\xfe.bin", b"new\nline", b"n" * 255, b" ", b"Case", b"case", b"%41\\"]


@pytest.fixture
def memory() -> Iterator[Path]:
    path = Path(f"/dev/shm/quaymaster-{os.getpid()}-{time.monotonic_ns()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["disk", "tmpfs"])
def directory(request: pytest.FixtureRequest, tmp_path: Path, memory: Path) -> Path:
    return tmp_path if request.param == "disk" else memory


def version(watch: Path, name: str) -> FileVersion:
    return FileVersion("w", name.encode(), identity_of((watch / name).stat()))


# -- noticing ---------------------------------------------------------------------------------------------------


@MODES
def test_a_file_is_queued_once_with_its_identity(start: Callable, directory: Path, mode: str) -> None:
    watch = start(directory, mode=mode)
    watch.wait_watching()
    (directory / "a/b").mkdir(parents=True)
    (directory / "a/b/reads.fastq").write_bytes(b"ACGT")
    watch.wait_for(b"a/b/reads.fastq")
    assert set(watch.queued) == {version(directory, "a/b/reads.fastq")}
    assert watch.intake.status().mode == mode


@MODES
def test_files_that_landed_while_the_service_was_stopped_are_found(start: Callable, tmp_path: Path, mode: str) -> None:
    (tmp_path / "run").mkdir()
    for name in ("old", "run/older"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (1, 1))
    watch = start(tmp_path, mode=mode, settle=60.0)
    watch.wait_for(b"old", b"run/older")  # at once: their age and a lease prove them whole


@MODES
def test_what_is_known_is_not_queued_again(start: Callable, tmp_path: Path, mode: str) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(b"x")
    watch = start(tmp_path, run=False, mode=mode)
    watch.queued[version(tmp_path, "old")] = 0.0
    asked: list[int] = []
    watch.before_known = lambda: asked.append(1)
    watch.intake.start()
    watch.wait_for(b"new")
    assert watch.queued[version(tmp_path, "old")] == 0.0
    assert len(watch.queued) == 2
    if mode == "poll":
        # Later polls do not even ask: what was known stays known until a full rescan.
        scans = watch.intake.status().scans
        watch.wait(lambda: watch.intake.status().scans >= scans + 2, "two polls that remember")
        before = len(asked)
        watch.wait(lambda: watch.intake.status().scans >= scans + 4, "two more polls")
        assert len(asked) == before


def test_names_of_any_bytes_travel(start: Callable, tmp_path: Path) -> None:
    watch = start(tmp_path)
    watch.wait_watching()
    for name in ODD_NAMES:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"x")
    watch.wait_for(*ODD_NAMES)


def test_a_rename_into_place_is_taken_and_the_temporary_name_is_not(start: Callable, tmp_path: Path) -> None:
    watch = start(tmp_path)
    watch.wait_watching()
    for temporary in (".reads.fastq.a1B2c3", "reads.part", ".reads.swp", "dir.tmp/reads"):
        (tmp_path / temporary).parent.mkdir(exist_ok=True)
        (tmp_path / temporary).write_bytes(b"x")
    (tmp_path / ".reads.fastq.a1B2c3").rename(tmp_path / "reads.fastq")
    (tmp_path / "dir.tmp").rename(tmp_path / "dir")
    watch.wait_for(b"reads.fastq", b"dir/reads")
    assert watch.paths() == {b"reads.fastq", b"dir/reads"}


def test_include_exclude_and_ignore_hold_for_events_and_scans(start: Callable, tmp_path: Path) -> None:
    (tmp_path / "before.fastq").write_bytes(b"")
    (tmp_path / "before.bam").write_bytes(b"")
    watch = start(tmp_path, include=("*.fastq",), exclude=("bad/",), ignore=("*.filepart.fastq",))
    watch.wait_watching()
    (tmp_path / "bad").mkdir()
    for name in ("bad/x.fastq", "x.bam", "x.filepart.fastq", "x.fastq"):
        (tmp_path / name).write_bytes(b"")
    watch.wait_for(b"before.fastq", b"x.fastq")
    assert watch.paths() == {b"before.fastq", b"x.fastq"}


@MODES
def test_a_changed_file_is_a_new_version(start: Callable, tmp_path: Path, mode: str) -> None:
    watch = start(tmp_path, mode=mode)
    (tmp_path / "f").write_bytes(b"1")
    watch.wait_for(b"f")
    with (tmp_path / "f").open("ab") as file:
        file.write(b"2")
    watch.wait(lambda: version(tmp_path, "f") in watch.queued, "the longer version")
    (tmp_path / "f.tmp").write_bytes(b"3")
    (tmp_path / "f.tmp").rename(tmp_path / "f")
    watch.wait(lambda: version(tmp_path, "f") in watch.queued, "the file in its place")
    assert len(watch.queued) == 3


def test_a_burst_into_new_directories_misses_nothing(start: Callable, directory: Path) -> None:
    watch = start(directory)
    watch.wait_watching()

    def fill(worker: int) -> None:
        for folder in range(25):
            path = directory / f"run{worker}/{folder}/deep"
            path.mkdir(parents=True)
            for number in range(20):
                (path / str(number)).write_bytes(b"x")

    workers = [threading.Thread(target=fill, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done = time.monotonic()
    watch.wait(lambda: len(watch.paths()) == 2000, "2,000 files")
    assert time.monotonic() - done < 0.3 + 0.05 + 3.0, "within 3 s of the last close plus settling"
    assert len(watch.queued) == 2000, "each of them once"
    watch.wait(lambda: watch.intake.status().pending == 0, "nothing left over")


def test_a_directory_moved_in_is_scanned_and_watched(start: Callable, tmp_path: Path) -> None:
    watch = start()
    watch.wait_watching()
    (tmp_path / "away/deep").mkdir(parents=True)
    (tmp_path / "away/deep/f").write_bytes(b"x")
    (tmp_path / "away").rename(tmp_path / "in/here")
    watch.wait_for(b"here/deep/f")
    (tmp_path / "in/here").rename(tmp_path / "in/there")
    (tmp_path / "in/there/deep/g").write_bytes(b"x")
    watch.wait_for(b"there/deep/f", b"there/deep/g")
    assert b"here/deep/g" not in watch.paths()


def test_an_overflow_of_the_kernels_queue_loses_no_file(start: Callable, memory: Path) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events") as file:
        limit = int(file.read())
    if limit > 50_000:
        pytest.skip(f"max_queued_events is {limit}: too many files would be needed")
    watch = start(memory)
    watch.wait_watching()
    held, go = threading.Event(), threading.Event()
    watch.before_enqueue = lambda: held.set() or go.wait(60)  # the watch's thread is held up, and the queue runs over
    (memory / "first").write_bytes(b"")
    assert held.wait(10)
    count = limit // 2 + 500
    for number in range(count):
        os.close(os.open(memory / f"{number}", os.O_CREAT | os.O_WRONLY))
    (memory / "late").mkdir()
    for number in range(50):
        (memory / f"late/{number}").write_bytes(b"")
    go.set()
    watch.wait_event("watch-overflow")
    watch.wait(lambda: len(watch.paths()) == count + 51, "every file", timeout=60)
    (memory / "late/after").write_bytes(b"")
    watch.wait_for(b"late/after")


def test_a_rescan_finds_what_no_event_told(start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = start()
    watch.wait_watching()
    monkeypatch.setattr("quaymaster.intake.watch.Inotify.take", lambda *_: None)  # deaf from now on
    (tmp_path / "in/f").write_bytes(b"x")
    watch.intake.rescan()
    watch.wait_for(b"f")


def test_a_full_scan_runs_every_rescan_interval(start: Callable) -> None:
    watch = start(rescan_interval=0.1)
    watch.wait(lambda: watch.intake.status().scans >= 3, "three scans")


# -- settling ---------------------------------------------------------------------------------------------------


@MODES
def test_a_slow_writer_that_stays_open_is_waited_for(start: Callable, tmp_path: Path, mode: str) -> None:
    watch = start(tmp_path, mode=mode, settle=0.2)
    watch.wait_watching()
    with (tmp_path / "slow").open("wb", buffering=0) as file:
        file.write(b"1")
        (tmp_path / "other").write_bytes(b"x")
        watch.wait_for(b"other")
        scans = watch.intake.status().heartbeat
        watch.wait(lambda: watch.intake.status().heartbeat > scans + 1.0, "five settle times")
        assert b"slow" not in watch.paths(), "size and mtime stood still, but a program has it open"
        file.write(b"2")
        end = time.monotonic()
    watch.wait_for(b"slow")
    assert watch.queued_at(b"slow") > end
    assert set(watch.queued) == {version(tmp_path, "slow"), version(tmp_path, "other")}


def test_a_file_that_grows_is_taken_only_when_it_stops(
    start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "leases_are_safe", lambda: False)  # as on a network filesystem: nothing but looks
    watch = start(tmp_path, mode="poll", settle=0.5, poll_interval=0.05)
    watch.wait_watching()
    with (tmp_path / "grows").open("wb", buffering=0) as file:
        for _ in range(15):
            file.write(b"x")
            heartbeat = watch.intake.status().heartbeat
            watch.wait(lambda beat=heartbeat: watch.intake.status().heartbeat > beat + 0.1, "a tenth of a second")
        assert watch.queued == {}
        stopped = time.monotonic()
        watch.wait_for(b"grows")  # still open, but quiet for long enough
        assert watch.queued_at(b"grows") >= stopped + 0.4
    assert len(watch.queued) == 1


def test_a_close_shortens_the_wait_and_its_absence_does_not_hang(start: Callable, tmp_path: Path) -> None:
    watch = start(tmp_path, settle=2.0, settle_closed=0.05)
    watch.wait_watching()
    began = time.monotonic()
    (tmp_path / "closed").write_bytes(b"x")
    os.link(tmp_path / "closed", tmp_path / "linked")  # no close event for this one
    (tmp_path / "closed").unlink()
    (tmp_path / "closed").write_bytes(b"x")
    watch.wait_for(b"closed")
    assert watch.queued_at(b"closed") - began < 1.5
    watch.wait_for(b"linked")
    assert watch.queued_at(b"linked") - began >= 2.0


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_wall_clock_that_jumps_ships_nothing_early_and_hangs_nothing(
    start: Callable, tmp_path: Path, jump: float
) -> None:
    jumped = [0.0]
    watch = start(tmp_path, mode="poll", settle=1.0, clocks={"wall": lambda: time.time() + jumped[0]})
    watch.wait_watching()
    jumped[0] = jump
    began = time.monotonic()
    (tmp_path / "f").write_bytes(b"x")
    watch.wait_for(b"f")
    assert watch.queued_at(b"f") - began >= 1.0


def test_a_lease_is_not_asked_for_while_it_could_kill_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    assert observe.leases_are_safe()
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)
    assert not observe.leases_are_safe()


# -- markers ----------------------------------------------------------------------------------------------------


@MODES
def test_a_marker_releases_everything_below_it(start: Callable, tmp_path: Path, mode: str) -> None:
    (tmp_path / "run1/lane1").mkdir(parents=True)
    (tmp_path / "run1/lane1/before").write_bytes(b"x")
    (tmp_path / "run0").mkdir()
    (tmp_path / "run0/CopyComplete.txt").write_bytes(b"")
    watch = start(tmp_path, mode=mode, marker="CopyComplete.txt", settle=0.1)
    watch.wait_watching()
    assert watch.intake.status().held == 1
    (tmp_path / "run1/lane1/during").write_bytes(b"x")
    (tmp_path / "run2").mkdir()
    (tmp_path / "run2/x").write_bytes(b"x")
    (tmp_path / "run0/last").write_bytes(b"x")
    watch.wait_for(b"run0/last", b"run0/CopyComplete.txt")  # so those before it have settled too
    scans = watch.intake.status().scans
    watch.intake.rescan()
    watch.wait(lambda: watch.intake.status().scans > scans and watch.intake.status().held == 3, "all held")
    assert watch.paths() == {b"run0/CopyComplete.txt", b"run0/last"}
    (tmp_path / "run1/CopyComplete.txt").write_bytes(b"")
    watch.wait_for(b"run1/lane1/before", b"run1/lane1/during", b"run1/CopyComplete.txt")
    (tmp_path / "run1/lane1/after").write_bytes(b"x")
    watch.wait_for(b"run1/lane1/after")
    assert b"run2/x" not in watch.paths()


@MODES
def test_a_marker_that_the_rules_leave_out_releases_all_the_same(start: Callable, tmp_path: Path, mode: str) -> None:
    (tmp_path / "in/run").mkdir(parents=True)
    (tmp_path / "in/run/x.fastq").write_bytes(b"x")
    watch = start(mode=mode, include=("*.fastq",), marker="Done.txt")
    watch.wait(lambda: watch.intake.status().held == 1, "held")
    (tmp_path / "in/run/Done.txt").write_bytes(b"")
    watch.wait_for(b"run/x.fastq")
    assert watch.paths() == {b"run/x.fastq"}


# -- what is refused, or cannot be read ---------------------------------------------------------------------------


def test_links_are_refused_by_event_and_by_scan(start: Callable, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"s")
    root = tmp_path / "in"
    root.mkdir()
    (root / "early").symlink_to(outside / "secret")
    watch = start()
    watch.wait_watching()
    assert watch.intake.status().skipped_links == 1
    (root / "late").symlink_to(outside / "secret")
    (root / "tree").symlink_to(outside)
    os.mkfifo(root / "fifo")
    (root / "f").write_bytes(b"x")
    watch.wait_for(b"f")
    watch.wait(lambda: watch.intake.status().refused == 3, "two links and a fifo refused")
    assert {event.path for event in watch.kinds("source-refused")} == {b"late", b"tree", b"fifo"}
    scans = watch.intake.status().scans
    watch.intake.rescan()
    watch.wait(lambda: watch.intake.status().scans > scans, "rescan")
    assert watch.paths() == {b"f"}
    assert len(watch.kinds("source-refused")) == 3, "told once"


def test_a_directory_swapped_for_a_link_while_its_files_settle_is_not_followed(start: Callable, tmp_path: Path) -> None:
    root, outside = tmp_path / "in", tmp_path / "outside"
    (root / "d").mkdir(parents=True)
    outside.mkdir()
    (outside / "f").write_bytes(b"secret")
    watch = start(settle=0.5, settle_closed=0.5)
    watch.wait_watching()
    (root / "d/f").write_bytes(b"x")
    watch.wait(lambda: watch.intake.status().pending == 1, "settling")
    (root / "d").rename(tmp_path / "moved")
    (root / "d").symlink_to(outside)
    watch.wait(lambda: watch.intake.status().pending == 0, "given up")
    (root / "g").write_bytes(b"x")
    watch.wait_for(b"g")
    assert watch.paths() == {b"g"}


def test_a_hard_link_that_others_may_have_made_is_told_once_and_taken_when_it_is_plain_again(
    start: Callable, tmp_path: Path
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    root.chmod(0o777)
    (tmp_path / "theirs").write_bytes(b"x")
    watch = start()
    watch.wait_watching()
    os.link(tmp_path / "theirs", root / "f")
    event = watch.wait_event("source-refused")
    assert (event.path, event.level) == (b"f", Level.WARNING)
    assert "hard_links = true" in event.message
    watch.wait(lambda: watch.intake.status().refused == 1, "counted")
    (tmp_path / "theirs").unlink()
    watch.intake.rescan()
    watch.wait_for(b"f")
    watch.wait(lambda: watch.intake.status().refused == 0, "no longer counted")
    assert len(watch.kinds("source-refused")) == 1


def test_hard_links_are_taken_when_the_config_allows_them(start: Callable, tmp_path: Path) -> None:
    watch = start(hard_links=True)
    (tmp_path / "in").chmod(0o777)
    (tmp_path / "theirs").write_bytes(b"x")
    os.link(tmp_path / "theirs", tmp_path / "in/f")
    watch.wait_for(b"f")


def test_unreadable_files_are_told_without_flooding_and_tried_again(
    start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = [True]
    real = observe.Looks.look

    def look(self: observe.Looks, path: bytes) -> object:
        if denied[0] and path.startswith(b"denied"):
            raise PermissionError(13, "Permission denied")
        return real(self, path)

    monkeypatch.setattr(observe.Looks, "look", look)
    watch = start()
    watch.wait_watching()
    for number in range(100):
        (tmp_path / f"in/denied{number}").write_bytes(b"")
    watch.wait(lambda: watch.intake.status().refused == 100, "all set aside")
    watch.intake.rescan()
    watch.wait(lambda: watch.intake.status().scans >= 2 and watch.intake.status().pending == 0, "tried again")
    told = watch.kinds("source-unreadable")
    assert len(told) == 20
    assert "read permission" in told[0].message
    watch.intake.rescan()
    watch.wait(lambda: any("80 more files" in event.message for event in watch.events), "the rest in one line")
    denied[0] = False
    watch.intake.rescan()
    watch.wait(lambda: len(watch.paths()) == 100, "taken once they can be read")


def test_a_passing_read_error_is_tried_again(start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [OSError(116, "Stale file handle"), OSError(5, "Input/output error")]
    real = observe.Looks.look

    def look(self: observe.Looks, path: bytes) -> object:
        if errors:
            raise errors.pop()
        return real(self, path)

    monkeypatch.setattr(observe.Looks, "look", look)
    watch = start()
    (tmp_path / "in/f").write_bytes(b"")
    watch.wait_for(b"f")
    assert not errors


# -- the store in trouble -----------------------------------------------------------------------------------------


@MODES
def test_a_store_in_trouble_loses_nothing_and_is_told_once(start: Callable, tmp_path: Path, mode: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/before").write_bytes(b"x")
    failures = [0]
    healthy = threading.Event()

    def fail() -> None:
        if not healthy.is_set():
            failures[0] += 1
            raise StoreFull("The disk is full", "Free some space")

    watch = start(run=False, mode=mode)
    watch.before_enqueue = watch.before_known = fail
    watch.intake.start()
    (tmp_path / "in/after").write_bytes(b"x")
    watch.wait(lambda: failures[0] >= 2, "tried again")
    assert "The disk is full. Free some space" in watch.wait_event("store-trouble").message
    assert watch.queued == {}
    healthy.set()
    watch.wait_for(b"before", b"after")
    watch.wait_event("store-back")
    assert len(watch.kinds("store-trouble")) == 1
    assert failures[0] < 10, "with pauses in between"


# -- outages ------------------------------------------------------------------------------------------------------


@MODES
def test_a_root_that_is_deleted_and_made_again_is_watched_again(start: Callable, tmp_path: Path, mode: str) -> None:
    root = tmp_path / "in"
    watch = start(mode=mode)
    watch.wait_watching()
    (root / "first").write_bytes(b"x")
    watch.wait_for(b"first")
    shutil.rmtree(root)
    event = watch.wait_event("watch-outage")
    assert event.level is Level.ERROR
    watch.wait(lambda: "does not exist" in watch.intake.status().reason, "why")
    assert watch.intake.status().state == "outage"
    (tmp_path / "new/deep").mkdir(parents=True)
    (tmp_path / "new/deep/second").write_bytes(b"x")
    (tmp_path / "new").rename(root)
    watch.wait_for(b"deep/second")
    (root / "deep/third").write_bytes(b"x")
    watch.wait_for(b"deep/third")
    watch.wait_event("watch-back")
    watch.wait(lambda: watch.intake.status().state == "watching", "watching")


def test_a_root_that_is_renamed_is_an_outage_and_its_files_are_not_taken_elsewhere(
    start: Callable, tmp_path: Path
) -> None:
    watch = start()
    watch.wait_watching()
    (tmp_path / "in").rename(tmp_path / "other")
    (tmp_path / "other/f").write_bytes(b"x")
    watch.wait_event("watch-outage")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/g").write_bytes(b"x")
    watch.wait_for(b"g")
    assert watch.paths() == {b"g"}


def test_a_root_behind_a_symbolic_link_is_watched_and_follows_the_link(
    start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_CHECK", 0.2)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("one")
    watch = start(tmp_path / "link")
    watch.wait_watching()
    (tmp_path / "one/f").write_bytes(b"x")
    watch.wait_for(b"f")
    (tmp_path / "two/g").write_bytes(b"x")
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "link")
    watch.wait_for(b"g")
    watch.wait_event("watch-back")


def test_a_root_that_is_not_there_at_the_start_is_waited_for(start: Callable, tmp_path: Path) -> None:
    watch = start(tmp_path / "later")
    assert watch.intake.status().state == "outage"
    (tmp_path / "later").mkdir()
    (tmp_path / "later/f").write_bytes(b"x")
    watch.wait_for(b"f")


def test_an_unforeseen_error_is_an_outage_and_not_the_end(start: Callable, tmp_path: Path) -> None:
    failing = [True]

    def fail() -> None:
        if failing[0]:
            failing[0] = False
            raise RuntimeError("boom")

    watch = start(run=False)
    watch.before_enqueue = fail
    (tmp_path / "in/f").write_bytes(b"x")
    watch.intake.start()
    watch.wait_for(b"f")
    assert "RuntimeError: boom" in watch.wait_event("watch-outage").message
    watch.events.clear()


# -- limits -------------------------------------------------------------------------------------------------------


IN_NAMESPACE = """
import os, sys, threading, time
from quaymaster.config import Watch
from quaymaster.intake.intake import Intake
from quaymaster.intake.observe import ignore_lease_breaks
ignore_lease_breaks()
root, mounted = sys.argv[1], sys.argv[2:]
queued, events = set(), []
watch = Watch(name="w", path=root, destinations=("d",))
watch = Watch.model_construct(**{**watch.model_dump(), "settle": 0.2, "settle_closed": 0.05, "poll_interval": 0.2})
intake = Intake(
    watch,
    known=lambda w, v: [path in queued for path, _ in v],
    enqueue=lambda v: len(queued) if queued.update(one.path for one in v) else 0,
    emit=events.append,
    report=lambda status: None,
)
def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, (intake.status(), events, len(queued))
        time.sleep(0.01)
intake.start()
"""


def in_namespace(root: Path, prepare: str, script: str, *, flags: str) -> None:
    command = ["unshare", *flags.split(), "sh", "-c", f'{prepare}; exec "$0" -c "$1" "$2"']
    if subprocess.run(["unshare", *flags.split(), "sh", "-c", prepare], capture_output=True).returncode:
        pytest.skip(f"this machine does not allow: unshare {flags} sh -c '{prepare}'")
    ran = subprocess.run(
        [*command, sys.executable, IN_NAMESPACE + script, str(root)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr


def test_running_out_of_watches_degrades_to_polling_and_misses_nothing(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "f").write_bytes(b"x")
    script = """
until(lambda: len(queued) == 300)
status = intake.status()
assert (status.mode, status.state) == ("poll", "degraded"), status
assert "fs.inotify.max_user_watches=" in status.reason and "polled every" in status.reason, status
os.mkdir(root + "/new"); open(root + "/new/g", "w").close(); open(root + "/299/g", "w").close()
until(lambda: {b"new/g", b"299/g"} <= queued)
assert [event.kind for event in events].count("watch-degraded") == 1, events
assert intake.stop(5)
"""
    in_namespace(tmp_path, "echo 100 > /proc/sys/user/max_inotify_watches", script, flags="-U -r")


def test_running_out_of_inotify_instances_degrades_to_polling(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    script = """
until(lambda: queued == {b"f"})
assert intake.status().mode == "poll" and "max_user_instances=" in intake.status().reason, intake.status()
with open("/proc/sys/user/max_inotify_instances", "w") as file:
    file.write("100")
intake.rescan()
until(lambda: intake.status().mode == "inotify" and intake.status().state == "watching")
assert events[-1].kind == "watch-recovered", events
assert intake.stop(5)
"""
    in_namespace(tmp_path, "echo 0 > /proc/sys/user/max_inotify_instances", script, flags="-U -r")


def test_mounts_that_come_and_go_are_noticed_at_once(tmp_path: Path) -> None:
    script = """
import subprocess
from quaymaster.intake import intake as module
module._CHECK = 600  # it is not found out by looking now and then
def kinds(kind): return [event for event in events if event.kind == kind]
until(lambda: intake.status().scans)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", root], check=True)
open(root + "/on-the-mount", "w").close()
until(lambda: queued == {b"on-the-mount"})
subprocess.run(["umount", root], check=True)
until(lambda: "is not mounted" in intake.status().reason)
open(root + "/below-the-mount", "w").close()
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", root], check=True)
open(root + "/again", "w").close()
until(lambda: b"again" in queued)
assert b"below-the-mount" not in queued
assert len(kinds("watch-back")) == 2, events
assert intake.stop(5)
"""
    in_namespace(tmp_path, f"mount -t tmpfs tmpfs {tmp_path} && umount {tmp_path}", script, flags="-m")


def test_a_mount_below_is_scanned_and_one_elsewhere_is_none_of_its_business(tmp_path: Path) -> None:
    (tmp_path / "in/below").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    script = """
import subprocess
def mount(where): subprocess.run(["mount", "-t", "tmpfs", "tmpfs", where], check=True)
looks = []
look = intake._footing.look
intake._footing.look = lambda **how: (looks.append(1), look(**how))[1]
until(lambda: intake.status().scans)
for times in range(1, 4):
    looked = len(looks)
    mount(os.path.dirname(root) + "/elsewhere")
    until(lambda: len(looks) > looked)
    time.sleep(0.1)
assert intake.status().scans == 1, intake.status()
mount(root + "/below")
until(lambda: intake.status().scans == 2)
open(root + "/below/f", "w").close()
until(lambda: queued == {b"below/f"})
assert intake.stop(5)
"""
    in_namespace(tmp_path / "in", "true", script, flags="-m")


# -- the thread ---------------------------------------------------------------------------------------------------


def test_the_heartbeat_stops_when_the_watch_hangs_and_stop_does_not(start: Callable, tmp_path: Path) -> None:
    release = threading.Event()
    watch = start()
    watch.wait_watching()
    watch.before_enqueue = lambda: release.wait(60)
    (tmp_path / "in/f").write_bytes(b"x")
    heartbeat = -1.0
    while watch.intake.status().heartbeat != heartbeat:
        heartbeat = watch.intake.status().heartbeat
        release.wait(0.3)
    assert watch.intake.stop(0.1) is False
    release.set()
    assert watch.intake.stop(10) is True


def test_more_files_than_can_settle_are_found_by_a_scan(
    start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend, "_MOST_SETTLING", 50)
    monkeypatch.setattr(attend, "_SCAN_PAUSES_AT", 25)
    watch = start()
    watch.wait_watching()
    for number in range(300):
        (tmp_path / f"in/{number}").write_bytes(b"")
    watch.wait(lambda: len(watch.paths()) == 300, "all of them")


def test_an_idle_watch_that_polls_leaves_modes_and_times_of_files_alone(start: Callable, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    os.utime(tmp_path / "f", ns=(1, 2))
    (tmp_path / "f").chmod(0o400)
    before = (tmp_path / "f").stat()
    watch = start(tmp_path, mode="poll")
    watch.wait_for(b"f")
    after = (tmp_path / "f").stat()
    assert (after.st_atime_ns, after.st_mtime_ns, after.st_ctime_ns) == (1, 2, before.st_ctime_ns)
    assert stat.S_IMODE(after.st_mode) == 0o400
