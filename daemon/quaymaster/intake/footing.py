"""Whether a directory still stands on what it stood on, over restarts too (PRODUCT W6).

When a share is not mounted, the directory below its mount point shows through, usually empty. That is an outage, never
a directory whose files were removed, and nothing may be written there either. So what a directory stands on is
remembered, and anything else in its place is refused until it is back or an operator says that it is right:
``quaymaster accept NAME``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quaymaster.errors import SourceUnavailable
from quaymaster.intake.mounts import Filesystem, Ground, Mark, filesystem_of, is_within, read_mountinfo, survey

if TYPE_CHECKING:
    from quaymaster.config import Watch

ACCEPTED = "accepted"
"""The key of what an operator leaves in the memory: what comes next is right."""

_NOT_SETTLED = ("unknown", "autofs")
"""Of these nothing is remembered: no mount table, or a share that is mounted when it is entered."""


@dataclass(frozen=True, slots=True)
class _Known:
    path: str
    mark: Mark
    populated: bool

    @classmethod
    def of_body(cls, body: Mapping[str, Any]) -> _Known | None:
        mark = Mark.of_body(body)
        return None if mark is None else cls(str(body.get("path", "")), mark, bool(body.get("populated")))

    def body(self) -> dict[str, Any]:
        return {**self.mark.body(), "path": self.path, "populated": self.populated}


class Memory:
    """What one directory is remembered to stand on. ``recall`` and ``remember`` are durable; an empty answer means that
    nothing was kept. Both may raise StoreError. ``name`` is what ``quaymaster accept`` is to be given."""

    def __init__(
        self,
        name: str,
        path: str,
        recall: Callable[[], Mapping[str, Any]] = dict,
        remember: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self._advice = f"Mount it as before; if this change is right: quaymaster accept {name}"
        self._path, self._recall, self._remember = path, recall, remember
        self._known: _Known | None = None

    @property
    def populated(self) -> bool:
        """Whether anything was ever seen in it."""
        return self._known is not None and self._known.populated

    def recall(self) -> None:
        """Read again what is remembered, and whether an operator has accepted a change."""
        if body := self._recall():
            self._known = _Known.of_body(body)

    def require_mount(self, mountinfo: str) -> None:
        """Raise SourceUnavailable when the filesystem is not mounted. Asks the mount table alone."""
        if self._known is None:
            return
        was, now = self._known.mark, filesystem_of(self._known.path, mountinfo)
        if now.mount_point == was.mount_point or not is_within(was.mount_point, now.mount_point):
            return
        if not (now.network and was.is_same(Mark(now.type, now.device, now.mount_point, now.device))):
            raise self._refusal(f"{self._path} is not mounted: it was the {was}; now it is the {now}")

    def require_same(self, mark: Mark) -> None:
        """Raise SourceUnavailable when it stands on another filesystem than before."""
        if self._known is None or self._known.mark.is_same(mark):
            return
        was = self._known.mark
        what = "is not mounted" if mark.type == "autofs" else "is not on the same filesystem as before"
        raise self._refusal(f"{self._path} {what}: it was the {was}; now it is the {mark}")

    def require_content(self) -> None:
        """To be called when nothing at all is in it. Raises SourceUnavailable if something ever was."""
        if self.populated:
            raise self._refusal(f"{self._path} is empty, and was not before: it looks like a share without its files")

    def note(self, path: str, filesystem: Filesystem, mark: Mark, *, populated: bool) -> None:
        """Remember what it stands on. An empty directory on a local disk is not worth it: what is mounted there later
        is welcome."""
        if filesystem.type in _NOT_SETTLED or not (populated or filesystem.network):
            return
        now = _Known(path, mark, populated or self.populated)
        if now != self._known:
            self._remember(now.body())
            self._known = now

    def _refusal(self, what: str) -> SourceUnavailable:
        return SourceUnavailable(what, self._advice)


class Footing:
    """Of one watch. :meth:`stand` and :meth:`scanned` belong to the watch's thread."""

    def __init__(self, watch: Watch, memory: Memory) -> None:
        self._watch, self._memory = watch, memory
        self._sure = False
        self._ground: Ground | None = None

    def stand(self) -> Ground:
        """What the watch stands on, looked at now. Raises SourceUnavailable while that is not what it was."""
        sure, self._sure = self._sure, False
        if not sure:
            self._memory.recall()
        ground = self.look(inside=not sure)
        if ground.empty and self._must_have_content(ground):
            self._memory.require_content()
        populated = ground.empty is False
        self._memory.note(ground.path, ground.filesystem, ground.mark, populated=populated)
        self._sure, self._ground = True, ground
        return ground

    def look(self, *, inside: bool = False) -> Ground:
        """The same without remembering anything; for any thread."""
        watch = self._watch
        table = read_mountinfo()
        self._memory.require_mount(table)
        ground = survey(watch.path, table, sentinel=watch.sentinel or "", inside=inside)
        if ground.filesystem.type == "autofs":  # looking has mounted it
            ground = survey(watch.path, read_mountinfo(), sentinel=watch.sentinel or "", inside=inside)
        self._memory.require_same(ground.mark)
        if not ground.has_sentinel:
            raise SourceUnavailable(
                f"{watch.path} does not hold its sentinel {watch.sentinel}, so it counts as not mounted",
                "Mount what belongs there, or make the sentinel file on it",
            )
        return ground

    def scanned(self, entries: int) -> None:
        """A full scan came across so many directory entries of any kind. Raises SourceUnavailable when there was
        nothing at all where something had been."""
        ground = self._ground
        if ground is None:
            return
        if entries and not self._memory.populated:
            self._memory.note(ground.path, ground.filesystem, ground.mark, populated=True)
        elif not entries and self._must_have_content(ground):
            self._sure = False
            self._memory.require_content()

    def _must_have_content(self, ground: Ground) -> bool:
        """A local directory may be emptied by anybody, and so may one whose files we remove ourselves. With a sentinel
        there is nothing to guess."""
        return ground.network and self._watch.after == "keep" and not self._watch.sentinel
