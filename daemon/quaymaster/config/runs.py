"""Which directories of a watch are units (PRODUCT W5), and what says that one is whole."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from quaymaster.config.values import quoted

DEEPEST = 16
"""Levels below the watch on which a unit may be."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Units are the directories ``depth`` levels below the watch whose path matches ``pattern``, level by level."""

    depth: int
    pattern: str = ""

    @classmethod
    def of(cls, depth: int, pattern: str | None) -> Layout:
        return cls(pattern.count("/") + 1, pattern) if pattern else cls(depth)

    def unit_of(self, path: bytes) -> bytes | None:
        """The unit that a file (relative to the watch) is in; None for one outside of all."""
        parts = path.split(b"/", self.depth)
        return b"/".join(parts[: self.depth]) if len(parts) > self.depth and self.leads_to(parts[:-1]) else None

    def leads_to(self, levels: Collection[bytes]) -> bool:
        """Whether a directory with these levels is a unit, or may hold one."""
        if not self.pattern:
            return True
        wanted = self.pattern.split("/")
        return all(matches(name, glob) for name, glob in zip(levels, wanted, strict=False))


def matches(name: bytes, glob: str) -> bool:
    """Whether a name without slashes fits a shell pattern. Case counts."""
    return fnmatch.fnmatchcase(os.fsdecode(name), glob)


def path_matches(path: bytes, glob: str) -> bool:
    """The same for a path, level by level."""
    levels, wanted = path.split(b"/"), glob.split("/")
    return len(levels) == len(wanted) and all(map(matches, levels, wanted))


@dataclass(frozen=True, slots=True)
class Whole:
    """What says that a unit is whole: there are files (patterns relative to the unit) that fit each of ``all_of`` and
    one of ``any_of``; and nothing new came for ``idle`` seconds."""

    all_of: tuple[str, ...]
    any_of: tuple[str, ...]
    idle: float | None

    @property
    def patterns(self) -> tuple[str, ...]:
        return self.all_of + self.any_of

    def missing(self, there: Iterable[str]) -> str:
        """What of the files is missing, when ``there`` are the patterns that have one; empty: nothing."""
        there = set(there)
        lacking = [pattern for pattern in self.all_of if pattern not in there]
        if self.any_of and not there & set(self.any_of):
            lacking.append(" or ".join(self.any_of))
        return ", ".join(lacking)

    def said(self) -> str:
        """For people: by what a unit became whole."""
        by = [*self.all_of, *([" or ".join(self.any_of)] if self.any_of else [])]
        if self.idle is not None:
            by.append(f"{self.idle:g} s without anything new")
        return ", ".join(by)


def glob_problem(pattern: str) -> str:
    """What is wrong with a pattern of directories or files below one, or an empty string."""
    parts = pattern.split("/")
    if not pattern or any(part in ("", ".", "..") for part in parts) or "\0" in pattern:
        return (
            f'{quoted(pattern)} cannot be matched level by level; write it like "*/run_*", without "..", "." and "//"'
        )
    if "**" in parts:
        return f'{quoted(pattern)} holds "**"; write one "*" for each level'
    if len(parts) > DEEPEST:
        return f"{quoted(pattern)} has more than {DEEPEST} levels"
    return ""
