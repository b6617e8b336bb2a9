"""One look over a watch's files, for a pass that begins and ends (PRODUCT I1): the walker and rules of the service,
and of its settling (settle.py) the part that needs no waiting.

A file that changed within the quiet time, or that a program has open for writing where a lease can tell, is left out
and counted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from quaymaster.errors import QuaymasterError
from quaymaster.intake.observe import Looks
from quaymaster.intake.scan import Row, Rules, Tally, has_marker, rows
from quaymaster.intake.settle import Policy, Writer
from quaymaster.source import Root, source_error

CHUNK = 50_000
"""Files compared with the ledger at once: what a pass holds in memory."""


@dataclass(frozen=True, slots=True)
class Narrow:
    """What of a watch is looked at. Paths are relative to it."""

    files: Sequence[bytes] | None = None
    """These, and no others. None: as the directories say."""
    directories: Sequence[bytes] | None = None
    """What is below these. None: everything."""
    types: tuple[bytes, ...] = ()
    """Ends of names, such as ``.fastq``; empty: all."""

    def takes(self, path: bytes) -> bool:
        return not self.types or path.endswith(self.types)


@dataclass(frozen=True, slots=True)
class Problem:
    """A file or directory that was asked for and cannot be taken."""

    path: bytes
    code: str
    text: str


@dataclass(slots=True)
class Survey:
    """``wall_ns`` is the time now."""

    root: Root
    rules: Rules
    policy: Policy
    marker: bytes
    narrow: Narrow
    wall_ns: int
    within: tuple[bytes, bytes] = (b"", b"")
    """Of the whole tree only what is in these entries of the top: from the first on, and before the second (b"": to the
    end)."""
    tally: Tally = field(default_factory=Tally)
    writing: list[bytes] = field(default_factory=list)
    """Files that are still being written."""
    problems: list[Problem] = field(default_factory=list)

    def chunks(self) -> Iterator[list[Row]]:
        """Every file once, about :data:`CHUNK` at a time. OSError is raised for the root alone."""
        chunk: list[Row] = []
        for piece in self._pieces():
            chunk += [row for row in piece if self.narrow.takes(row[0])] if self.narrow.types else piece
            if len(chunk) >= CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        for path, why in self.tally.unreadable:
            self._problem(path, "permission-denied", f"{self.root.shown(path)} cannot be listed ({why})")

    def whole(self, found: Sequence[Row]) -> list[Row]:
        """Those of these files that nobody is writing any more, as they are now."""
        taken = []
        with Looks(self.root, leases=self.policy.leases, wall_ns=self.wall_ns) as looks:
            for row in sorted(found):
                if (now := self._look(looks, row[0])) is not None:
                    taken.append(now)
        return taken

    def _look(self, looks: Looks, path: bytes) -> Row | None:
        try:
            seen = looks.look(path)
        except OSError as error:
            trouble = source_error(error, self.root.shown(path))
            self._problem(path, trouble.code, str(trouble))
            return None
        except QuaymasterError as error:
            self._problem(path, error.code, str(error))
            return None
        identity = seen.identity
        if identity is None:
            return None  # it was removed meanwhile
        quiet = seen.age is not None and seen.age >= self.policy.quiet(identity.size)
        # A time in the future tells nothing; that nobody has it open for writing does.
        ahead = seen.age is not None and seen.age < 0 and seen.writer is Writer.NONE
        if seen.writer is Writer.OPEN or not (quiet or ahead):
            self.writing.append(path)
            return None
        return path, identity.inode, identity.size, identity.mtime_ns

    # -- what there is --

    def _pieces(self) -> Iterator[list[Row]]:
        if self.narrow.files is None and self.narrow.directories is None:
            enter = None if self.within == (b"", b"") else lambda directory, _: not directory or self._mine(directory)
            for piece in rows(self.root, self.rules, self.tally, marker=self.marker, enter=enter):
                # In the directory at the top the files of the other part are listed too.
                yield piece if enter is None else [row for row in piece if b"/" in row[0] or self._mine(row[0])]
            return
        for directory in self._outermost(self.narrow.directories or ()):
            if self._can_enter(directory):
                yield from rows(self.root, self.rules, self.tally, directory, marker=self.marker)
        named = [row for path in dict.fromkeys(self.narrow.files or ()) if (row := self._named(path)) is not None]
        if named:
            yield named

    def _mine(self, path: bytes) -> bool:
        first, last = self.within
        top = path.partition(b"/")[0]
        return first <= top and (not last or top < last)

    def _outermost(self, directories: Sequence[bytes]) -> list[bytes]:
        """Without those that lie inside another one, so that no file comes twice."""
        kept: list[bytes] = []
        for directory in sorted(set(directories), key=lambda path: path + b"/" if path else b""):
            if not kept or not _is_within(directory, kept[-1]):
                kept.append(directory)
        return kept

    def _can_enter(self, directory: bytes) -> bool:
        shown = self.root.shown(directory)
        if directory and not self.rules.enters(directory):
            why = self.rules.reason(directory + b"/x")
            self._problem(directory, "left-out", f"{shown} is not taken: {why}")
            return False
        try:
            os.close(self.root.open_directory(directory))
        except OSError as error:
            trouble = source_error(error, shown)
            self._problem(directory, trouble.code, str(trouble))
            return False
        return True

    def _named(self, path: bytes) -> Row | None:
        """A file of the list; it is reported when it is not there, not taken, or no file."""
        shown = self.root.shown(path)
        if any(_is_within(path, directory) for directory in self.narrow.directories or ()):
            return None  # it came with its directory
        if not path or not self.rules.takes(path):
            why = self.rules.reason(path) if path else "it is the watched directory itself"
            self._problem(path, "left-out", f"{shown} is not taken: {why}")
            return None
        try:
            folder, name = os.path.split(path)
            descriptor = self.root.open_directory(folder)
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            finally:
                os.close(descriptor)
        except OSError as error:
            trouble = source_error(error, shown)
            text = f"{shown} does not exist" if trouble.code == "source-vanished" else str(trouble)
            self._problem(path, trouble.code, text)
            return None
        if not stat.S_ISREG(status.st_mode):
            what = "a directory: name it with --dirs-from" if stat.S_ISDIR(status.st_mode) else "no regular file"
            self._problem(path, "source-refused", f"{shown} is {what}")
            return None
        if self.marker and not has_marker(self.root, folder, self.marker):
            self.tally.held += 1
            return None
        self.tally.files += 1
        return path, status.st_ino, status.st_size, status.st_mtime_ns

    def _problem(self, path: bytes, code: str, text: str) -> None:
        self.problems.append(Problem(path, code, text))


def _is_within(path: bytes, directory: bytes) -> bool:
    return not directory or path == directory or path.startswith(directory + b"/")
