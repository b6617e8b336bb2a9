"""What of a pass's files is at the destinations already (PRODUCT I2).

    key listed? ──no──► send
        │ yes: ours by the ledger? ──yes──► send (it takes the place of the older version)
        │ no
        ├─ size differs, no compression ──► conflict
        └─ metadata of ours, else digest, else content ──► same: adopt    other: send, or conflict

One paginated listing for each destination; a few files are asked about one by one instead. What cannot be looked at is
sent: the pipeline never overwrites what is not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from quaymaster import keys
from quaymaster.config import Config, Watch
from quaymaster.destinations.base import Destination
from quaymaster.errors import TransferError
from quaymaster.model import Compression, FileVersion, Proof, Stored
from quaymaster.pipeline.adopt import Shelf, copies
from quaymaster.service import build
from quaymaster.source import Root
from quaymaster.store import Store

_FEW = 32
"""Files up to which they are asked about one by one: cheaper than the listing of a large bucket."""
_THREADS = 16


@dataclass(slots=True)
class Verdicts:
    """What a comparison came to."""

    send: list[FileVersion] = field(default_factory=list)
    same: list[FileVersion] = field(default_factory=list)
    """At every destination. Without a store: as far as size and time tell."""
    adopted: list[tuple[FileVersion, list[Proof]]] = field(default_factory=list)
    """The same with their proofs, at every destination or at some."""
    older: list[Proof] = field(default_factory=list)
    """Of earlier versions that the ledger did not know."""
    conflicts: list[tuple[FileVersion, str]] = field(default_factory=list)


@dataclass(slots=True)
class Comparison:
    """Of the files of one watch. ``store``: None for a dry run without a ledger. ``only_look``: nothing is read, and
    size and time decide."""

    config: Config
    watch: Watch
    root: Root
    destinations: Mapping[str, Destination]
    store: Store | None
    only_look: bool
    tell: Callable[[str], None]
    progress: Callable[[int, int], None]
    """Told how many files of how many were compared."""
    _listed: dict[str, dict[str, Stored]] = field(default_factory=dict)
    _ours: dict[str, Collection[str]] = field(default_factory=dict)

    def run(self, versions: Sequence[FileVersion]) -> Verdicts:
        verdicts = Verdicts()
        found = {version: self._keys(version) for version in versions}
        shared = {key for keys_of in found.values() for key in keys_of.values()}
        for name in self.watch.destinations:
            self._look(name, shared)
        met = [v for v, keys_of in found.items() if any(self._present(n, keys_of) for n in self.watch.destinations)]
        candidates = set(met)
        verdicts.send += [version for version in versions if version not in candidates]
        if self.only_look:
            for version in met:
                self._judge_by_look(version, found[version], verdicts)
            return verdicts
        with threads("compare") as pool:
            for done, (version, proofs, older) in enumerate(pool.map(self._copies, met), 1):
                verdicts.older += older
                self._judge(version, found[version], proofs, verdicts)
                self.progress(done, len(met))
        return verdicts

    # -- looking --

    def _keys(self, version: FileVersion) -> dict[Compression, str]:
        """The keys that the file may have, by the compression that they stand for."""
        return {
            compression: keys.key_for(
                self.watch.key,
                watch=version.watch,
                path=version.path,
                host=self.config.service.host,
                suffix=compression.suffix,
            )
            for compression in Compression
        }

    def _look(self, name: str, wanted: Collection[str]) -> None:
        destination = self.destinations[name]
        beside = name in build.beside(self.config, self.watch)
        found: dict[str, Stored] = {}
        try:
            if beside or len(wanted) <= _FEW * len(Compression):
                self._look_up(destination, wanted, found)
            else:
                prefix = keys.fixed_prefix(self.watch.key, watch=self.watch.name, host=self.config.service.host)
                self.tell(f"listing destination {name}")
                found = {stored.key: stored for stored in destination.listing(prefix) if stored.key in wanted}
        except TransferError as error:
            self.tell(f"destination {name} cannot be looked at, so nothing there is recognised: {error}")
        self._listed[name] = found
        ours = self.store.copies_by_key(name, list(found)) if self.store and found else {}
        self._ours[name] = frozenset(ours)

    def _look_up(self, destination: Destination, wanted: Collection[str], found: dict[str, Stored]) -> None:
        with threads("look") as pool:
            for key, stored in zip(wanted, pool.map(lambda key: _stat(destination, key), wanted), strict=True):
                if stored is not None:
                    found[key] = stored

    def _present(self, name: str, keys_of: Mapping[Compression, str]) -> dict[Compression, Stored]:
        """What is at a destination under the file's keys, and was not put there by us as far as the ledger knows."""
        listed, ours = self._listed[name], self._ours[name]
        if any(key in ours for key in keys_of.values()):
            return {}
        skipped = {Compression.NONE} if name in build.beside(self.config, self.watch) else set()
        return {c: listed[key] for c, key in keys_of.items() if key in listed and c not in skipped}

    # -- judging --

    @property
    def _format(self) -> Compression:
        """What the watch compresses to."""
        wanted = self.watch.compress
        return Compression.NONE if wanted is None or self.config.compression_disabled else Compression(wanted.format)

    def _goes_as_it_is(self, version: FileVersion) -> bool:
        wanted = self.watch.compress
        return self._format is Compression.NONE or wanted is None or version.size <= wanted.min_size

    def _judge_by_look(self, version: FileVersion, keys_of: Mapping[Compression, str], verdicts: Verdicts) -> None:
        there = [self._present(name, keys_of) for name in self.watch.destinations]
        if all(any(self._looks_same(version, c, stored) for c, stored in one.items()) for one in there):
            verdicts.same.append(version)
        else:
            self._send_or_refuse(version, keys_of, verdicts)

    def _looks_same(self, version: FileVersion, compression: Compression, stored: Stored) -> bool:
        """By size, and by the time at which it was put there: a copy is not older than its source."""
        if compression is Compression.NONE and stored.size != version.size:
            return False
        return compression in (Compression.NONE, self._format) and stored.mtime >= version.identity.mtime_ns // 10**9

    def _copies(self, version: FileVersion) -> tuple[FileVersion, list[Proof], list[Proof]]:
        proofs, older = [], []
        for name in self.watch.destinations:
            listed, beside = self._listed[name], name in build.beside(self.config, self.watch)
            wanted = [c for c in Compression if c is not Compression.NONE or not beside]
            shelf = Shelf(name, self.destinations[name], listed.get)
            foreign = {Compression.NONE, self._format}
            try:
                proof, before = copies(
                    version, self.root, shelf, self.watch.key, self.config.service.host, wanted, foreign
                )
            except TransferError as error:
                self.tell(f"{self.root.shown(version.path)} could not be compared at {name}: {error}")
                continue
            older += before
            proofs += [proof] if proof else []
        return version, proofs, older

    def _judge(
        self, version: FileVersion, keys_of: Mapping[Compression, str], proofs: list[Proof], verdicts: Verdicts
    ) -> None:
        if len(proofs) == len(self.watch.destinations):
            verdicts.same.append(version)
        if proofs:
            verdicts.adopted.append((version, proofs))
        else:
            known = {(proof.destination, proof.stored.key) for proof in verdicts.older}
            self._send_or_refuse(version, keys_of, verdicts, known)

    def _send_or_refuse(
        self,
        version: FileVersion,
        keys_of: Mapping[Compression, str],
        verdicts: Verdicts,
        known: Collection[tuple[str, str]] = (),
    ) -> None:
        """A file whose one key is taken everywhere need not travel to find that out."""
        key = keys_of[Compression.NONE]
        taken = [n for n in self.watch.destinations if self._is_taken(n, version, keys_of) and (n, key) not in known]
        if self._goes_as_it_is(version) and len(taken) == len(self.watch.destinations):
            where = " and ".join(taken)
            verdicts.conflicts.append((version, f"the key {key} at {where} holds something else, which stays as it is"))
        else:
            verdicts.send.append(version)

    def _is_taken(self, name: str, version: FileVersion, keys_of: Mapping[Compression, str]) -> bool:
        stored = self._present(name, keys_of).get(Compression.NONE)
        return stored is not None and not (self.only_look and stored.size == version.size)


@contextmanager
def threads(name: str) -> Iterator[ThreadPoolExecutor]:
    """For calls that wait for a destination or the disk. After Ctrl-C those that have not begun are not made."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix=name) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _stat(destination: Destination, key: str) -> Stored | None:
    try:
        return destination.stat(key)
    except TransferError:
        return None  # what is wrong with it is found out, and told, when the file is sent
