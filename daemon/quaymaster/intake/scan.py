"""The one directory walker, and the rules of what is taken (PRODUCT W1, W4, W7, X1).

Patterns are gitignore's (gitignore(5)), relative to the watched directory: the last one that speaks of a path wins, a
directory that is excluded is not entered. For ``include`` the same patterns say what is taken; a file that none of
them speaks of goes with its directory.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import NamedTuple

from quaymaster.errors import ConfigError
from quaymaster.model import Identity, shown
from quaymaster.source import Root

BATCH = 500
"""Entries looked at between two chances for the caller to do something else."""

_ENCODING = sys.getfilesystemencoding()
_CACHED_DIRECTORIES = 20_000
_TOLD_UNREADABLE = 100

# Names that programs give to files they have not finished (PRODUCT W1). rsync's are .NAME.XXXXXX, and files only:
# a directory called .cache.backup is nobody's temporary.
_TEMPORARY_ENDS = (b".part", b".tmp", b"~")
_TEMPORARY_DOT = re.compile(rb"\.(.*\.swp|nfs.*|qm-.*)", re.DOTALL)
_TEMPORARY_DOT_FILE = re.compile(rb"\.(.*\.swp|nfs.*|qm-.*|.+\.[A-Za-z0-9]{6})", re.DOTALL)


Row = tuple[bytes, int, int, int]
"""path, inode, size, mtime_ns: what :class:`Found` is made of."""


class Found(NamedTuple):
    """A regular file, as listed; ``path`` is relative to the root."""

    path: bytes
    identity: Identity


@dataclass(slots=True)
class Tally:
    """What a walk came across."""

    directories: int = 0
    entries: int = 0
    """Of any kind, whether the rules take them or not."""
    files: int = 0
    """Regular files that the rules take."""
    links: int = 0
    special: int = 0
    """Neither regular file nor directory nor symbolic link."""
    held: int = 0
    """Files without their marker."""
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    """The first directories that could not be listed, and why."""
    unreadable_count: int = 0


def _is_temporary(name: bytes, dotted: re.Pattern[bytes]) -> bool:
    return name.endswith(_TEMPORARY_ENDS) or (name.startswith(b".") and dotted.fullmatch(name) is not None)


def pattern_problem(pattern: str) -> str:
    """What is wrong with an include, exclude or ignore pattern, or an empty string."""
    return "" if _compile(pattern) is not None else f"{pattern!r} is not a gitignore pattern, or matches nothing"


def _compile(pattern: str) -> tuple[re.Pattern[str], bool] | None:
    """The regular expression of a pattern, and whether it takes or (with ``!``) leaves out."""
    from pathspec.patterns.gitignore import GitIgnorePatternError  # most watches have no patterns, and need it not
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    try:
        # Newlines are legal in names, but not in the "." and "$" of these expressions. NUL is in no name.
        compiled = GitIgnoreSpecPattern(pattern.replace("\n", "\0"))
    except GitIgnorePatternError:
        return None
    return None if compiled.regex is None else (compiled.regex, bool(compiled.include))


class _Patterns:
    """One list of gitignore patterns, asked one level of a path at a time, as git does."""

    def __init__(self, name: str, patterns: Iterable[str]) -> None:
        self._compiled: list[tuple[re.Pattern[str], bool, bool, str]] = []
        problems = []
        for text in patterns:
            compiled = _compile(text)
            if compiled is None:
                problems.append(f"{name}: {pattern_problem(text)}; see gitignore(5) for the syntax")
            else:
                regex, verdict = compiled
                self._compiled.append((regex, "ps_d" in regex.groupindex, verdict, text))
        if problems:
            raise ConfigError(problems)
        self._compiled.reverse()

    def __bool__(self) -> bool:
        return bool(self._compiled)

    def speaks(self, path: bytes, directory: bool) -> tuple[bool, str] | None:
        """What the last pattern that matches this very path (not a directory above it) says, and that pattern."""
        text = path.decode("utf-8", "surrogateescape").replace("\n", "\0")
        if directory:
            text += "/"
        for regex, through_directory, verdict, pattern in self._compiled:
            match = regex.search(text)
            if match is None:
                continue
            # "(?P<ps_d>/)" also matches when the pattern fits a directory above; that level was asked already. A
            # pattern without it ("a/**") fits whatever is inside, never the directory itself.
            if through_directory:
                fits = any(match.end() == len(text) for match in regex.finditer(text))
            else:
                fits = not (directory and match.end() == len(text))
            if fits:
                return verdict, pattern
        return None


@dataclass(frozen=True, slots=True)
class _Directory:
    reason: str
    """Why nothing below it is taken; empty: it is entered."""
    included: bool


class Rules:
    """Which paths are taken. Raises ConfigError for patterns that cannot be read."""

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = (), ignore: Iterable[str] = ()) -> None:
        self._include = _Patterns("include", include)
        self._exclude = _Patterns("exclude", exclude)
        self._ignore = _Patterns("ignore", ignore)
        self._plain = not (self._include or self._exclude or self._ignore)
        self._root = _Directory("", not self._include)
        self._directories: dict[bytes, _Directory] = {}

    def takes(self, path: bytes) -> bool:
        """Whether the file at ``path`` is taken."""
        directory, _, name = path.rpartition(b"/")
        return not self._directory(directory).reason and self.takes_in(directory, name)

    def takes_in(self, directory: bytes, name: bytes) -> bool:
        """The same for a file in a directory that is known to be entered."""
        # _is_temporary spelled out: a pass over many files asks this of each.
        if name.endswith(_TEMPORARY_ENDS) or (name.startswith(b".") and _TEMPORARY_DOT_FILE.fullmatch(name)):
            return False
        return self._plain or not self._refusal(directory, name)

    def enters(self, directory: bytes) -> bool:
        """Whether the directory is walked and watched."""
        return not self._directory(directory).reason

    def reason(self, path: bytes) -> str:
        """Why the file at ``path`` is not taken, for people; empty when it is."""
        directory, _, name = path.rpartition(b"/")
        above = self._directory(directory).reason
        if above:
            return above
        if _is_temporary(name, _TEMPORARY_DOT_FILE):
            return f"{shown(name)} is the name of a temporary file"
        return self._refusal(directory, name)

    def _refusal(self, directory: bytes, name: bytes) -> str:
        path = directory + b"/" + name if directory else name
        for patterns, word in ((self._ignore, "ignore"), (self._exclude, "exclude")):
            said = patterns.speaks(path, False) if patterns else None
            if said and said[0]:
                return f"{word} has the pattern {said[1]!r}"
        if self._include:
            said = self._include.speaks(path, False)
            if said and not said[0]:
                return f"include has the pattern {said[1]!r}"
            if not said and not self._directory(directory).included:
                return "no pattern of include matches it"
        return ""

    def _directory(self, path: bytes) -> _Directory:
        # Up to a directory that is known, then down again; a path may be thousands of levels deep.
        unknown = []
        while path and path not in self._directories:
            unknown.append(path)
            path = path.rpartition(b"/")[0]
        verdict = self._directories[path] if path else self._root
        if len(self._directories) + len(unknown) > _CACHED_DIRECTORIES:
            self._directories.clear()
        for below in reversed(unknown):
            verdict = verdict if verdict.reason else self._judge_below(below, verdict)
            self._directories[below] = verdict
        return verdict

    def _judge_below(self, path: bytes, above: _Directory) -> _Directory:
        name = path.rpartition(b"/")[2]
        if _is_temporary(name, _TEMPORARY_DOT):
            return _Directory(f"it is in {shown(path)}, which is the name of a temporary directory", False)
        for patterns, word in ((self._ignore, "ignore"), (self._exclude, "exclude")):
            said = patterns.speaks(path, True) if patterns else None
            if said and said[0]:
                return _Directory(f"it is in {shown(path)}, and {word} has the pattern {said[1]!r}", False)
        said = self._include.speaks(path, True) if self._include else None
        return _Directory("", said[0] if said else above.included)


def walk(root: Root, rules: Rules, start: bytes = b"") -> Iterator[Found]:
    """Every regular file that the rules take, below the directory ``start``."""
    for batch in batches(root, rules, Tally(), start):
        yield from batch


def batches(
    root: Root,
    rules: Rules,
    tally: Tally,
    start: bytes = b"",
    *,
    marker: bytes = b"",
    enter: Callable[[bytes, int], bool] | None = None,
    beat: Callable[[], None] | None = None,
) -> Iterator[list[Found]]:
    """The same in pieces of :data:`BATCH` entries looked at, so that a piece may be empty. See :func:`rows`."""
    for piece in rows(root, rules, tally, start, marker=marker, enter=enter, beat=beat):
        yield [Found(path, Identity(inode, size, mtime_ns)) for path, inode, size, mtime_ns in piece]


def rows(
    root: Root,
    rules: Rules,
    tally: Tally,
    start: bytes = b"",
    *,
    marker: bytes = b"",
    enter: Callable[[bytes, int], bool] | None = None,
    beat: Callable[[], None] | None = None,
) -> Iterator[list[Row]]:
    """The same as plain tuples, of which a pass over a large tree makes very many.

    Each directory is opened beneath the root without following a link, and its descriptor given to ``enter`` before
    it is listed; when that returns False, the directory is left out. A directory that vanished meanwhile is no error;
    one that cannot be listed is tallied, and the rest goes on. OSError is raised for the root alone.

    ``beat`` is called after each answer of the filesystem. With a ``marker``, files below a directory without a file of
    that name (and with none in a directory above) are not found (PRODUCT W4).
    """
    stack = [(start, bool(marker) and bool(start) and has_marker(root, os.path.dirname(start), marker))]
    found: list[Row] = []
    budget = BATCH
    while stack:
        directory, released = stack.pop()
        try:
            descriptor = root.open_directory(directory)
            try:
                if enter is not None and not enter(directory, descriptor):
                    continue
                tally.directories += 1
                released = released or not marker or _lists(descriptor, marker)
                with os.scandir(descriptor) as entries:
                    while True:
                        looked = _sort(islice(entries, budget), directory, rules, tally, stack, found, released, beat)
                        budget -= looked
                        if budget:
                            break
                        yield found
                        found, budget = [], BATCH
            finally:
                os.close(descriptor)
        except OSError as error:
            if not directory:
                raise
            _note_unreadable(tally, directory, error)
    yield found


def _sort(
    entries: Iterable[os.DirEntry[str]],
    directory: bytes,
    rules: Rules,
    tally: Tally,
    stack: list[tuple[bytes, bool]],
    found: list[Row],
    released: bool,
    beat: Callable[[], None] | None,
) -> int:
    """Directories onto the stack, files that are taken into ``found`` unless they are held back; how many entries there
    were. This is where a pass over many files spends its time."""
    prefix = directory + b"/" if directory else b""
    takes, files, looked = rules.takes_in, tally.files, 0
    for entry in entries:
        looked += 1
        if beat is not None:
            beat()
        name = entry.name.encode(_ENCODING, "surrogateescape")
        try:
            if entry.is_dir(follow_symlinks=False):
                if rules.enters(prefix + name):
                    stack.append((prefix + name, released))
                continue
            if not takes(directory, name):
                continue
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue  # it vanished
        if not S_ISREG(status.st_mode):
            tally.links += S_ISLNK(status.st_mode)
            tally.special += not (S_ISLNK(status.st_mode) or S_ISDIR(status.st_mode))
        elif released:
            files += 1
            found.append((prefix + name, status.st_ino, status.st_size, status.st_mtime_ns))
        else:
            tally.held += 1
    tally.files = files
    tally.entries += looked
    return looked


def _note_unreadable(tally: Tally, directory: bytes, error: OSError) -> None:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return  # it vanished, or a link took its place
    tally.unreadable_count += 1
    if len(tally.unreadable) < _TOLD_UNREADABLE:
        tally.unreadable.append((directory, os.strerror(error.errno or 0)))


def has_marker(root: Root, directory: bytes, marker: bytes) -> bool:
    """Whether ``directory`` or one above it, up to the root, holds a file called ``marker``.

    By listing: over NFS a name that was missing a moment ago may be said to be missing for over a minute, while a
    listing shows it at once.
    """
    while True:
        try:
            descriptor = root.open_directory(directory)
        except OSError:
            return False
        try:
            if _lists(descriptor, marker):
                return True
        except OSError:
            return False
        finally:
            os.close(descriptor)
        if not directory:
            return False
        directory = os.path.dirname(directory)


def _lists(descriptor: int, name: bytes) -> bool:
    text = os.fsdecode(name)
    with os.scandir(descriptor) as entries:  # closing it rewinds the descriptor
        return any(entry.name == text for entry in entries)
