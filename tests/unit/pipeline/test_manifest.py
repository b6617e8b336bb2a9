"""A manifest tells of every file of a unit, is read back as it was written, and nothing else is taken for one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quaymaster.errors import IntegrityError, NameRefused
from quaymaster.keys import escape
from quaymaster.model import Compression, Digests, FileVersion, Identity, Proof, State, Stored
from quaymaster.pipeline.manifest import Manifest, sums_line, write
from quaymaster.store import Delivery, Unit, UnitState

SCHEMA = json.loads((Path(__file__).parents[3] / "packaging/manifest.schema.json").read_text())
UNIT = Unit(
    1, "w", b"run\xff", 3, UnitState.COMPLETE, 7, True, False, 1.0, 2.0, 1721650200.5, None, "idle", "", 0, 0, 0, "", ""
)
NAMES = st.lists(
    st.binary(min_size=1, max_size=40).filter(lambda n: not set(n) & set(b"\0/") and n not in (b".", b"..")),
    min_size=1,
    max_size=3,
).map(b"/".join)


def delivery(path: bytes, content: bytes = b"x", key: str = "") -> Delivery:
    digests = Digests(len(content), hashlib.sha256(content).hexdigest())
    version = FileVersion("w", UNIT.path + b"/" + path, Identity(1, len(content), 5))
    stored = Stored(key or "w/" + escape(version.path), len(content), etag="e")
    return Delivery(
        1, Proof(1, version, "archive", digests, digests, Compression.NONE, "", stored, 1.0), False, "", None
    )


def written(
    folder: Path, deliveries: Iterator[Delivery] | list[Delivery], missing: list[tuple[bytes, State, str]] = []
) -> bytes:
    assert write(os.fsencode(folder), UNIT, "host", "archive", deliveries, missing)
    return (folder / "quaymaster-manifest.json").read_bytes()


def read(content: bytes, piece: int = 1000) -> Manifest:
    pieces = (content[at : at + piece] for at in range(0, len(content), piece))
    return Manifest(pieces, "it")


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(NAMES, st.binary(max_size=30), max_size=8), st.integers(1, 200))
def test_it_fits_its_schema_and_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, files: dict[bytes, bytes], piece: int
) -> None:
    folder = tmp_path_factory.mktemp("m")
    files.pop(b"quaymaster-manifest.json", None)
    content = written(
        folder, [delivery(path, files[path]) for path in sorted(files)], [(UNIT.path + b"/m", State.PARKED, "e")]
    )
    jsonschema_rs.validate(SCHEMA, json.loads(content))
    manifest = read(content, piece)
    assert {entry.path: entry.sha256 for entry in manifest.files()} == {
        path: hashlib.sha256(body).hexdigest() for path, body in files.items()
    }
    assert (manifest.unit, manifest.generation, manifest.contents().missing) == (UNIT.path, 3, 1)
    assert content == written(
        folder, [delivery(path, files[path]) for path in sorted(files)], [(UNIT.path + b"/m", State.PARKED, "e")]
    )


@settings(deadline=None, max_examples=40)
@given(NAMES.filter(lambda name: b"\r" not in name and b"/" not in name))
def test_sha256sum_reads_every_name(tmp_path_factory: pytest.TempPathFactory, name: bytes) -> None:
    folder = os.fsencode(tmp_path_factory.mktemp("s"))
    with open(os.path.join(folder, name), "wb") as file:
        file.write(b"content")
    line = sums_line(hashlib.sha256(b"content").hexdigest(), name)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "-"], input=line, cwd=folder, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 5000), st.integers(0, 50))
def test_what_is_no_manifest_is_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, less: int
) -> None:
    good = written(tmp_path_factory.mktemp("n"), [delivery(b"a"), delivery(b"b")])
    broken = good[: at % len(good)] + noise + good[at % len(good) + less :]
    try:
        found = [(entry.path, entry.sha256) for entry in read(broken).files()]
    except (IntegrityError, NameRefused):
        return
    assert found == [(entry.path, entry.sha256) for entry in read(good).files()]  # the damage was elsewhere


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "a/%2E%2E/%2e%2e/b", "%00"])
def test_no_path_leads_out_of_the_unit(tmp_path: Path, path: str) -> None:
    content = written(tmp_path, [delivery(b"innocent")]).replace(
        b'"path":"innocent"', b'"path":' + json.dumps(path).encode()
    )
    with pytest.raises((NameRefused, IntegrityError)):
        list(read(content).files())


def test_a_large_unit_takes_no_memory(tmp_path: Path) -> None:
    """Twelve thousand files, one at a time in memory, on both ways."""
    tracemalloc.start()
    content = tmp_path / "quaymaster-manifest.json"
    assert write(os.fsencode(tmp_path), UNIT, "h", "archive", (delivery(b"%08d" % n) for n in range(12_000)), [])
    with content.open("rb") as file:
        manifest = Manifest(iter(lambda: file.read(1 << 20), b""), "it")
        assert sum(1 for _ in manifest.files()) == manifest.contents().files == 12_000
    assert content.stat().st_size > 3e6
    assert tracemalloc.get_traced_memory()[1] < 2.2e6 + 3 * (1 << 20)
    tracemalloc.stop()
