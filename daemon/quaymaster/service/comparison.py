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
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quaymaster import keys
from quaymaster.destinations.base import Destination
from quaymaster.errors import TransferError
from quaymaster.model import Compression, FileVersion, Proof, Stored
from quaymaster.service import build
from quaymaster.source import Root

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from quaymaster.config import Config, Watch
    from quaymaster.store import Store

_FEW = 32
"""Files up to which they are asked about one by one: cheaper than the listing of a large bucket."""
_THREADS = 16
_FORMS = tuple(Compression)
_SUFFIXES = [compression.suffix for compression in _FORMS]

Keys = Sequence[str]
"""What a file may be called, one key for each of ``_FORMS``."""


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
    unseen: dict[str, TransferError] = field(default_factory=dict)
    """Destinations that could not be looked at, and why. Files that only look to be missing there are sent, which never
    overwrites; who only looks learns nothing of them."""


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
    close: Callable[[], None]
    """To be called at its end."""
    _begun: dict[str, Iterator[Stored]] = field(default_factory=dict)
    _listed: dict[str, dict[str, Stored]] = field(default_factory=dict)
    _ours: dict[str, Collection[str]] = field(default_factory=dict)
    _beside: frozenset[str] = frozenset()
    _expected: Sequence[str] = ()
    """Keys in order, once the files are known."""

    def __post_init__(self) -> None:
        self._beside = build.beside(self.config, self.watch)

    def begin(self) -> None:
        """Ask for the listings now, while the files are still being found."""
        for name in set(self.watch.destinations) - self._beside:
            self._begun[name] = self._listing(name)

    def run(self, versions: Sequence[FileVersion]) -> Verdicts:
        verdicts = Verdicts()
        keys_of = keys.keys_of(self.watch.key, _SUFFIXES, watch=self.watch.name, host=self.config.service.host)
        found = [(version, keys_of(version.path)) for version in versions]
        self._expected = sorted(names[0] for _, names in found)
        shared = {key for _, names in found for key in names}
        for name in self.watch.destinations:
            self._look(name, shared, verdicts)
        if self.only_look and verdicts.unseen:
            return verdicts
        met: list[tuple[FileVersion, Keys]] = []
        for version, names in found:
            if any(self._present(name, names) for name in self.watch.destinations):
                met.append((version, names))
            else:
                verdicts.send.append(version)
        if self.only_look:
            for version, names in met:
                self._judge_by_look(version, names, verdicts)
            return verdicts
        with threads("compare") as pool:
            compared = pool.map(self._copies, [version for version, _ in met])
            for done, ((version, names), (proofs, older, asked)) in enumerate(zip(met, compared, strict=True), 1):
                verdicts.older += older
                if asked or proofs:
                    self._judge(version, names, proofs, verdicts)
                else:  # it may well be the same: whoever sends it finds out, and says what is wrong
                    verdicts.send.append(version)
                self.progress(done, len(met))
        return verdicts

    # -- looking --

    def _prefix(self) -> str:
        return keys.fixed_prefix(self.watch.key, watch=self.watch.name, host=self.config.service.host)

    def _listing(self, name: str) -> Iterator[Stored]:
        return self.destinations[name].listing(self._prefix(), lambda: self._expected)

    def _look(self, name: str, wanted: Collection[str], verdicts: Verdicts) -> None:
        destination = self.destinations[name]
        beside = name in self._beside
        found: dict[str, Stored] = {}
        try:
            if beside or len(wanted) <= _FEW * len(Compression):
                self._look_up(destination, wanted, found)
            else:
                self.tell(f"listing destination {name}")
                listing = self._begun.get(name) or self._listing(name)
                found = {stored.key: stored for stored in listing if stored.key in wanted}
        except TransferError as error:
            found = {}  # half a listing is none
            verdicts.unseen[name] = error
        self._listed[name] = found
        ours = self.store.copies_by_key(name, list(found)) if self.store and found else {}
        self._ours[name] = frozenset(ours)

    def _look_up(self, destination: Destination, wanted: Collection[str], found: dict[str, Stored]) -> None:
        with threads("look") as pool:
            for key, stored in zip(wanted, pool.map(lambda key: self._stat(destination, key), wanted), strict=True):
                if stored is not None:
                    found[key] = stored

    def _stat(self, destination: Destination, key: str) -> Stored | None:
        try:
            return destination.stat(key)
        except TransferError:
            if self.only_look:
                raise
            return None  # what is wrong with it is found out, and told, when the file is sent

    def _present(self, name: str, names: Keys) -> list[tuple[Compression, Stored]]:
        """What is at a destination under the file's keys, and was not put there by us as far as the ledger knows."""
        listed, ours = self._listed[name], self._ours[name]
        found = [(c, listed[key]) for c, key in zip(_FORMS, names, strict=True) if key in listed]
        if not found or (ours and any(key in ours for key in names)):
            return []
        if name in self._beside:
            return [(c, stored) for c, stored in found if c is not Compression.NONE]  # that is the source itself
        return found

    # -- judging --

    @property
    def _format(self) -> Compression:
        """What the watch compresses to."""
        wanted = self.watch.compress
        return Compression.NONE if wanted is None or self.config.compression_disabled else Compression(wanted.format)

    def _goes_as_it_is(self, version: FileVersion) -> bool:
        wanted = self.watch.compress
        return self._format is Compression.NONE or wanted is None or version.size <= wanted.min_size

    def _judge_by_look(self, version: FileVersion, names: Keys, verdicts: Verdicts) -> None:
        for name in self.watch.destinations:
            if not any(self._looks_same(version, c, stored) for c, stored in self._present(name, names)):
                self._send_or_refuse(version, names, verdicts)
                return
        verdicts.same.append(version)

    def _looks_same(self, version: FileVersion, compression: Compression, stored: Stored) -> bool:
        """By size, and by the time at which it was put there: a copy is not older than its source."""
        if compression is Compression.NONE and stored.size != version.size:
            return False
        return compression in (Compression.NONE, self._format) and stored.mtime >= version.identity.mtime_ns // 10**9

    def _copies(self, version: FileVersion) -> tuple[list[Proof], list[Proof], bool]:
        """Proofs of this version and of older ones, and whether every destination could be asked."""
        from quaymaster.pipeline.adopt import Shelf, copies  # with the codecs, which nobody needs who only looks

        proofs, older, asked = [], [], True
        for name in self.watch.destinations:
            listed, beside = self._listed[name], name in self._beside
            wanted = [c for c in Compression if c is not Compression.NONE or not beside]
            shelf = Shelf(name, self.destinations[name], listed.get)
            foreign = {Compression.NONE, self._format}
            try:
                proof, before = copies(
                    version, self.root, shelf, self.watch.key, self.config.service.host, wanted, foreign
                )
            except TransferError as error:
                self.tell(f"{self.root.shown(version.path)} could not be compared at {name}: {error}")
                asked = False
                continue
            older += before
            proofs += [proof] if proof else []
        return proofs, older, asked

    def _judge(self, version: FileVersion, names: Keys, proofs: list[Proof], verdicts: Verdicts) -> None:
        if len(proofs) == len(self.watch.destinations):
            verdicts.same.append(version)
        if proofs:
            verdicts.adopted.append((version, proofs))
        else:
            known = {(proof.destination, proof.stored.key) for proof in verdicts.older}
            self._send_or_refuse(version, names, verdicts, known)

    def _send_or_refuse(
        self,
        version: FileVersion,
        names: Keys,
        verdicts: Verdicts,
        known: Collection[tuple[str, str]] = (),
    ) -> None:
        """A file whose one key is taken everywhere need not travel to find that out."""
        key = names[0]
        taken = [n for n in self.watch.destinations if self._is_taken(n, version, names) and (n, key) not in known]
        if self._goes_as_it_is(version) and len(taken) == len(self.watch.destinations):
            where = " and ".join(taken)
            verdicts.conflicts.append((version, f"the key {key} at {where} holds something else, which stays as it is"))
        else:
            verdicts.send.append(version)

    def _is_taken(self, name: str, version: FileVersion, names: Keys) -> bool:
        stored = next((stored for c, stored in self._present(name, names) if c is Compression.NONE), None)
        return stored is not None and not (self.only_look and stored.size == version.size)


@contextmanager
def threads(name: str) -> Iterator[ThreadPoolExecutor]:
    """For calls that wait for a destination or the disk. After Ctrl-C those that have not begun are not made."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_THREADS, thread_name_prefix=name) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
