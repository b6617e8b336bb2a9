"""A real terminal: tmux(1), whose screen can be read and whose keys can be pressed."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 60.0
_NUMBERS = itertools.count()


def reason_to_skip() -> str:
    return "" if shutil.which("tmux") or os.environ.get("CI") else "tmux is not installed"


class Terminal:
    """A shell, which says "ended STATUS" when the command that it ran has ended; ``then`` is another word for it."""

    def __init__(self, folder: Path, columns: int, rows: int, environment: Mapping[str, str]) -> None:
        # Each its own server: one that has just been told to end still answers for a moment.
        self._command = ["tmux", "-S", str(folder / f"tmux-{next(_NUMBERS)}"), "-f", "/dev/null"]
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._environment = {**kept, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color", **environment}
        self._tmux("new-session", "-d", "-x", str(columns), "-y", str(rows), "exec env PS1= sh -i")
        self._tmux("set", "-g", "status", "off")
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments], env=self._environment, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout

    def run(self, command: Sequence[str], *, then: str = "ended", **environment: str) -> None:
        assigned = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        self._tmux("send-keys", "-l", f"clear; {assigned} {shlex.join(command)}; echo {then} $?\n")

    def press(self, *keys: str) -> None:
        """Named as tmux does (Enter, Down, C-c), or characters."""
        for key in keys:
            self._tmux("send-keys", key)

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self, *, styled: bool = False, above: int = 0) -> str:
        """``above``: also so many lines that have left it at the top."""
        return self._tmux("capture-pane", "-p", "-S", str(-above), *(["-e"] if styled else []))

    def says(self, text: str) -> str:
        """The screen when it says so."""
        deadline = time.monotonic() + PATIENCE
        while text not in (found := self.screen()):
            assert time.monotonic() < deadline, f"{text!r} does not appear on:\n{found}"
            time.sleep(0.1)  # each look is a process
        return found

    def asked(self, name: str) -> str:
        """A format of tmux, e.g. alternate_on."""
        return self._tmux("display-message", "-p", f"#{{{name}}}").strip()

    def close(self) -> None:
        subprocess.run([*self._command, "kill-server"], env=self._environment, capture_output=True, timeout=30)


@contextmanager
def terminal(folder: Path, columns: int = 80, rows: int = 24, **environment: str) -> Iterator[Terminal]:
    made = Terminal(folder, columns, rows, environment)
    try:
        yield made
    finally:
        made.close()
