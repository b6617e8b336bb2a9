"""M2, X5: what a version's own list of its files says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quaymaster.errors import IntegrityError
from quaymaster.mirror.manifest import NAMES, parse

SUM = "ab" * 32


def test_a_manifest_of_quaymaster_is_read() -> None:
    said = {"unit": "m/1", "generation": 1, "files": [{"path": "sub/a", "size": 3, "sha256": SUM, "key": "k"}]}
    assert parse(b"quaymaster-manifest.json", json.dumps(said).encode()) == {b"sub/a": SUM}


def test_what_sha256sum_writes_is_read(tmp_path: Path) -> None:
    names = ["a", "sub/b c", "line\nbreak", "back\\slash"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    written = subprocess.run(["sha256sum", "--", *names], cwd=tmp_path, capture_output=True, check=True).stdout
    assert parse(b"SHA256SUMS", written).keys() == {name.encode() for name in names}


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "a//b", "a\0b"])
def test_it_cannot_name_what_is_outside(path: str) -> None:
    for name, text in (
        (NAMES[0], json.dumps({"files": [{"path": path, "sha256": SUM}]})),
        (NAMES[1], f"{SUM}  {path}\n"),
    ):
        with pytest.raises(IntegrityError):
            parse(name, text.encode())


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,files0pathsh256 \n').map(str.encode))
def test_whatever_it_holds_is_a_list_or_an_integrity_failure(content: bytes) -> None:
    for name in NAMES:
        try:
            assert all(len(sha256) == 64 for sha256 in parse(name, content).values())
        except IntegrityError:
            pass
