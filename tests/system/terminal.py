"""A terminal in memory, just clever enough for what the command line does with one (ECMA-48: CUU, EL, ED)."""

from __future__ import annotations

import re

_STEP = re.compile(r"\x1b\[(?P<number>[0-9]*)(?P<code>[A-Za-z])|(?P<text>[^\x1b])", re.DOTALL)


class Screen:
    """``columns`` wide and without end below; what does not fit goes on in the next row."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows = [""]
        self.wrapped = 0
        """How many times a line did not fit."""
        self._row = self._column = 0

    def feed(self, text: str) -> None:
        at = 0
        while at < len(text):
            step = _STEP.match(text, at)
            assert step, f"not understood: {text[at : at + 10]!r}"
            at = step.end()
            self._act(step["code"], step["number"]) if step["code"] else self._put(step["text"])

    def _act(self, code: str, number: str) -> None:
        assert code in "AKJ", code
        if code == "A":
            self._row -= int(number or 1)
            assert self._row >= 0, "above the top"
            return
        self.rows[self._row] = self.rows[self._row][: self._column]
        if code == "J":
            del self.rows[self._row + 1 :]

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._row += 1
        else:
            if self._column == self.columns:
                self.wrapped += 1
                self._row, self._column = self._row + 1, 0
            self._reach()
            row = self.rows[self._row].ljust(self._column)
            self.rows[self._row] = row[: self._column] + character + row[self._column + 1 :]
            self._column += 1
        self._reach()

    def _reach(self) -> None:
        self.rows += [""] * (self._row + 1 - len(self.rows))

    @property
    def shown(self) -> list[str]:
        return [row.rstrip() for row in self.rows if row.strip()]
