"""Files of all kinds that land while things go wrong, and readers who take whatever they see for whole at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.data import MIB, fastq
from system.evidence import sha256

TEXT = b"".join(piece for piece, _ in zip(fastq(), range(2), strict=False))[: 2 * MIB]


class Traffic:
    """What has landed, in folders that are each watched under a name of their own."""

    def __init__(self, folders: dict[str, Path], chance: random.Random) -> None:
        self.folders, self.chance = folders, chance
        self.rounds = 0
        self._landed: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def land(self, *, large: int = 11 * MIB) -> None:
        """One of each kind: small, compressible, a new version of the one before and, each third time, a large one."""
        self.rounds += 1
        stamp = b"%d\n" % self.rounds
        for watch in self.folders:
            self.write(watch, f"small-{self.rounds}", self.chance.randbytes(self.chance.randrange(1, 5000)))
            self.write(watch, f"run/reads-{self.rounds}.fastq", stamp + TEXT)
            self.write(watch, "changing", stamp * 500)
            if self.rounds % 3 == 1:
                self.write(watch, f"model-{self.rounds}.bin", self.chance.randbytes(large + self.rounds))

    def write(self, watch: str, name: str, content: bytes) -> None:
        """A file is renamed into place, and counts as landed just before."""
        path = self.folders[watch] / name
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(path.name + ".part")
        new.write_bytes(content)
        with self._lock:
            self._landed.setdefault(f"{watch}/{name}", []).append(sha256(content))
        new.rename(path)

    def versions(self, name: str) -> list[str]:
        """SHA-256 of each version of WATCH/NAME so far, oldest first."""
        with self._lock:
            return list(self._landed.get(name, ()))

    @property
    def last(self) -> dict[str, str]:
        """WATCH/NAME -> SHA-256 of its newest version."""
        with self._lock:
            return {name: versions[-1] for name, versions in self._landed.items()}

    @property
    def ever(self) -> set[str]:
        """SHA-256 of everything that has landed."""
        with self._lock:
            return {digest for versions in self._landed.values() for digest in versions}


Seen = tuple[str, str, Callable[[], str]]
"""A name (WATCH/NAME), what tells this copy of it from another, and a function that gives its SHA-256 when expanded,
or an empty string when it is gone by now."""


class Reader(threading.Thread):
    """Reads each copy the moment it appears. ``look`` gives what there is to see now."""

    def __init__(self, look: Callable[[], Iterable[Seen]], traffic: Traffic) -> None:
        super().__init__(name="reader", daemon=True)
        self.seen: dict[tuple[str, str], str] = {}
        self.wrong: list[str] = []
        self._look, self._traffic = look, traffic
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.2):
            try:
                self.look()
            except Exception as error:
                self.wrong.append(f"the reader itself failed: {error!r}")

    def look(self) -> None:
        for name, tag, digest in self._look():
            if (name, tag) not in self.seen and (found := digest()):
                self.seen[name, tag] = found
                if found not in self._traffic.versions(name):
                    self.wrong.append(f"{name} ({tag}) was visible with bytes that never landed: {found}")

    def __enter__(self) -> Reader:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()
