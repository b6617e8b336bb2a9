"""Units as the tests look at them: in the store, and at the archive."""

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
    told = {os.fsdecode(unescape(entry["path"])): entry["sha256"] for entry in manifest["files"]}
    assert told == {name: hashlib.sha256(content).hexdigest() for name, content in expected.items()}
    sums = home.archive / path / manifest["sums"]
    assert manifest["digest"] == "sha256:" + hashlib.sha256(sums.read_bytes()).hexdigest()
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", sums.name], cwd=sums.parent, check=True)
    for entry in manifest["files"]:
        assert (
            os.stat(os.path.join(os.fsencode(home.archive), unescape(entry["key"]))).st_size == entry["stored"]["size"]
        )
    return manifest


def waits_for(service: Service, path: bytes, why: str) -> None:
    until(lambda: (unit := unit_of(service, path)) and why in unit.why, 60, f"{path!r}: {unit_of(service, path)}")


def custody_kinds(service: Service) -> list[str]:
    with service.store() as store:
        kinds = [entry.fields["kind"] for entry in store.custody()]
    return [kind for kind in kinds if kind.startswith("unit-")]


def land(home: Home, files: dict[str, bytes], path: str = "run1") -> dict[str, bytes]:
    for name, content in files.items():
        home.land(f"{path}/{name}", content)
    return files
