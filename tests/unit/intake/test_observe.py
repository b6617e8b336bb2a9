"""One look at one file (PRODUCT W4, X1), and what leases say on real files."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quaymaster.errors import SourceRefused
from quaymaster.intake.observe import Looks
from quaymaster.intake.settle import Observation, Writer
from quaymaster.source import Root, identity_of


def look(root: Path, path: bytes, *, leases: bool = True, wall_ns: int | None = None) -> Observation:
    with Looks(Root(str(root)), leases=leases, wall_ns=wall_ns) as looks:
        return looks.look(path)


def test_a_file_that_nobody_writes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    os.utime(tmp_path / "f", ns=(0, 5_000_000_000))
    expected = identity_of((tmp_path / "f").stat())
    assert look(tmp_path, b"f", wall_ns=7_500_000_000) == Observation(expected, Writer.NONE, 2.5)
    assert look(tmp_path, b"f", leases=False) == Observation(expected, Writer.UNKNOWN, None)
    with (tmp_path / "f").open("rb"):
        assert look(tmp_path, b"f").writer is Writer.NONE, "readers do not matter"


def test_a_writer_is_seen_through_a_descriptor_and_through_a_mapping(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w+b") as file:
        file.write(b"x" * 4096)
        file.flush()
        assert look(tmp_path, b"f").writer is Writer.OPEN
        mapping = mmap.mmap(file.fileno(), 4096)
    assert look(tmp_path, b"f").writer is Writer.OPEN, "closed, but mapped for writing"
    mapping.close()
    assert look(tmp_path, b"f").writer is Writer.NONE


def test_a_look_leaves_no_lease_behind_and_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"x")
    before = os.listdir("/proc/self/fd")
    look(tmp_path, b"d/f")
    assert os.listdir("/proc/self/fd") == before
    os.close(os.open(tmp_path / "d/f", os.O_WRONLY | os.O_NONBLOCK))  # EAGAIN if a lease were held


def test_what_is_not_there_is_none_whatever_part_of_the_path_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (b"gone", b"gone/f", b"file/f"):
        assert look(tmp_path, path) == Observation(None)


def test_links_are_not_followed_in_any_component(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/f").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/also").symlink_to("f")
    for path in (b"link/f", b"real/also", b"link"):
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            look(tmp_path, path)


def test_special_files_and_foreign_hard_links_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for path in (b"fifo", b"directory"):
        with pytest.raises(SourceRefused, match="is not a regular file"):
            look(tmp_path, path)
    (tmp_path / "theirs").write_bytes(b"x")
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    os.link(tmp_path / "theirs", tmp_path / "open/f")
    with pytest.raises(SourceRefused, match="hard links"):
        look(tmp_path, b"open/f")


def test_looks_follow_a_path_from_one_directory_to_the_next(tmp_path: Path) -> None:
    for name in ("a/f", "b/f", "f"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    with Looks(Root(str(tmp_path)), leases=True, wall_ns=None) as looks:
        for name in ("f", "a/f", "b/f", "a/f", "f"):
            assert looks.look(name.encode()).identity == identity_of((tmp_path / name).stat())


def test_a_writer_that_comes_while_the_lease_is_held_does_not_end_the_process(tmp_path: Path) -> None:
    """The kernel sends SIGIO then; without ignore_lease_breaks that kills."""
    (tmp_path / "f").write_bytes(b"x")
    script = """
import fcntl, os, signal, sys
from quaymaster.intake.observe import ignore_lease_breaks
signal.signal(signal.SIGIO, signal.SIG_DFL)  # this one's is ignored, and that is inherited
if sys.argv[2] == "ignore":
    ignore_lease_breaks()
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
try:
    os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
except BlockingIOError:
    os.write(1, b"alive")
"""

    def run(how: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-c", script, str(tmp_path / "f"), how], capture_output=True)

    assert run("ignore").stdout == b"alive"
    assert run("leave").returncode < 0, "or there would be nothing to ignore"
