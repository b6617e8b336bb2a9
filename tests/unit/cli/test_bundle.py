"""I8: the evidence for one file can be checked offline with nothing but sh and sha256sum, and bears no forgery."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from unit.cli.conftest import Scene

CONTENT = b"ACGT" * 100


@pytest.fixture
def evidence(scene: Scene) -> Path:
    """Of one file among several, with entries of others before, between and after its own."""
    scene.store.note("service-started", {})
    for name in (b"first", b"mine", b"last"):
        scene.deliver(scene.queue(name), key=f"k/{name.decode()}", disposal="deleted")
    scene.store.note("service-stopped", {})
    answer = scene.run("prove", str(scene.watched / "mine"), "--bundle", str(scene.base / "evidence"))
    assert answer.code == 0
    return scene.base / "evidence"


def check(evidence: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(evidence / "check.sh"), *map(str, files)],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        encoding="utf-8",
    )


def test_it_comes_to_the_head(evidence: Path, scene: Scene) -> None:
    done = check(evidence)
    assert (done.returncode, done.stderr) == (0, "")
    last = scene.store.custody_entry()
    assert last is not None
    assert f"the chain comes to {last.seq}:{last.sha256}" in done.stdout
    assert sorted(path.name for path in (evidence / "entries").iterdir()) == ["4", "5"]
    assert "first" not in (evidence / "chain").read_text(), "others' entries are there by digest alone"


def test_the_file_and_the_stored_object_are_recognised_and_others_are_not(
    evidence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    (tmp_path / "stored").write_bytes(CONTENT[::2])
    (tmp_path / "other").write_bytes(CONTENT[1:])
    monkeypatch.chdir(tmp_path)  # names are relative to where the caller is
    done = check(evidence, Path("source"), tmp_path / "stored")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("is in the record") == 2
    assert check(evidence, tmp_path / "other").returncode == 1


def test_every_forgery_is_found(evidence: Path) -> None:
    for name in ("entries/4", "entries/5", "chain", "start", "head"):
        path = evidence / name
        genuine = path.read_text()
        digit = next(place for place, letter in enumerate(genuine) if letter in "0123456789" and place > 2)
        path.write_text(genuine[:digit] + str((int(genuine[digit]) + 1) % 10) + genuine[digit + 1 :])
        assert check(evidence).returncode == 1, name
        path.write_text(genuine)
    lines = (evidence / "chain").read_text().splitlines(keepends=True)
    for forged in (lines[:-1], lines[1:], [lines[0], *lines[2:]], [lines[1], lines[0], *lines[2:]]):
        (evidence / "chain").write_text("".join(forged))
        assert check(evidence).returncode == 1
    (evidence / "chain").write_text("".join(lines))
    assert check(evidence).returncode == 0


def test_a_head_at_a_destination_ends_the_chain(scene: Scene) -> None:
    scene.deliver(scene.queue(b"mine"), key="k/mine")
    last = scene.store.custody_entry()
    assert last is not None
    head = f"{last.seq}:{last.sha256}"
    scene.store.note("head-kept", {"destination": "archive", "key": ".quaymaster-custody/h/l/1.json", "head": head})
    scene.deliver(scene.queue(b"later"), key="k/later")
    scene.run("prove", str(scene.watched / "mine"), "--bundle", str(scene.base / "evidence"))
    done = check(scene.base / "evidence")
    assert done.returncode == 0, done.stdout
    assert head in done.stdout
    assert "the object .quaymaster-custody/h/l/1.json at the destination archive" in done.stdout


def test_a_directory_that_is_there_is_left_alone(evidence: Path, scene: Scene) -> None:
    answer = scene.run("prove", str(scene.watched / "mine"), "--bundle", str(evidence))
    assert answer.code == 2
    assert "is there already" in answer.err
