"""What sync, verify and restore show on a real terminal while they work, and what is left there (PRODUCT I1)."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.data import MIB
from system.conftest import Home, quoted
from system.faulty_filesystem import FaultyFilesystem, reason_to_skip
from system.service import COMMAND, until
from system.terminal import Screen

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip() or "-")
COLUMNS = 60
NAMES = [b"n" * 120, b"not\xffutf8.bin", "r\u00e9sum\u00e9.bin".encode(), b"new\nline\x1b[2J", b"e", b"f", b"g", b"h"]


class Watched:
    """A command on a pseudo-terminal that is ``COLUMNS`` wide, and everything that appeared there."""

    def __init__(self, home: Home, *arguments: str | Path, **environment: str) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=slave, stderr=slave,
            env={**os.environ, "TERM": "xterm", "QUAYMASTER_CONFIG": str(home.folder / "quaymaster.toml"),
                 "XDG_CACHE_HOME": str(home.folder / "cache"), "LC_ALL": "C.UTF-8", **environment},
        )  # fmt: skip
        os.close(slave)
        self.text, self.screen = "", Screen(COLUMNS)
        self._seen: list[list[str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        left = b""
        while True:
            try:
                data = os.read(self._master, 4096)
            except OSError:  # EIO: the command has ended
                self._take(left)
                return
            whole, _, left = (left + data).rpartition(b"\r")  # between two states, and between two characters
            self._take(whole + b"\r" if whole else b"")

    def _take(self, data: bytes) -> None:
        text = data.decode()
        self.text += text
        self.screen.feed(text)
        self._seen.append(self.screen.shown)

    def until_shown(self, *patterns: str) -> list[str]:
        """The screen when it first had a line that matches each of these."""

        def matches(rows: list[str]) -> bool:
            return all(any(re.search(pattern, row) for row in rows) for pattern in patterns)

        found = until(lambda: next(filter(matches, list(self._seen)), None), what=f"{patterns} on the terminal")
        assert found
        return found

    def end(self) -> list[str]:
        """What is left on the screen; the command must have succeeded."""
        assert self.process.wait(60) == 0, self.text
        self._reader.join(10)
        os.close(self._master)
        return self.screen.shown


@pytest.fixture
def slow(home: Home) -> Iterator[FaultyFilesystem]:
    """What the archive is on: nothing is written there or read from there as long as it hangs."""
    with FaultyFilesystem(home.folder / "slow", direct=True) as filesystem:
        destination = f'[destination.archive]\ntype = "directory"\npath = {quoted(filesystem.seen)}\n'
        (home.folder / "quaymaster.toml").write_text(home.config('settle = "0s"', destination))
        for number, name in enumerate(NAMES):
            path = home.land(name, os.urandom(2 * MIB - number))
            os.utime(path, (1e9, 1e9))
        yield filesystem


@contextmanager
def hanging(filesystem: FaultyFilesystem, operation: str) -> Iterator[None]:
    filesystem.fail(**{operation: "hang"})
    try:
        yield
    finally:
        filesystem.fail()


def test_each_command_shows_the_whole_and_five_files_and_cleans_up(home: Home, slow: FaultyFilesystem) -> None:
    commands = {
        "sending: 0 of 8 files": ("write", ["sync"]),
        "reading back: 0 of 8 copies": ("read", ["verify", "--level", "readback"]),
        "restoring: 0 of 8 files": ("read", ["restore", "--to", home.folder / "back", "--workers", "8"]),
    }
    for whole, (operation, arguments) in commands.items():
        odd = [r"not\xffutf8.bin", "r\u00e9sum\u00e9.bin", r"new\nline\x1b[2J"]
        if arguments[0] == "verify":  # which reads four at a time
            odd = []
        with hanging(slow, operation):
            watched = Watched(home, *arguments)
            rows = watched.until_shown(r"\] +[0-9]+ %", *map(re.escape, odd))
        assert rows[0].startswith(whole), rows
        files = rows[1:]
        assert 1 <= len(files) <= 5
        assert all(re.fullmatch(r"  .+  \[[#-]{10}\] +[0-9]+ %", row) for row in files), rows
        left = watched.end()
        assert watched.screen.wrapped <= sum(len(row) == COLUMNS for row in left), "no line was broken"
        assert not [row for row in left if "%" in row or whole.partition(":")[0] in row], left
        assert re.search("8 sent|8 copies|8 restored", left[0]), left


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_no_escape_codes_where_none_are_wanted(home: Home, slow: FaultyFilesystem, environment: dict[str, str]) -> None:
    with hanging(slow, "write"):
        watched = Watched(home, "sync", **environment)
        rows = watched.until_shown("^sending: 0 of 8 files")  # after ten seconds
    watched.end()
    assert rows
    assert "\x1b" not in watched.text
