"""``quaymaster top``: what the service does, live on a terminal (PRODUCT O1). What is drawn: panel.py.

curses(3) of the standard library draws it: it is loaded in a millisecond, knows every terminal, and puts it back.
"""

from __future__ import annotations

import curses
import locale
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from quaymaster.cli import panel, show
from quaymaster.cli.pause import operator
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import QuaymasterError, UsageError
from quaymaster.model import State
from quaymaster.service.view.records import Record, job_record
from quaymaster.service.view.snapshot import snapshot

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Store

EVERY = 1.0
"""Seconds between two looks."""
_FAILED = 50
_SAID_FOR = 6.0
"""Seconds for which it says what a key has done."""
_ESCAPE = "\x1b"


@click.command("top")
@in_session
def command(session: Session) -> int:
    """Watch the service live: each file with its progress, what failed and why, watches, destinations, throughput.

    Keys: arrows choose, Enter shows everything about a file with its proof, p pauses or resumes a watch, r tries a
    file again, f filters, ? explains, q quits. Works while the service is stopped too, and says so.

    \b
    Examples:
      quaymaster top
      NO_COLOR=1 quaymaster top
      watch -n 2 quaymaster status       without keys, where there is no such terminal
    """
    if session.json:
        raise UsageError("top draws on a terminal", "For programs there is: quaymaster status --json")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal", "Elsewhere use: quaymaster status")
    _fit_for_drawing(os.environ)
    config = session.config()
    with session.store(config) as store, _ended_by_signal() as ended:
        _in_terminal(lambda window: Top(window, config, store, os.environ, lambda: bool(ended)).run())
    if ended:  # end as it would have without a terminal to put back
        signal.signal(ended[0], signal.SIG_DFL)
        os.kill(os.getpid(), ended[0])
    return 0


def _fit_for_drawing(environ: Mapping[str, str]) -> None:
    locale.setlocale(locale.LC_ALL, "")
    name = environ.get("TERM", "")
    try:
        curses.setupterm(name or "dumb", sys.stdout.fileno())
        if curses.tigetstr("cup"):
            return
    except curses.error:
        pass
    raise UsageError(f"top cannot draw on a terminal of the type {name or 'unknown'!r}", "Use: quaymaster status")


@contextmanager
def _ended_by_signal() -> Iterator[list[int]]:
    """The signal that asked for the end, once one has."""
    ended: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        ended.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_terminal(act: Callable[[curses.window], None]) -> None:
    """As curses.wrapper does, which would begin with colours even where none are wanted."""
    os.environ.setdefault("ESCDELAY", "50")  # milliseconds; a second is what curses waits for more after Escape
    window = curses.initscr()
    try:
        curses.noecho()
        curses.cbreak()
        window.keypad(True)
        act(window)
    finally:
        window.keypad(False)
        curses.nocbreak()
        curses.echo()
        curses.endwin()


class Top:
    def __init__(
        self,
        window: curses.window,
        config: Config,
        store: Store,
        environ: Mapping[str, str],
        ended: Callable[[], bool],
    ) -> None:
        self._window, self._config, self._store, self._ended = window, config, store, ended
        self._by = operator(environ)
        self._encoding = locale.getpreferredencoding(False)
        unicode = self._encoding.lower().replace("-", "") == "utf8"
        self._glyphs = panel.UNICODE if unicode else panel.ASCII
        self._styles = _styles(environ)
        self._found: Record | None = None
        self._failed: list[Record] = []
        self._selected: tuple[str, str] | None = None
        self._rows: list[panel.Row] = []
        self._heads: list[int] = []
        """Where each section begins among the rows."""
        self._wanted = ""
        self._typing: str | None = None
        self._page: list[str] | None = None
        """The text that covers everything else: help, or one file."""
        self._offset = 0
        self._said = ("", 0.0)
        self._quit = False

    def run(self) -> None:
        curses.curs_set(0) if curses.tigetstr("civis") else None
        due = 0.0
        while not (self._quit or self._ended()):
            now = time.monotonic()
            if now >= due:
                self._look()
                due = now + EVERY
            self._draw()
            self._window.timeout(max(1, int(1000 * (due - time.monotonic()))))
            try:
                key = self._window.get_wch()
            except curses.error:  # the time is over
                continue
            self._press(key)

    # -- looking --

    def _look(self) -> None:
        from quaymaster.service.lock import holder
        from quaymaster.store import Filter

        held = Filter(states=(State.WAITING, State.PARKED), limit=_FAILED)
        try:
            pid = holder(self._config.service.state_dir)
            self._found = snapshot(self._config, self._store, pid, time.time())
            self._failed = [job_record(job) for job in self._store.jobs(held)]
        except QuaymasterError as error:
            self._say(str(error))

    def _say(self, text: str) -> None:
        self._said = (show.plain(text), time.monotonic() + _SAID_FOR)

    # -- drawing --

    def _draw(self) -> None:
        rows, columns = self._window.getmaxyx()
        message = self._said[0] if time.monotonic() < self._said[1] else ""
        if self._page is not None:
            lines, self._offset = panel.pages(self._page, self._offset, columns - 1, rows)
        elif self._found is None:
            lines = [[(show.cut(message, columns - 1), "bad")]]
        else:
            body = panel.sections(self._found, self._failed, self._wanted, columns - 1, self._glyphs)
            self._rows = [row for section in body for row in section.rows]
            counts = [len(section.rows) for section in body]
            self._heads = [sum(counts[:index]) for index, count in enumerate(counts) if count]
            heading = panel.head(self._found, columns - 1, self._glyphs)
            below = panel.foot(message, self._wanted, self._typing, columns - 1)
            lines = panel.screen(heading, body, below, self._at(), rows)
        self._put(lines[:rows], columns)

    def _put(self, lines: list[panel.Line], columns: int) -> None:
        self._window.erase()
        for number, line in enumerate(lines):
            column = 0
            for text, style in line:
                text = show.cut(text, columns - 1 - column)
                if style == "selected":
                    text += " " * (columns - 1 - column - show.width(text))
                known = text.encode(self._encoding, "backslashreplace").decode(self._encoding)
                try:
                    self._window.addstr(number, column, known[: columns - 1 - column], self._styles[style])
                except curses.error:  # the terminal has just become smaller
                    break
                column += show.width(text)
        self._window.refresh()

    def _at(self) -> int:
        """Which row is chosen; what has gone leaves its place to the one that is there now."""
        keys = [row.key for row in self._rows]
        if self._selected not in keys:
            self._selected = keys[min(self._last, len(keys) - 1)] if keys else None
        self._last = keys.index(self._selected) if self._selected else 0
        return self._last

    _last = 0

    # -- keys --

    def _press(self, key: str | int) -> None:
        if key == curses.KEY_RESIZE:
            curses.update_lines_cols()
        elif self._typing is not None:
            self._type(key)
        elif self._page is not None:
            self._scroll(key)
        else:
            self._command(key)

    def _type(self, key: str | int) -> None:
        assert self._typing is not None
        if key in ("\n", "\r", curses.KEY_ENTER):
            self._wanted, self._typing = self._typing, None
        elif key == _ESCAPE:
            self._typing = None
        elif key in (curses.KEY_BACKSPACE, "\x7f", "\b"):
            self._typing = self._typing[:-1]
        elif isinstance(key, str) and key.isprintable():
            self._typing += key

    def _scroll(self, key: str | int) -> None:
        page = max(1, self._window.getmaxyx()[0] - 2)
        steps = {curses.KEY_UP: -1, "k": -1, curses.KEY_DOWN: 1, "j": 1, curses.KEY_PPAGE: -page, " ": page,
                 curses.KEY_NPAGE: page, curses.KEY_HOME: -10**6, curses.KEY_END: 10**6}  # fmt: skip
        if key in ("q", _ESCAPE, "?", "d", "\n", "\r", curses.KEY_ENTER):
            self._page = None
        else:
            self._offset = max(0, self._offset + steps.get(key, 0))

    def _command(self, key: str | int) -> None:
        steps = {curses.KEY_UP: -1, "k": -1, curses.KEY_DOWN: 1, "j": 1, curses.KEY_PPAGE: -10, curses.KEY_NPAGE: 10,
                 curses.KEY_HOME: -10**6, curses.KEY_END: 10**6}  # fmt: skip
        acts: dict[str | int, Callable[[], None]] = {
            "p": self._pause, "r": self._retry, "d": self._details, "\n": self._details, "\r": self._details,
            curses.KEY_ENTER: self._details, "\t": self._next_section,
        }  # fmt: skip
        if key in ("q", _ESCAPE):
            self._quit = True
        elif key in ("f", "/"):
            self._typing = self._wanted
        elif key == "?":
            self._page, self._offset = list(panel.HELP), 0
        elif key in steps:
            self._choose(self._at() + steps[key])
        elif key in acts:
            try:
                acts[key]()
            except QuaymasterError as error:
                self._say(str(error))

    def _choose(self, number: int) -> None:
        if self._rows:
            self._selected = self._rows[max(0, min(number, len(self._rows) - 1))].key

    def _next_section(self) -> None:
        at = self._at()
        self._choose(next((first for first in self._heads if first > at), 0))

    def _chosen(self) -> panel.Row | None:
        return self._rows[self._at()] if self._rows else None

    def _pause(self) -> None:
        from quaymaster.service.control import act

        row = self._chosen()
        if row is None or not row.watch:
            self._say("Choose a watch, or a file of one.")
            return
        action = "resume" if row.watch in self._store.control().paused else "pause"
        act(action, self._config, self._store, [row.watch], self._by)
        if action == "pause":
            self._say(f"{row.watch} is paused: what is being delivered is finished. p goes on with it.")
        else:
            self._say(f"{row.watch} goes on.")
        self._look()

    def _retry(self) -> None:
        from quaymaster.store import Filter

        row = self._chosen()
        if row is None or not row.job:
            self._say("Choose a file that waits or is parked.")
            return
        done = self._store.retry(Filter(ids=(row.job,)), self._by)
        again = f"Job {row.job} is tried again."
        self._say(again if done else f"Job {row.job} neither waits nor is parked, so there is nothing to try again.")
        self._look()

    def _details(self) -> None:
        from quaymaster.cli.story import story

        row = self._chosen()
        if row is None:
            return
        if row.job:
            self._page, self._offset = story(self._config, self._store, row.job), 0
        else:
            texts = ["".join(text for text, _ in line) for line in (row.line, *row.more)]
            watch = self._config.watches.get(row.watch)
            self._page, self._offset = [*texts, *([f"  {show.plain(watch.path)}"] if watch else [])], 0


def _styles(environ: Mapping[str, str]) -> dict[str, int]:
    """Without colours (https://no-color.org, or a terminal that has none) bold and reverse tell the same."""
    styles = {
        "": curses.A_NORMAL, "bold": curses.A_BOLD, "quiet": curses.A_NORMAL, "accent": curses.A_NORMAL,
        "good": curses.A_NORMAL, "note": curses.A_BOLD, "bad": curses.A_BOLD, "selected": curses.A_REVERSE,
    }  # fmt: skip
    if environ.get("NO_COLOR") or not curses.has_colors():
        return styles
    curses.start_color()
    curses.use_default_colors()
    colours = {
        "accent": curses.COLOR_CYAN,
        "good": curses.COLOR_GREEN,
        "note": curses.COLOR_YELLOW,
        "bad": curses.COLOR_RED,
    }
    for number, (name, colour) in enumerate(colours.items(), start=1):
        curses.init_pair(number, colour, -1)
        styles[name] |= curses.color_pair(number)
    styles["quiet"] |= curses.A_DIM
    return styles
