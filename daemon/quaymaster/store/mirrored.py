"""What the store remembers of mirrors: what was downloaded, and the units that stand on the disk (PRODUCT M)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quaymaster.model import FileVersion, Job
from quaymaster.store import custody, jobs, mirrors
from quaymaster.store.custody import Entry
from quaymaster.store.mirrors import Downloaded, MirrorUnit
from quaymaster.store.room import Room


class Mirrored(Room):
    def declare(self, mirrors_named: Iterable[str], watches_named: Iterable[str]) -> None:
        """Which names stand for mirrors and which for watches. Raises StoreError for one that was the other before."""
        self._db.write(lambda t: mirrors.declare(t, mirrors_named, watches_named))

    def mirrors(self) -> set[str]:
        """Names that stand for mirrors."""
        with self._db.read() as t:
            return mirrors.names(t)

    def downloaded(self, mirror: str) -> dict[tuple[bytes, int], Downloaded]:
        """What a mirror has downloaded and verified: (path, tag) -> what it is."""
        with self._db.read() as t:
            return mirrors.downloaded(t, mirror)

    def download_jobs(self, mirror: str) -> dict[tuple[bytes, int], int]:
        """The same, but their jobs alone: for very many of them."""
        with self._db.read() as t:
            return mirrors.numbers(t, mirror)

    def want(self, mirror: str, versions: Sequence[FileVersion], lost: Sequence[Downloaded] = ()) -> dict[bytes, Job]:
        """Queue these objects, of which ``lost`` were downloaded before; path -> the job of each that waits for a retry
        or an operator, or was given up. What was downloaded meanwhile is not queued again."""
        if not versions:
            return {}
        return self._db.write(lambda t: mirrors.wanted(t, mirror, versions, lost, self._clock()))

    def unlisted(self, mirror: str, paths: set[bytes]) -> int:
        """Supersede open jobs of all objects but these; how many."""
        return self._db.write(lambda t: mirrors.left_over(t, mirror, paths, self._clock()))

    def download_done(self, job: Job, done: Downloaded, details: Mapping[str, Any]) -> None:
        """An object is on the disk and verified: recorded, told in the custody log, and its job is done."""

        def act(t: Any) -> None:
            mirrors.record(t, job.version.watch, done)
            self._note(t, "downloaded", job, details)
            jobs.finish(t, [job.id], self._clock())

        self._db.write(act)

    def mirror_units(self, mirror: str) -> dict[bytes, MirrorUnit]:
        with self._db.read() as t:
            return mirrors.units(t, mirror)

    def told_of(self, watch: str, paths: Iterable[bytes]) -> list[Entry]:
        """The custody log's entries about these paths that belong to no job: releases and removals of a mirror."""
        with self._db.read() as t:
            return custody.of_paths(t, watch, paths)

    def put_unit(self, mirror: str, unit: MirrorUnit, kind: str = "", details: Mapping[str, Any] | None = None) -> None:
        """Remember how a unit of a mirror stands; with ``kind`` it is told in the custody log."""

        def act(t: Any) -> None:
            mirrors.put_unit(t, mirror, unit)
            if kind:
                said = {**(details or {}), "mirror": mirror}
                custody.append(t, kind, self._clock(), watch=mirror, path=unit.path, details=said)

        self._db.write(act)

    def forget_mirrored(self, mirror: str, objects: Sequence[tuple[bytes, int]], unit: bytes = b"") -> None:
        """Nothing uses these objects any more; with ``unit``, that was removed."""

        def act(t: Any) -> None:
            mirrors.forget(t, mirror, unit, objects)
            if unit:
                custody.append(t, "removed", self._clock(), watch=mirror, path=unit, details={})

        self._db.write(act)
