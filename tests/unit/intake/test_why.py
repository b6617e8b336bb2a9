"""``quaymaster why PATH`` names the evidence that is missing (PRODUCT W4)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from quaymaster.config import Watch
from quaymaster.intake.why import Evidence, why
from quaymaster.model import Identity


def ask(root: Path, path: str, *, known: bool = False, **settings: object) -> list[Evidence]:
    watch = Watch.model_validate({"name": "w", "path": str(root), "destinations": ("d",), "settle": 5.0, **settings})

    def knows(name: str, versions: Sequence[tuple[bytes, Identity]]) -> list[bool]:
        return [known] * len(versions)

    return why(watch, os.fsencode(path), known=knows)


def against(evidence: list[Evidence]) -> list[str]:
    return [item.text for item in evidence if item.ok is False]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/reads.fastq").write_bytes(b"x")
    os.utime(tmp_path / "run/reads.fastq", (1, 1))
    return tmp_path


def test_a_whole_file_has_nothing_against_it(whole: Path) -> None:
    evidence = ask(whole, "run/reads.fastq")
    assert against(evidence) == []
    assert "is told by inotify" in evidence[0].text
    assert evidence[-1] == Evidence(None, "this version of it is not in the queue yet")
    assert "in the queue or delivered" in ask(whole, "run/reads.fastq", known=True)[-1].text
    assert "is scanned every 10 s" in ask(whole, "run/reads.fastq", mode="poll")[0].text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"include": ("*.bam",)}, "no pattern of include matches it"),
        ({"exclude": ("run/",)}, "it is in run, and exclude has the pattern 'run/'"),
        ({"exclude": ("*.fastq",)}, "exclude has the pattern '*.fastq'"),
        ({"ignore": ("reads*",)}, "ignore has the pattern 'reads*'"),
        ({"marker": "Done.txt"}, "the marker Done.txt is missing, in its directory and in those above"),
    ],
)
def test_rules_and_markers(whole: Path, settings: dict[str, object], text: str) -> None:
    assert against(ask(whole, "run/reads.fastq", **settings)) == [text]


def test_a_marker_above_is_enough(whole: Path) -> None:
    (whole / "Done.txt").write_bytes(b"")
    assert against(ask(whole, "run/reads.fastq", marker="Done.txt")) == []


def test_a_temporary_name(whole: Path) -> None:
    (whole / "run/x.part").write_bytes(b"")
    assert "x.part is the name of a temporary file" in against(ask(whole, "run/x.part"))


def test_an_open_writer_and_a_young_file(whole: Path) -> None:
    with (whole / "young").open("wb") as file:
        file.write(b"x")
        file.flush()
        texts = against(ask(whole, "young"))
    assert texts[0] == "a program has it open for writing"
    assert "it must stay as it is for 5 s" in texts[1]


def test_a_file_that_changes_between_the_looks(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(_: float) -> None:
        with (whole / "run/reads.fastq").open("ab") as file:
            file.write(b"y")

    watch = Watch(name="w", path=str(whole), destinations=("d",), settle=5.0)
    evidence = why(watch, b"run/reads.fastq", known=lambda _, v: [False], sleep=meanwhile)
    assert against(evidence) == ["it is changing now; it must stay as it is for 5 s"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nowhere/x", "nowhere does not exist"),
        ("link", "is a symbolic link; links are not followed"),
        ("away/reads.fastq", "away is a symbolic link"),
        ("fifo", "it is neither a file nor a directory"),
        ("run", "it is a directory; the files in it are taken one by one"),
        ("run/reads.fastq/x", "Not a directory"),
        ("../x", "is not a path below the watch"),
        ("open/f", "hard links and others may have made them"),
        ("n" * 256, "File name too long"),
    ],
)
def test_what_is_not_a_plain_file(whole: Path, path: str, text: str) -> None:
    (whole / "link").symlink_to("run/reads.fastq")
    (whole / "away").symlink_to("run")
    os.mkfifo(whole / "fifo")
    (whole / "open").mkdir()
    (whole / "open").chmod(0o777)
    (whole / "theirs").write_bytes(b"")
    os.link(whole / "theirs", whole / "open/f")
    texts = against(ask(whole, path))
    assert len(texts) == 1
    assert text in texts[0]


def test_a_watch_that_is_away(tmp_path: Path) -> None:
    evidence = ask(tmp_path / "nowhere", "f")
    assert len(evidence) == 1
    assert "does not exist" in evidence[0].text


def test_on_a_network_filesystem_the_writer_cannot_be_known(whole: Path) -> None:
    watch = Watch(name="w", path=str(whole), destinations=("d",))
    table = f"27 1 254:0 / / rw - ext4 /dev/vda rw\n30 27 0:40 / {whole} rw - nfs4 server:/export rw"
    began = time.monotonic()
    evidence = why(watch, b"run/reads.fastq", known=lambda _, v: [False], mountinfo=lambda: table)
    assert Evidence(None, "whether a program is writing it cannot be known on this filesystem") in evidence
    assert any("90 s are needed" in item.text for item in evidence)
    assert time.monotonic() - began < 5.0, "it looks twice, but does not wait"


def test_names_of_any_bytes_are_shown(whole: Path) -> None:
    evidence = ask(whole, os.fsdecode(b"\xff\n"))
    assert "\\xff\\n does not exist" in against(evidence)[0]
