"""How far a long command is, on standard error. On a terminal: one line for the whole and one for each of a few files,
drawn anew a few times a second. Elsewhere, and on a terminal that wants no escape codes: a line now and then.

The command only gives a ``view``, which is asked for from a thread of :class:`Progress`; so what takes long needs not
say that it is still at it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TextIO

from quaymaster.cli import show

_ON_TERMINAL = 0.2
"""Seconds between two states of the display."""
_ELSEWHERE = 10.0
"""Seconds between two lines in a log."""
_FILES = 5
"""Files that are shown; more would not be read."""
_WINDOW = 10.0
"""Seconds over which a rate is taken: long enough to be steady, short enough to notice a stall."""


@dataclass(frozen=True, slots=True)
class View:
    """How far it is now."""

    whole: Sequence[str]
    """The same in fewer and fewer words: what fits is shown."""
    files: Sequence[tuple[str, int, int]] = ()
    """(name, bytes done, size) of files in flight."""


class Progress:
    """Shows views while it is entered, and leaves nothing of them on a terminal. ``quiet`` shows none."""

    def __init__(
        self,
        stream: TextIO,
        view: Callable[[], View | None],
        *,
        quiet: bool,
        goes_on: bool = False,
        environ: Mapping[str, str] = os.environ,
        screen: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        """``goes_on``: an interrupted command can be given again, and says so. ``screen`` tells columns and rows, if
        not the terminal that is ``stream``."""
        self._stream, self._view, self._quiet, self._goes_on = stream, view, quiet, goes_on
        # NO_COLOR asks for output without escape codes (no-color.org); a dumb terminal has none to move its cursor.
        escapes = environ.get("TERM", "dumb") != "dumb" and not environ.get("NO_COLOR")
        self._drawn = escapes and stream.isatty()
        self._screen = screen or self._terminal
        self._there: list[str] = []
        """Lines that stand on the terminal now; the cursor is at the beginning of the last one."""
        self._lock = threading.RLock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end.set()
        if not self._quiet:
            self._thread.join()
        with self.aside():
            if self._goes_on and not self._quiet and kind is KeyboardInterrupt:
                self._write("interrupted: the same command goes on where it stopped\n")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While something else is printed."""
        with self._lock:
            if self._there:
                self._write(_back(self._there, self._screen()[0]) + "\x1b[J")
                self._there = []
            yield

    def draw(self) -> None:
        """Show the view as it is now."""
        view = self._view()
        if view is None:
            return
        with self._lock:
            if not self._drawn:
                files = [f"{name} {_percent(done, size)} %" for name, done, size in view.files[:_FILES]]
                self._write("; ".join(show.plain(text) for text in [view.whole[0], *files]) + "\n")
                return
            columns, rows = self._screen()
            lines = _lines(view, columns - 1, max(1, min(_FILES + 1, rows - 1)))
            # ECMA-48: EL erases to the end of the line, ED what is below. Nothing is erased first: it would flicker.
            text = _back(self._there, columns) + "\n".join(f"{line}\x1b[K" for line in lines)
            self._write(f"{text}\x1b[J\r")
            self._there = lines

    def _follow(self) -> None:
        while not self._end.wait(_ON_TERMINAL if self._drawn else _ELSEWHERE):
            self.draw()

    def _terminal(self) -> tuple[int, int]:
        try:
            columns, rows = os.get_terminal_size(self._stream.fileno())  # not of stdout, which may go elsewhere
        except (OSError, ValueError):
            columns, rows = 0, 0
        return columns or 80, rows or 24  # some terminals do not know

    def _write(self, text: str) -> None:
        with suppress(OSError):  # the terminal may be gone; the command goes on
            self._stream.write(text)
            self._stream.flush()


def _back(lines: Sequence[str], columns: int) -> str:
    """Moves the cursor from the last of these lines to the first. A terminal that became narrower has broken them."""
    rows = sum(max(1, math.ceil(show.width(line) / columns)) for line in lines[:-1])
    return "\r" + (f"\x1b[{rows}A" if rows else "")


def _lines(view: View, columns: int, rows: int) -> list[str]:
    """At most so many lines, each at most so wide."""
    whole = [show.plain(text) for text in view.whole]
    first = next((text for text in whole if show.width(text) <= columns), None) or show.cut(whole[-1], columns)
    bar = 20 if columns >= 70 else 10
    name_columns = max(columns - bar - 13, 8)
    lines = [first]
    for name, done, size in view.files[: rows - 1]:
        percent = _percent(done, size)
        filled = "#" * (bar * percent // 100)
        short = show.cut_path(show.plain(name), name_columns)
        pad = " " * (name_columns - show.width(short))
        lines.append(show.cut(f"  {short}{pad}  [{filled:-<{bar}}] {percent:3d} %", columns))
    return lines


def _percent(done: int, size: int) -> int:
    return min(100, 100 * done // size) if size else 100


# -- rates --


@dataclass(frozen=True, slots=True)
class Amount:
    """What is done of what there is."""

    done: int
    total: int
    """0: not known."""
    bytes_done: int
    bytes_total: int
    """0: not known, or not what it is measured by."""


class Rate:
    """How fast it goes, and how long it will take, by the last seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, Amount]] = deque()

    def whole(self, verb: str, noun: tuple[str, str], now: Amount) -> list[str]:
        """``verb: 1 of 10 files, 20 MiB of 100 MiB (20 %), 10 MiB/s, 8 s left``, and shorter forms of it."""
        per_second, left = self._measure(now)
        files = f"{verb}: " + _of(show.count(now.done), now.total and show.count(now.total, *noun), noun, now.done)
        moved = show.size(now.bytes_done)
        share = f"{_percent(now.bytes_done, now.bytes_total)} %" if now.bytes_total else ""
        full = f"{moved} of {show.size(now.bytes_total)} ({share})" if share else moved if now.bytes_done else ""
        speed = f"{show.size(int(per_second))}/s" if per_second >= 1 else ""
        time_left = f"{show.duration(left)} left" if left is not None else ""
        forms = [(files, full, speed, time_left), (files, share, speed, time_left), (files, share, time_left), (files,)]
        return [", ".join(word for word in form if word) for form in forms]

    def _measure(self, now: Amount) -> tuple[float, float | None]:
        """Bytes a second, and seconds left if they can be told. Many small files after a few large ones take longer
        than their bytes say: the slower of files and bytes counts."""
        at = self._clock()
        self._seen.append((at, now))
        while len(self._seen) > 2 and at - self._seen[0][0] > _WINDOW:
            self._seen.popleft()
        began, then = self._seen[0]
        seconds = at - began
        if seconds < 1.0:
            return 0.0, None
        per_second = (now.bytes_done - then.bytes_done) / seconds
        estimates = []
        if now.bytes_total and per_second > 0:
            estimates.append((now.bytes_total - now.bytes_done) / per_second)
        if now.total and now.done > then.done:
            estimates.append((now.total - now.done) * seconds / (now.done - then.done))
        return per_second, max(0.0, *estimates, 0.0) if estimates else None


def _of(done: str, total: str | int, noun: tuple[str, str], number: int) -> str:
    return f"{done} of {total}" if total else f"{done} {noun[0] if number == 1 else noun[1]}"
