"""One mirror: follows its bucket, and releases what is whole. Read :meth:`Follower.look` from top to bottom.

The listing is the truth, what the store remembers is compared with it, and everything that is missing follows from the
difference; so a pass can be cut off anywhere, and the next one goes on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from quaymaster.destinations import disk
from quaymaster.errors import Conflict, IntegrityError, QuaymasterError, StoreError, TransferError, Unreachable
from quaymaster.mirror.plan import Listed, Plan, Wanted, bare, plan
from quaymaster.mirror.release import Ground
from quaymaster.mirror.server import VersionRefused
from quaymaster.mirror.serving import Serving
from quaymaster.mirror.standing import TOLD, Standing, Voice, some
from quaymaster.mirror.whole import NotYet, Whole
from quaymaster.mirror.works import Downloads
from quaymaster.model import Emit, FileVersion, Identity, Job, Level, State, Stored, shown
from quaymaster.store import Downloaded, MirrorUnit, Store

if TYPE_CHECKING:
    from quaymaster.config import Mirror
    from quaymaster.destinations.base import Destination

_STILL = 2
"""Listings in which a version must be the same before it counts as whole, when nothing else says so."""


class Follower:
    """Does nothing until :meth:`look`; its methods are called by one thread, but for ``state``."""

    def __init__(
        self,
        mirror: Mirror,
        store: Store,
        source: Destination,
        ground: Ground,
        downloads: Downloads,
        serving: Serving,
        takes: Callable[[bytes], bool],
        emit: Emit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = mirror.name
        self.state = Standing()
        self._mirror, self._store, self._source, self._ground = mirror, store, source, ground
        self._downloads, self._serving, self._takes = downloads, serving, takes
        self._voice, self._clock = Voice(mirror.name, self.state, emit, clock), clock
        self._plan = Plan({}, [], {})
        self._prefix = f"{mirror.prefix.rstrip('/')}/" if mirror.prefix else ""
        self._seen: dict[bytes, tuple[str, int]] = {}
        self._digest = b""
        self._settled: dict[bytes, MirrorUnit] | None = None
        """How everything stood when nothing was left to do; None: something is."""
        self._cleared = False

    def listed(self, path: bytes) -> Listed | None:
        return self._plan.keys.get(path)

    # -- one pass --

    def look(self) -> None:
        """List the bucket, queue what is missing, release what is whole, remove what is to be removed."""
        try:
            objects = list(self._source.listing(self._prefix))
            with disk.disk_errors(self._mirror.path), self._ground.alone():
                self._follow(objects)
            self._voice.back()
        except TransferError as error:
            self._count(self._store.mirror_units(self.name))
            self._voice.outage(error)

    def _follow(self, objects: Sequence[Stored]) -> None:
        units = self._store.mirror_units(self.name)
        self._clear_once(units)
        if not objects and any(unit.state == "released" for unit in units.values()):
            raise Unreachable("The bucket lists nothing any more", "Nothing is removed; see what became of it")
        self._note_listing(objects)
        if self._settled == units and self._all_there(units):
            self._ground.clear_old(self._mirror.keep_old)
            self._keep_listed(units)
            self._note_mended()
        else:
            self._go_on(units)

    def go_on(self) -> None:
        """Between two listings: release what has become whole since the last one."""
        try:
            with disk.disk_errors(self._mirror.path), self._ground.alone():
                self._go_on(self._store.mirror_units(self.name))
        except TransferError as error:
            self._voice.outage(error)

    def _note_listing(self, objects: Sequence[Stored]) -> None:
        whole = hashlib.sha256()
        for each in objects:
            whole.update(f"{each.key}\0{each.etag}\0{each.size}\n".encode("utf-8", "surrogateescape"))
        again, self._digest = whole.digest() == self._digest, whole.digest()
        if not again:
            self._settled = None
            self._plan = plan(objects, self._prefix, self._mirror.layout, self._takes)
        for path, unit in self._plan.units.items():
            fingerprint, count = self._seen.get(path, ("", 0))
            mine = fingerprint if again else unit.fingerprint()
            self._seen[path] = (mine, count + 1 if mine == fingerprint else 1)
        self._seen = {path: seen for path, seen in self._seen.items() if path in self._plan.units}
        self.state.listed, self.state.bytes = len(objects), sum(each.size for each in objects)

    def _all_there(self, units: Mapping[bytes, MirrorUnit]) -> bool:
        return all(
            self._in_place(wanted)
            for path, wanted in self._plan.units.items()
            if path in units and units[path].state == "released"
        )

    def _in_place(self, wanted: Wanted) -> bool:
        names = {wanted.path} if wanted.directory else {wanted.path, bare(wanted.path, compressed=True)}
        return any(self._ground.has(name, wanted.directory) for name in names)

    def _go_on(self, units: dict[bytes, MirrorUnit]) -> None:
        state = self.state
        waiting, refused = dict[str, str](), dict(self._plan.refused[:TOLD])
        pending: list[Wanted] = []
        for path, wanted in self._plan.units.items():
            why = self._refusal(wanted)
            if why:
                refused[shown(path)] = why
            elif self._is_pending(wanted, units.get(path), waiting):
                pending.append(wanted)
        pending = self._newest(pending, units)
        self._fetch_and_release(pending, units, waiting)
        self._tell_servers(units)
        self._note_mended()
        self._remove(units, self._older(units))
        self._drop_useless(pending, units)
        self._ground.clear_old(self._mirror.keep_old)
        state.waiting, state.refused = some(waiting), some(refused)
        self._count(units)
        state.server = self._serving.trouble
        told = all(unit.checked for unit in units.values() if unit.state == "released")
        leaving = self._mirror.on_delete == "remove" and any(unit.gone_since is not None for unit in units.values())
        self._settled = dict(units) if told and not (waiting or leaving) else None
        if not waiting:  # of versions that were given up half-way, and jobs that were superseded
            self._ground.sweep(lambda: self._jobs_with_files(units))
        self._voice.refused(refused)

    def _count(self, units: Mapping[bytes, MirrorUnit]) -> None:
        self.state.quarantined = some({shown(u.path): u.error for u in units.values() if u.refused})
        self.state.released = sum(unit.state == "released" for unit in units.values())

    def _refusal(self, wanted: Wanted) -> str:
        return wanted.refused or self._serving.refusal(wanted, self._plan)

    def _is_pending(self, wanted: Wanted, known: MirrorUnit | None, waiting: dict[str, str]) -> bool:
        fingerprint = self._fingerprint(wanted)
        if known is None:
            return True
        if known.refused == fingerprint:
            return False
        if known.state != "released":
            return True
        if known.fingerprint == fingerprint and self._in_place(wanted):
            return False
        tags = wanted.tags()
        if known.objects and tags.items() < known.objects.items() and self._in_place(wanted):
            # Nothing is new: it is being removed upstream, one object after the other.
            missing = len(known.objects) - len(tags)
            since = known.gone_since or self._clock()
            if self._mirror.on_delete == "keep" or self._clock() - since < self._mirror.delete_grace:
                self._gone(known, since)
                waiting[shown(wanted.path)] = f"{missing} of its objects are gone upstream; it stays as it was released"
                return False
        return True

    def _fingerprint(self, wanted: Wanted) -> str:
        return self._seen[wanted.path][0] if wanted.path in self._seen else wanted.fingerprint()

    def _newest(self, pending: list[Wanted], units: Mapping[bytes, MirrorUnit]) -> list[Wanted]:
        """Of each model only so many versions, with those that are released."""
        keep = self._mirror.keep_versions
        if keep is None:
            return pending
        paths = [*(w.path for w in pending), *(p for p, u in units.items() if u.state == "released")]
        wanted = {versions[n] for versions in self._versions(paths).values() for n in sorted(versions)[-keep:]}
        return [w for w in pending if not w.version or w.path in wanted]

    def _older(self, units: Mapping[bytes, MirrorUnit]) -> list[bytes]:
        """Released versions, of whose models enough newer ones are released; and those that a crash kept from being
        recorded as such, which are not gone on with."""
        keep = self._mirror.keep_versions
        if keep is None:
            return []
        released = self._versions([path for path, unit in units.items() if unit.state == "released"])
        begun = self._versions([path for path, unit in units.items() if unit.state == "releasing"])
        older = [versions[n] for versions in released.values() for n in sorted(versions)[:-keep]]
        for model, versions in begun.items():
            newest = sorted(released.get(model, {}))[-keep:]
            older += [path for n, path in versions.items() if len(newest) == keep and n < newest[0]]
        return older

    def _versions(self, paths: Sequence[bytes]) -> dict[bytes, dict[int, bytes]]:
        """Model -> version -> path."""
        of: dict[bytes, dict[int, bytes]] = {}
        for path in paths:
            each = Wanted(path, directory=True)
            if each.version and self._plan.keys.get(path) is None:
                of.setdefault(each.model, {})[each.version] = path
        return of

    # -- downloading and releasing --

    def _fetch_and_release(
        self, pending: list[Wanted], units: dict[bytes, MirrorUnit], waiting: dict[str, str]
    ) -> None:
        had = self._store.downloaded(self.name) if pending else {}
        ready: list[tuple[Wanted, dict[bytes, Downloaded]]] = []
        missing: list[Listed] = []
        lacks: dict[bytes, list[bytes]] = {}
        for wanted in pending:
            files, lacking = self._files(wanted, had)
            missing += [wanted.objects[path] for path in lacking]
            lacks[wanted.path] = lacking
            if not lacking:
                ready.append((wanted, files))
        lost = [had[each.path, each.tag] for each in missing if (each.path, each.tag) in had]
        held = self._store.want(self.name, [self._version(each) for each in missing], lost)
        self._store.unlisted(self.name, {path for wanted in pending for path in wanted.objects})
        if missing:
            queued = self._store.counts().get(self.name, {}).get(State.QUEUED, (0, 0))[0]
            self._downloads.wake(queued)
        for wanted in pending:
            if lacking := lacks[wanted.path]:
                waiting[shown(wanted.path)] = _why_missing(lacking, held, len(wanted.objects))
        for wanted, files in ready:
            try:
                units[wanted.path] = self._release(wanted, files, units.get(wanted.path), had)
            except NotYet as why:
                waiting[shown(wanted.path)] = str(why)
            except Conflict as error:
                waiting[shown(wanted.path)] = str(error)
                self._voice.failing(shown(wanted.path), error)

    def _files(
        self, wanted: Wanted, had: Mapping[tuple[bytes, int], Downloaded]
    ) -> tuple[dict[bytes, Downloaded], list[bytes]]:
        """Verified files of a unit by their targets, and the paths of objects that have none."""
        found = {path: had[path, each.tag] for path, each in wanted.objects.items() if (path, each.tag) in had}
        kept = self._ground.kept(list(found.values()))
        lacking = [path for path in wanted.objects if path not in found or found[path].target not in kept]
        return {each.target: each for each in found.values()}, lacking

    def _version(self, listed: Listed) -> FileVersion:
        stored = listed.stored
        return FileVersion(self.name, listed.path, Identity(listed.tag, stored.size, round(stored.mtime * 1e6) * 1000))

    def _release(
        self,
        wanted: Wanted,
        files: dict[bytes, Downloaded],
        known: MirrorUnit | None,
        had: Mapping[tuple[bytes, int], Downloaded],
    ) -> MirrorUnit:
        """Raises NotYet, TransferError."""
        fingerprint = self._fingerprint(wanted)
        path = _target(wanted, files)
        if len(files) < len(wanted.objects):
            return self._refuse(wanted, known, "two of its objects are the same file, once expanded")
        try:
            still = self._seen.get(wanted.path, ("", 0))[1] >= _STILL
            Whole(self._mirror, self._plan, self._ground, had).require(wanted, files, still=still)
        except IntegrityError as error:
            if not still:  # it may just be on its way: the new files before their manifest
                raise NotYet(f"{error}; it is refused if it is the same in the next listing") from None
            return self._refuse(wanted, known, str(error), error.code)
        now = replace(known or MirrorUnit(wanted.path, "none"), gone_since=None)
        went_on = now.state == "releasing" and self._ground.went_on(files, now.old.encode())
        ours = now.state in ("released", "releasing")
        if not went_on and not ours and self._ground.has(path, wanted.directory):
            went_on = self._ground.same_as_released(path, files, wanted.directory)
        if went_on:
            now = replace(now, old=now.old if self._ground.has_old(now.old.encode()) else "")
        else:
            self._ground.discard(now.old.encode())
            assembled = self._ground.assemble(path, files, wanted.directory)
            now = replace(now, state="releasing", old=assembled.decode())
            self._store.put_unit(self.name, now)
            try:
                if not self._ground.publish(assembled, path, replace=ours):
                    now = replace(now, old="")
            except Conflict:
                self._store.put_unit(self.name, replace(known or MirrorUnit(wanted.path, "none")))
                raise
        return self._released(wanted, files, replace(now, fingerprint=fingerprint), known)

    def _released(
        self, wanted: Wanted, files: dict[bytes, Downloaded], now: MirrorUnit, known: MirrorUnit | None
    ) -> MirrorUnit:
        unit = replace(
            now, state="released", objects=wanted.tags(), at=self._clock(), checked=False, refused="", error=""
        )
        size = sum(file.size for file in files.values())
        said = {"files": {shown(f.target): f.sha256 for f in files.values()}, "bytes": size}
        self._store.put_unit(self.name, unit, "released", said)
        self._ground.drop([file.job for file in files.values()])
        self._forget_others(wanted, known)
        number = f"{len(files):,} files" if len(files) != 1 else "1 file"
        self._voice.say("released", f"released: {number}, {size:,} bytes", Level.NOTICE, wanted.path)
        return unit

    def _forget_others(self, wanted: Wanted, known: MirrorUnit | None) -> None:
        """What an earlier release was made of, and this one is not."""
        others = [(p, tag) for p, tag in (known.objects if known else {}).items() if wanted.tags().get(p) != tag]
        if others:
            self._store.forget_mirrored(self.name, others)

    def _refuse(self, wanted: Wanted, known: MirrorUnit | None, why: str, code: str = "") -> MirrorUnit:
        unit = replace(known or MirrorUnit(wanted.path, "none"), refused=self._fingerprint(wanted), error=why)
        self._store.put_unit(self.name, unit, "quarantined", {"error": why, "code": code})
        self._voice.say("quarantined", f"not released: {why}", Level.ERROR, wanted.path, "quarantined")
        return unit

    # -- model servers --

    def _tell_servers(self, units: dict[bytes, MirrorUnit]) -> None:
        """Those that are not told yet: after a release, and while the server does not answer."""
        self._keep_listed(units)
        for path, unit in list(units.items()):
            if unit.state != "released" or unit.checked:
                continue
            try:
                self._serving.tell(unit, units)
            except VersionRefused as error:
                units[path] = self._put_back(unit, error)
                continue
            except TransferError as error:
                self._serving.trouble = str(error)
                self._voice.failing("server", error)
                continue
            units[path] = replace(unit, checked=True, old="")
            self._store.put_unit(self.name, units[path])

    def _keep_listed(self, units: Mapping[bytes, MirrorUnit]) -> None:
        self._serving.trouble = ""
        try:
            self._serving.keep_listed(units)
        except TransferError as error:
            self._serving.trouble = str(error)
            self._voice.failing("server", error)
        self.state.server = self._serving.trouble

    def _note_mended(self) -> None:
        if not self._serving.trouble:
            self._voice.mended("server")

    def _put_back(self, unit: MirrorUnit, error: QuaymasterError) -> MirrorUnit:
        had = self._ground.has_old(unit.old.encode())
        where = self._ground.quarantine(unit.path, unit.old.encode() if had else b"")
        back = replace(
            unit, state="released" if had else "none", objects={}, fingerprint="", old="", checked=True,
            refused=unit.fingerprint, error=str(error),
        )  # fmt: skip
        self._store.put_unit(self.name, back, "quarantined", {"error": str(error), "where": where})
        kept = "the version before is in place again" if had else "nothing was there before"
        self._voice.say("quarantined", f"{error} It is in {where}; {kept}", Level.ERROR, unit.path, error.code)
        with suppress(TransferError):  # told again at the next pass
            self._serving.after_removal(unit, here=had)
        return back

    def preview(self) -> list[tuple[bytes, str, int]]:
        """What a pass would do: (unit, what, bytes to download). Changes nothing. Raises TransferError, StoreError."""
        objects = list(self._source.listing(self._prefix))
        units = self._store.mirror_units(self.name)
        self._note_listing(objects)
        had = self._store.downloaded(self.name)
        found = []
        for path, wanted in self._plan.units.items():
            known = units.get(path)
            size = sum(e.stored.size for e in wanted.objects.values() if (e.path, e.tag) not in had)
            if why := self._refusal(wanted):
                found.append((path, f"refused: {why}", 0))
            elif known and known.refused == self._fingerprint(wanted):
                found.append((path, f"quarantined: {known.error}", 0))
            elif known is None or known.state != "released":
                found.append((path, "new", size))
            elif known.fingerprint != self._fingerprint(wanted) or not self._in_place(wanted):
                found.append((path, "changed", size))
        found += [(key.encode("utf-8", "surrogateescape"), f"refused: {why}", 0) for key, why in self._plan.refused]
        return found + [(path, "gone upstream", 0) for path in units if path not in self._plan.units]

    def retry_quarantined(self) -> list[bytes]:
        """An operator's word: what was not taken is tried again at the next pass."""
        units = [unit for unit in self._store.mirror_units(self.name).values() if unit.refused]
        for unit in units:
            self._store.put_unit(self.name, replace(unit, refused="", error=""))
        return [unit.path for unit in units]

    # -- removing --

    def _gone(self, unit: MirrorUnit, since: float) -> None:
        if unit.gone_since is None:
            self._store.put_unit(self.name, replace(unit, gone_since=since))

    def _remove(self, units: dict[bytes, MirrorUnit], older: Sequence[bytes]) -> None:
        now = self._clock()
        for path, unit in list(units.items()):
            here = path in self._plan.units
            if here and path not in older:
                if unit.gone_since is not None and self._plan.units[path].tags().items() >= unit.objects.items():
                    units[path] = replace(unit, gone_since=None)
                    self._store.put_unit(self.name, units[path])
                continue
            if path not in older:
                since = unit.gone_since if unit.gone_since is not None else now
                self._gone(unit, since)
                units[path] = replace(unit, gone_since=since)
                if self._mirror.on_delete == "keep" or now - since < self._mirror.delete_grace:
                    continue
            self._take_away(units, unit, "newer versions are released" if path in older else "it is gone upstream")

    def _take_away(self, units: dict[bytes, MirrorUnit], unit: MirrorUnit, why: str) -> None:
        rest = {path: each for path, each in units.items() if path != unit.path}
        try:
            self._serving.before_removal(unit, rest)
        except TransferError as error:
            self._serving.trouble = str(error)
            self._voice.failing("server", error)
            return
        if unit.state == "releasing":
            self._ground.discard(unit.old.encode())
        if unit.state != "none":
            directory = unit.objects.keys() != {unit.path}
            names = [unit.path] if directory else [unit.path, bare(unit.path, compressed=True)]
            if not any(path.startswith(unit.path + b"/") for path in rest):
                for name in names:
                    if self._ground.has(name, directory):
                        self._ground.withdraw(name)
            self._voice.say("mirror-removed", f"removed: {why}", Level.NOTICE, unit.path)
        self._store.forget_mirrored(self.name, list(unit.objects.items()), unit.path)
        del units[unit.path]

    def _drop_useless(self, pending: Sequence[Wanted], units: Mapping[bytes, MirrorUnit]) -> None:
        """What was downloaded for a version that was refused, or that newer ones have made superfluous."""
        used = {pair for unit in units.values() for pair in unit.objects.items()}
        left = (w for w in pending if w.path not in units or units[w.path].refused != self._fingerprint(w))
        used |= {pair for wanted in left for pair in wanted.tags().items()}
        useless = {pair: job for pair, job in self._store.download_jobs(self.name).items() if pair not in used}
        if useless:
            self._ground.drop(list(useless.values()))
            self._store.forget_mirrored(self.name, list(useless))

    def _clear_once(self, units: Mapping[bytes, MirrorUnit]) -> None:
        """After a start: what nobody will go on with is removed."""
        if self._cleared:
            with self._ground.objects():
                return
        keep = {unit.old.encode() for unit in units.values() if unit.old}
        with disk.disk_errors(self._mirror.path):
            self._ground.clear(keep)
            self._ground.sweep(lambda: self._jobs_with_files(units))
            self._ground.clear_old(self._mirror.keep_old)
        self._cleared = True

    def _jobs_with_files(self, units: Mapping[bytes, MirrorUnit]) -> set[int]:
        """Those that download, or whose files are not released yet."""
        open_ones = set(self._store.open_of(self.name))
        done = {pair for unit in units.values() if unit.state == "released" for pair in unit.objects.items()}
        return open_ones | {job for pair, job in self._store.download_jobs(self.name).items() if pair not in done}


def _target(wanted: Wanted, files: Mapping[bytes, Downloaded]) -> bytes:
    """Where it is released: a file by itself may have been compressed."""
    return wanted.path if wanted.directory else next(iter(files))


def _why_missing(lacking: Sequence[bytes], held: Mapping[bytes, Job], of: int) -> str:
    stuck = [held[path] for path in lacking if path in held]
    text = f"{len(lacking):,} of {of:,} objects are to be downloaded"
    if stuck:
        text += f"; job {stuck[0].id} is {stuck[0].state}: {stuck[0].error}"
    return text


__all__ = ["Follower", "StoreError"]
