"""On which line each key of a TOML document stands (https://toml.io/en/v1.0.0), for messages only.

tomllib gives values without positions. This scanner walks a document that tomllib has already accepted, so it need
not judge, only find its way: over strings, comments, arrays and inline tables.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

Path = tuple[str | int, ...]
"""Keys from the top, and positions in arrays: ("watch", "sequencer", "include", 0)."""

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})'  # up to two quotes may stand before the closing three
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_OTHER_VALUE = re.compile(r"[^,\]}\n#]*")  # numbers, booleans, dates


def key_lines(text: str) -> dict[Path, int]:
    """The line (from 1) of every table, key and array item in ``text``, a valid TOML document.

    A table is where its header is, or where it is first named if it has none.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._line_ends = [match.start() for match in re.finditer("\n", text)]
        self._last_item: dict[Path, int] = {}  # of each array of tables, the position of its newest table

    def document(self) -> None:
        table: Path = ()
        while True:
            self._skip(_BLANK)
            if self.at >= len(self.text):
                return
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        start = self.at
        is_item = self.text.startswith("[[", self.at)
        self.at += 2 if is_item else 1
        parts = self._key()
        self._skip(_SPACE)
        self.at += 2 if is_item else 1
        path: Path = ()
        for part in parts[:-1]:
            path = self._newest((*path, part))
            self._note(path, start)
        path = (*path, parts[-1])
        if is_item:
            self._note(path, start)
            self._last_item[path] = self._last_item.get(path, -1) + 1
            path = (*path, self._last_item[path])
        self.lines[path] = self._line(start)
        return path

    def _newest(self, path: Path) -> Path:
        return (*path, self._last_item[path]) if path in self._last_item else path

    def _pair(self, table: Path) -> None:
        start = self.at
        path = table
        for part in self._key():
            path = (*path, part)
            self._note(path, start)
        self._skip(_SPACE)
        self.at += 1  # the equals sign
        self._value(path)

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._skip(_SPACE)
            if match := _STRING.match(self.text, self.at):
                parts.append(str(tomllib.loads(f"key = {match.group()}")["key"]))
            else:
                match = _BARE_KEY.match(self.text, self.at)
                if match is None:
                    raise ValueError(f"no key on line {self._line(self.at)}")
                parts.append(match.group())
            self.at = match.end()
            self._skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        opening = self.text[self.at : self.at + 1]
        if opening == "[":
            self.at += 1
            self._array(path)
        elif opening == "{":
            self.at += 1
            while not self._closed("}"):
                self._pair(path)
        elif match := _STRING.match(self.text, self.at):
            self.at = match.end()
        else:
            self._skip(_OTHER_VALUE)

    def _array(self, path: Path) -> None:
        index = 0
        while not self._closed("]"):
            item = (*path, index)
            self._note(item, self.at)
            self._value(item)
            index += 1

    def _closed(self, bracket: str) -> bool:
        """Steps over blanks and a comma; True, and past it, when ``bracket`` ends the array or table here."""
        self._skip(_BLANK)
        if self.text.startswith(",", self.at):
            self.at += 1
            self._skip(_BLANK)
        if self.at >= len(self.text):
            raise ValueError(f"no {bracket} before the end")
        if self.text[self.at] == bracket:
            self.at += 1
            return True
        return False

    def _note(self, path: Path, position: int) -> None:
        self.lines.setdefault(path, self._line(position))

    def _line(self, position: int) -> int:
        return bisect_right(self._line_ends, position - 1) + 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match is not None:
            self.at = match.end()
