"""Whether all of a version has arrived, and is what its manifest says (PRODUCT M2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quaymaster.errors import IntegrityError
from quaymaster.mirror import manifest
from quaymaster.mirror.plan import Listed, Plan, Wanted
from quaymaster.mirror.release import Ground
from quaymaster.model import shown
from quaymaster.store import Downloaded

if TYPE_CHECKING:
    from quaymaster.config import Mirror


class NotYet(Exception):
    """Why a unit cannot be released now."""


@dataclass(frozen=True, slots=True)
class Whole:
    """``had``: every object that was downloaded and verified."""

    mirror: Mirror
    plan: Plan
    ground: Ground
    had: Mapping[tuple[bytes, int], Downloaded]

    def require(self, wanted: Wanted, files: Mapping[bytes, Downloaded], *, still: bool) -> None:
        """``files``: those of the unit by their targets. ``still``: the last listings had the same objects. Raises
        NotYet, and IntegrityError when something is not what its manifest says, or proven by nothing."""
        marker = self.mirror.marker.encode() if self.mirror.marker else b""
        if marker and wanted.directory and not self._beside(wanted, (marker,)):
            raise NotYet(f"{self.mirror.marker} has not arrived")
        listed = self._manifests(wanted)
        proven: set[bytes] = set()
        for folder, sums in listed:
            proven |= self._compare(wanted, files, {folder + path: sha256 for path, sha256 in sums.items()})
            proven |= {folder + name for name in manifest.NAMES}
        if self.mirror.require_proof:
            for target, file in files.items():
                if not file.evidence and target not in proven:
                    raise IntegrityError(f"nothing tells a digest of {shown(target)}, and require_proof is set")
        if not marker and not listed and wanted.directory and not still:
            raise NotYet("it must be the same in the next listing")

    def _compare(self, wanted: Wanted, files: Mapping[bytes, Downloaded], sums: Mapping[bytes, str]) -> set[bytes]:
        """The targets of the unit that a manifest proves."""
        mine = {p: s for p, s in sums.items() if p.startswith(wanted.path + b"/") or p == wanted.path}
        if absent := [path for path in mine if path not in files]:
            raise NotYet(f"{shown(absent[0])} has not arrived, which its manifest names")
        for path, sha256 in mine.items():
            if files[path].sha256 != sha256:
                raise IntegrityError(f"{shown(path)} is not what its manifest says ({files[path].sha256})")
        return set(mine)

    def _beside(self, wanted: Wanted, names: Sequence[bytes]) -> Listed | None:
        """The object of one of these names in the unit's directory, or in one above it."""
        folder = wanted.path if wanted.directory else wanted.model
        while True:
            for name in names:
                found = self.plan.keys.get(folder + b"/" + name if folder else name)
                if found is not None:
                    return found
            if not folder:
                return None
            folder = folder.rpartition(b"/")[0]

    def _manifests(self, wanted: Wanted) -> list[tuple[bytes, dict[bytes, str]]]:
        found = []
        for name in manifest.NAMES:
            listed = self._beside(wanted, (name,))
            if listed is None or listed.path == wanted.path:
                continue
            file = self.had.get((listed.path, listed.tag))
            if file is None or not self.ground.kept([file]):
                raise NotYet(f"{shown(listed.path)} has not arrived")
            content = self.ground.content(file, manifest.LARGEST)
            found.append((listed.path[: -len(name)], manifest.parse(name, content)))
        return found
