"""What is wrong with a configuration: one line each, with file, line, table and key."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Set
from dataclasses import dataclass

from quaymaster.config.lines import Path
from quaymaster.model import shown


@dataclass(frozen=True, order=True)
class Place:
    order: int
    """Position of the file among those read."""
    file: str
    line: int
    """From 1; 0 is the file as a whole."""

    def __str__(self) -> str:
        file = shown(os.fsencode(self.file))
        return f"{file}:{self.line}" if self.line else file


NAMED = ("destination", "watch", "hook", "mirror", "profile")
"""Sections of which each table has a name: [watch.NAME]."""


class Problems:
    def __init__(self, main: str) -> None:
        self._nowhere = Place(0, main, 0)
        self._found: set[tuple[Place, str]] = set()
        self._tables: set[str] = set()
        self._unread = False
        self.places: dict[Path, Place] = {}

    def add(self, keys: Path, text: str, *, table: bool = True) -> None:
        """``keys`` is a table or key; ``text`` is "what is wrong; what to do". ``table``: a key alone is a table."""
        named = label(keys) if table or len(keys) > 1 else part(str(keys[0]))
        self._found.add((self.place(keys), f"{named}: {text}"))
        self._tables.add(str(keys[0]))

    def add_file(self, file: str, text: str, order: int = 0, line: int = 0) -> None:
        self._found.add((Place(order, file, line), text))
        self._unread = True

    def only_in(self, tables: Set[str]) -> bool:
        """Whether nothing is wrong elsewhere than in these tables: a file that could not be read may hold any."""
        return not self._unread and self._tables <= tables

    def place(self, keys: Path) -> Place:
        """Where ``keys`` stands, or else what it would stand in."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.places:
                return self.places[keys[:length]]
        return self._nowhere

    def lines(self) -> list[str]:
        """In the order in which the operator reads the files."""
        return [f"{place}: {text}" for place, text in sorted(self._found)]


def label(keys: Path) -> str:
    """``("watch", "a", "compress", "level")`` is ``[watch.a] compress.level``."""
    depth = 2 if keys[0] in NAMED else 1
    items = "".join(f" (item {key + 1})" for key in keys if isinstance(key, int))
    parts = [part(key) for key in keys if isinstance(key, str)]
    return f"[{'.'.join(parts[:depth])}] {'.'.join(parts[depth:])}".rstrip() + items


def part(key: str) -> str:
    """One part of a dotted key, as it is written in TOML."""
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else json.dumps(key)
