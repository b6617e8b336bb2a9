"""Looking at units: which there are below a watch, and whether one is whole (PRODUCT W5).

The scan of a unit's directory is the truth: it is whole when what says so is there, and queue or ledger have every
file of it as it is now. By listing throughout, as over NFS a name that was missing a moment ago may be said to be
missing for a minute.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quaymaster.config.runs import Layout, path_matches
from quaymaster.intake.attend import Known
from quaymaster.intake.observe import Looks
from quaymaster.intake.scan import Found, Rules, Tally, batches
from quaymaster.intake.settle import Policy, Writer
from quaymaster.model import shown
from quaymaster.source import Pulse, Root

if TYPE_CHECKING:
    from quaymaster.config import Watch

_TOLD = 3
"""Names in a message, of files that something is missing of."""


@dataclass(slots=True)
class Seen:
    """What a scan of one unit found."""

    files: int = 0
    unsettled: int = 0
    """Files that queue and ledger do not have as they are now, or that still change."""
    examples: list[bytes] = field(default_factory=list)
    trouble: str = ""
    """Why not all of it could be seen."""

    def waits_for(self) -> str:
        """What keeps it from being whole, for people; empty: nothing."""
        if self.trouble or not self.unsettled:
            return self.trouble
        named = ", ".join(shown(path) for path in self.examples)
        return f"{self.unsettled:,} file{'s' * (self.unsettled != 1)} not settled yet ({named})"


class Eyes:
    """Looks at the units of one watch. Every method raises OSError when the watched directory cannot be read."""

    def __init__(self, watch: Watch, root: Root, known: Known, pulse: Pulse) -> None:
        self._watch, self._root, self._known, self._pulse = watch, root, known, pulse
        self._rules = Rules(watch.include, watch.exclude, watch.ignored)

    def directories(self) -> Iterator[bytes]:
        """Every directory that is a unit."""
        layout = self._watch.layout
        levels = [b""]
        for depth in range(1, layout.depth + 1):
            levels = [path for above in levels for path in self._below(above, layout) if self._rules.enters(path)]
            if depth == layout.depth:
                yield from levels

    def _below(self, above: bytes, layout: Layout) -> list[bytes]:
        found = []
        for name, is_directory in self._listed(above):
            path = above + b"/" + name if above else name
            if is_directory and layout.leads_to(path.split(b"/")):
                found.append(path)
        return sorted(found)

    def _listed(self, directory: bytes) -> list[tuple[bytes, bool]]:
        """Names in a directory, and whether each is a directory itself. What cannot be listed, below the root, is
        empty: the scan of the unit says so."""
        with self._pulse:
            try:
                descriptor = self._root.open_directory(directory)
            except OSError:
                if directory:
                    return []
                raise
            try:
                with os.scandir(descriptor) as entries:
                    return [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in entries]
            except OSError:
                if directory:
                    return []
                raise
            finally:
                os.close(descriptor)

    def is_there(self, unit: bytes) -> bool:
        with self._pulse, suppress(OSError):
            os.close(self._root.open_directory(unit))
            return True
        above, _, name = unit.rpartition(b"/")
        return (name, True) in self._listed(above)

    def fitting(self, unit: bytes, patterns: Sequence[str], gone: Callable[[], Iterable[bytes]]) -> list[str]:
        """Those of these patterns (relative to the unit) that a regular file fits. ``gone`` gives paths of files that
        were there, and were removed after their delivery."""
        there = [pattern for pattern in patterns if any(self._fits(unit, pattern.split("/")))]
        if len(there) < len(patterns) and self._watch.after != "keep":
            below = len(unit) + 1
            for path in gone():
                there += [p for p in patterns if p not in there and path_matches(path[below:], p)]
        return there

    def _fits(self, directory: bytes, levels: Sequence[str]) -> Iterator[bool]:
        for name, is_directory in self._listed(directory):
            if not path_matches(name, levels[0]):
                continue
            path = directory + b"/" + name
            if len(levels) > 1 and is_directory:
                yield from self._fits(path, levels[1:])
            elif len(levels) == 1 and not is_directory and self._is_file(path):
                yield True

    def _is_file(self, path: bytes) -> bool:
        try:
            with self._pulse:
                mode = os.lstat(os.path.join(os.fsencode(self._root.path), path)).st_mode
        except OSError:
            return False
        return stat.S_ISREG(mode)

    def scan(self, unit: bytes, stopping: Callable[[], bool]) -> Seen:
        """Whether queue or ledger have every file of a unit as it is now."""

        def unknown(found: list[Found]) -> list[bytes]:
            with self._pulse.elsewhere():
                had = self._known(self._watch.name, found)
            return [file.path for file, has in zip(found, had, strict=True) if not has]

        return self._scan(unit, unknown, stopping)

    def settled(self, unit: bytes, policy: Policy, wall_ns: int, stopping: Callable[[], bool]) -> Seen:
        """Whether every file of a unit is quiet and written by nobody, known or not (upload = "unit")."""

        def moving(found: list[Found]) -> list[bytes]:
            with Looks(self._root, leases=policy.leases, wall_ns=wall_ns) as looks:
                return [file.path for file in found if not _is_quiet(looks, file, policy)]

        return self._scan(unit, moving, stopping)

    def _scan(self, unit: bytes, lacking: Callable[[list[Found]], list[bytes]], stopping: Callable[[], bool]) -> Seen:
        seen, tally = Seen(), Tally()
        with self._pulse:
            for piece in batches(self._root, self._rules, tally, unit, beat=self._pulse.beat):
                if not piece:
                    continue
                missing = lacking(piece)
                seen.unsettled += len(missing)
                seen.examples += missing[: _TOLD - len(seen.examples)]
                if stopping():
                    seen.trouble = "the service stops"
                    return seen
        seen.files = tally.files
        if tally.unreadable:
            path, why = tally.unreadable[0]
            more = f" and {tally.unreadable_count - 1:,} more" if tally.unreadable_count > 1 else ""
            seen.trouble = f"the directory {shown(path)}{more} cannot be listed ({why})"
        return seen


def _is_quiet(looks: Looks, file: Found, policy: Policy) -> bool:
    try:
        now = looks.look(file.path)
    except Exception:
        return True  # what cannot be taken does not hold the others up: the service says so when it comes to it
    if now.identity is None or now.writer is Writer.OPEN:
        return now.identity is None
    return now.age is not None and (now.age >= policy.quiet(now.identity.size) or now.age < 0)


__all__ = ["Eyes", "Seen"]
