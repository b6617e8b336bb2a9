"""Directories that count as delivered only when they are whole: their manifest comes last (PRODUCT W5)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

from quaymaster.keys import unescape
from quaymaster.store import Unit, UnitState
from system.conftest import Home
from system.service import Service, until

Serve = Callable[..., Service]
RUN = 'unit = "directory"\nunit_complete = ["CopyComplete.txt"]'


def unit_of(service: Service, path: bytes = b"run1") -> Unit | None:
    with service.store() as store:
        return store.units.get("landing", path)


def published(service: Service, generation: int = 1, path: bytes = b"run1", timeout: float = 60) -> Unit:
    """The unit, once that generation of it is published."""

    def look() -> Unit | None:
        unit = unit_of(service, path)
        return unit if unit and unit.state is UnitState.PUBLISHED and unit.generation == generation else None

    found = until(look, timeout, f"generation {generation} of {path!r}: {unit_of(service, path)}")
    assert found is not None
    return found


def manifest_of(home: Home, path: str = "run1") -> dict[str, Any]:
    return dict(json.loads((home.archive / path / "quaymaster-manifest.json").read_text()))


def check_archive(home: Home, expected: dict[str, bytes], path: str = "run1") -> dict[str, Any]:
    """The manifest tells of exactly these files, sha256sum(1) accepts them, and its digest is that of the list."""
    manifest = manifest_of(home, path)
    told = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    assert told == {name: hashlib.sha256(content).hexdigest() for name, content in expected.items()}
    sums = home.archive / path / manifest["sums"]
    assert manifest["digest"] == "sha256:" + hashlib.sha256(sums.read_bytes()).hexdigest()
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", sums.name], cwd=sums.parent, check=True)
    for entry in manifest["files"]:
        assert (
            os.stat(os.path.join(os.fsencode(home.archive), unescape(entry["key"]))).st_size == entry["stored"]["size"]
        )
    return manifest


def land(home: Home, files: dict[str, bytes], path: str = "run1") -> dict[str, bytes]:
    for name, content in files.items():
        home.land(f"{path}/{name}", content)
    return files


def test_a_manifest_comes_last_and_tells_of_every_file(home: Home, serve: Serve) -> None:
    service = serve(home.config(RUN))
    expected = land(
        home, {"Data/a.bcl": b"a" * 1000, "Data/b.bcl": b"b", "RunInfo.xml": b"<run/>", "odd\\na\nme": b"x"}
    )
    until(lambda: len(home.arrived()) == 4)
    unit = until(lambda: unit_of(service))
    assert unit is not None
    assert unit.state is UnitState.OPEN
    until(lambda: (u := unit_of(service)) and u.why == "CopyComplete.txt is missing")
    expected |= land(home, {"CopyComplete.txt": b""})
    unit = published(service)
    manifest = manifest_of(home)
    assert (unit.files, unit.bytes, unit.missing) == (5, sum(map(len, expected.values())), 0)
    assert manifest["generation"] == 1
    check_archive(home, {name.replace("\\", "%5C").replace("\n", "%0A"): content for name, content in expected.items()})
    service.stop()
