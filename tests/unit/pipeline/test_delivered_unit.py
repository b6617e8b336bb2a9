"""A delivered unit is compared with its manifest by one listing where that is cheaper than a question for each file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from quaymaster.destinations.base import Put
from quaymaster.destinations.directory import Directory
from quaymaster.errors import Unreachable
from quaymaster.keys import escape
from quaymaster.model import Compression, Digests, FileVersion, Identity, Proof, Stored
from quaymaster.pipeline import delivered_unit
from quaymaster.pipeline.manifest import write
from quaymaster.store import Delivery, Unit, UnitState

UNIT = Unit(
    1, "w", b"run", 1, UnitState.COMPLETE, 7, True, False, 1.0, 2.0, 1721650200.5, None, "idle", "", 0, 0, 0, "", ""
)
FILES = 50


class Asked(Directory):
    """Counts what it is asked for by itself."""

    stats: list[str]
    breaks_off = False

    def stat(self, key: str) -> Stored | None:
        self.stats.append(key)
        return super().stat(key)

    def listing(self, prefix: str = "") -> Iterator[Stored]:
        for number, stored in enumerate(super().listing(prefix)):
            if self.breaks_off and number == FILES // 2:
                raise Unreachable("gone", "wait")
            yield stored


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Asked]:
    (tmp_path / "archive").mkdir()
    destination = Asked("archive", str(tmp_path / "archive"), emit=lambda _: None)
    destination.stats = []
    deliveries = [delivered(destination, b"file \xff%d" % number) for number in range(FILES)]
    assert write(os.fsencode(tmp_path), UNIT, "host", "archive", deliveries, [])
    (tmp_path / "archive/w/run/manifest.json").write_bytes((tmp_path / "quaymaster-manifest.json").read_bytes())
    with closing(destination):
        yield destination


def delivered(destination: Asked, name: bytes) -> Delivery:
    digests = Digests(len(name), hashlib.sha256(name).hexdigest())
    version = FileVersion("w", b"run/" + name, Identity(1, len(name), 5))
    key = "w/" + escape(version.path)
    upload = destination.begin(Put(key, len(name)))
    upload.write(name)
    stored = upload.publish(digests, {})
    return Delivery(
        1, Proof(1, version, "archive", digests, digests, Compression.NONE, "", stored, 1.0), False, "", None
    )


def faults(archive: Asked) -> dict[bytes, str]:
    with delivered_unit.opened(archive, "w/run/manifest.json") as unit:
        archive.stats.clear()
        found = [(entry.path, what) for entry, what, _ in unit.faults(False, 2)]
    assert len(found) == FILES
    return {path: what for path, what in found if what}


def test_what_a_listing_shows_as_it_was_is_not_asked_for(archive: Asked) -> None:
    assert faults(archive) == {}
    assert archive.stats == []


def test_what_is_missing_or_changed_in_a_listing_is_asked_for(archive: Asked) -> None:
    os.remove(os.fsencode(archive.path) + b"/w/run/file \xff7")
    os.truncate(os.fsencode(archive.path) + b"/w/run/file \xff8", 3)
    assert faults(archive) == {b"file \xff7": "missing", b"file \xff8": "changed"}
    assert len(archive.stats) == 2


def test_a_listing_that_breaks_off_proves_nothing(archive: Asked) -> None:
    archive.breaks_off = True
    assert faults(archive) == {}
    assert len(archive.stats) == FILES
