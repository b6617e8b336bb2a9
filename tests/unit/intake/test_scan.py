"""The walker and the rules (PRODUCT W1, W4, W7, X1)."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quaymaster.errors import ConfigError
from quaymaster.intake.scan import BATCH, Rules, Tally, batches, has_marker, pattern_problem, walk
from quaymaster.source import Root, identity_of


def names(root: Path, rules: Rules | None = None, start: bytes = b"") -> set[bytes]:
    return {found.path for found in walk(Root(str(root)), rules or Rules(), start)}


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def test_every_regular_file_is_found_with_its_identity(tmp_path: Path) -> None:
    make(tmp_path, "a", "b/c", "b/d/e")
    for found in walk(Root(str(tmp_path)), Rules()):
        assert found.identity == identity_of(os.stat(os.path.join(os.fsencode(tmp_path), found.path)))
    assert names(tmp_path) == {b"a", b"b/c", b"b/d/e"}
    assert names(tmp_path, start=b"b") == {b"b/c", b"b/d/e"}


@pytest.mark.parametrize(
    "name",
    ["x.part", "x.tmp", ".x.swp", ".nfs0001", "x~", ".reads.fastq.Ab12zZ", ".qm-1", "x\n.part", "dir.tmp/x", "d~/e/x"],
)
def test_temporary_names_are_always_ignored(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, "kept")
    rules = Rules(include=["*"])
    assert names(tmp_path, rules) == {b"kept"}
    assert not rules.takes(name.encode())
    assert "temporary" in rules.reason(name.encode())


@pytest.mark.parametrize("name", ["part", "tmp.x", "x.swp", ".hidden", "~x", "x.part\n", ".cache.backup/x", "x.parts"])
def test_other_names_are_taken(tmp_path: Path, name: str) -> None:
    make(tmp_path, name)
    assert names(tmp_path) == {name.encode()}


@pytest.mark.parametrize(
    ("include", "exclude", "path", "taken"),
    [
        ([], [], "a/b", True),
        (["*.fastq"], [], "run/x.fastq", True),
        (["*.fastq"], [], "run/x.bam", False),
        (["*.fastq", "!tmp*.fastq"], [], "tmp1.fastq", False),
        (["/runs/"], [], "runs/deep/er/x", True),
        (["/runs/"], [], "other/runs/x", False),
        (["/runs/", "!*.log"], [], "runs/x.log", False),
        (["/runs/**"], [], "runs/x", True),
        (["runs/*/reads"], [], "runs/1/reads/x", True),
        ([], ["*.log"], "a/x.log", False),
        ([], ["*.log", "!keep.log"], "a/keep.log", True),
        ([], ["build/"], "a/build/x", False),
        ([], ["build/", "!build/x"], "build/x", False),  # as git: what is excluded is not entered
        ([], ["build/*", "!build/x"], "build/x", True),
        ([], ["build/**", "!build/x"], "build/x", True),
        ([], ["*", "!*/", "!*.fastq"], "a/b/x.fastq", True),
        ([], ["*", "!*/", "!*.fastq"], "a/b/x.bam", False),
        ([], ["/a"], "a/x", False),
        ([], ["/a"], "b/a", True),
        ([], ["a/**/z"], "a/b/c/z", False),
        (["*.fastq"], ["bad/"], "bad/x.fastq", False),
        (["*.fastq"], [], "new\nline/x.fastq", True),
        ([], ["build/"], "build/new\nline", False),
        ([], ["*.log"], "x.log\n", True),
        (["*"], [], "x", True),
        (["**"], [], "a/x", True),
    ],
)
def test_gitignore_rules(tmp_path: Path, include: list[str], exclude: list[str], path: str, taken: bool) -> None:
    make(tmp_path, path)
    rules = Rules(include, exclude)
    assert rules.takes(path.encode()) is taken
    assert names(tmp_path, rules) == ({path.encode()} if taken else set()), "the walk agrees"
    assert bool(rules.reason(path.encode())) is not taken


def test_excluding_agrees_with_git(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    lists = [["*.log", "!a.log"], ["d/", "!d/a.log"], ["/d/*", "!/d/e/"], ["e/**", "!e/a"], ["*", "!*/", "!*.log"]]
    paths = ["a", "a.log", "d/a", "d/a.log", "d/e/a", "d/e/a.log", "e/a", "e/a.log", "e/d/a", "b/d/e/a"]
    make(tmp_path, *paths)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for patterns in lists:
        (tmp_path / ".git/info/exclude").write_text("\n".join(patterns) + "\n")
        command = ["git", "-c", "core.quotepath=off", "ls-files", "--others", "--exclude-standard"]
        shown = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()
        rules = Rules(exclude=patterns)
        assert {path for path in paths if rules.takes(path.encode())} == set(shown), patterns


def test_ignore_extends_the_temporary_names_and_says_so() -> None:
    rules = Rules(ignore=["*.filepart"], exclude=["!*.filepart"])
    assert not rules.takes(b"a/x.filepart")
    assert rules.reason(b"a/x.filepart") == "ignore has the pattern '*.filepart'"
    assert rules.reason(b"a/x") == ""


@pytest.mark.parametrize("pattern", ["\\", "a[", "/", "# comment", ""])
def test_a_pattern_that_says_nothing_is_an_error(pattern: str) -> None:
    assert pattern_problem(pattern)
    with pytest.raises(ConfigError, match="include: "):
        Rules(include=[pattern])
    assert not pattern_problem("*.fastq")


@given(st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b), st.sampled_from([[], ["*.fastq", "a/"]]))
@settings(deadline=None)
def test_any_name_gets_an_answer(path: bytes, patterns: list[str]) -> None:
    for rules in (Rules(include=patterns), Rules(exclude=patterns)):
        assert rules.takes(path) is (rules.reason(path) == "")


def test_excluded_directories_are_not_entered(tmp_path: Path) -> None:
    make(tmp_path, "skip/a", "take/a")
    entered = []
    for _ in batches(
        Root(str(tmp_path)), Rules(exclude=["skip/"]), Tally(), enter=lambda path, fd: entered.append(path) or True
    ):
        pass
    assert entered == [b"", b"take"]


def test_links_and_special_files_are_skipped_and_counted(tmp_path: Path) -> None:
    make(tmp_path, "d/a")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    make(outside, "secret")
    (tmp_path / "link").symlink_to("d/a")
    (tmp_path / "away").symlink_to(outside)
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "fifo")
    tally = Tally()
    found = [file.path for batch in batches(Root(str(tmp_path)), Rules(), tally) for file in batch]
    assert found == [b"d/a"]
    assert (tally.links, tally.special, tally.files, tally.directories) == (3, 1, 1, 2)


def test_a_directory_swapped_for_a_link_during_the_walk_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    make(root, "a", "d/x")
    make(outside, "secret")

    def swap(path: bytes, _: int) -> bool:
        if path == b"d/.." or path == b"":
            (root / "d").rename(root / "e")
            (root / "d").symlink_to(outside)
        return True

    # The root is listed after the swap, so both names are seen: one a link, one a directory.
    paths = {found.path for batch in batches(Root(str(root)), Rules(), Tally(), enter=swap) for found in batch}
    assert paths == {b"a", b"e/x"}
    walking = batches(Root(str(root)), Rules(), Tally())
    (root / "e").rename(root / "d2")
    (root / "e").symlink_to(outside)
    assert {found.path for batch in walking for found in batch} == {b"a", b"d2/x"}


def test_a_listed_directory_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    make(root, "d/x")
    make(root, *(f"f{number}" for number in range(2 * BATCH)))
    make(outside, "secret")
    walking = batches(Root(str(root)), Rules(), Tally())
    next(walking)
    (root / "d").rename(tmp_path / "gone")
    (root / "d").symlink_to(outside)
    assert not any(b"secret" in found.path for batch in walking for found in batch)


def test_names_of_any_bytes_come_through(tmp_path: Path) -> None:
    odd = [b"\xff\xfe", b"new\nline", b"n" * 255, b" lead", b"Case", b"case", b"%41\\", "é".encode(), b"\x01\x7f"]
    for name in odd:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    assert names(tmp_path) == set(odd)


def test_an_unreadable_directory_is_told_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "bad/x", "good/x", "gone/x")

    class Failing(Root):
        def open_directory(self, path: bytes) -> int:
            if path == b"bad":
                raise PermissionError(13, "Permission denied")
            if path == b"gone":
                raise FileNotFoundError(2, "No such file or directory")
            return super().open_directory(path)

    tally = Tally()
    found = [file.path for batch in batches(Failing(str(tmp_path)), Rules(), tally) for file in batch]
    assert found == [b"good/x"]
    assert tally.unreadable == [(b"bad", "Permission denied")]


def test_a_root_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(walk(Root(str(tmp_path / "nowhere")), Rules()))


def nest(top: Path, name: str, levels: int) -> None:
    """A file below ``levels`` directories; made by descriptors, as no path could name it."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@pytest.mark.parametrize(("name", "levels"), [("l", 2000), ("n" * 255, 40)])
def test_deep_trees_and_long_paths_are_walked_with_few_descriptors(tmp_path: Path, name: str, levels: int) -> None:
    nest(tmp_path, name, levels)
    path = (name.encode() + b"/") * levels + b"file"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        found = list(walk(Root(str(tmp_path)), Rules(include=["*"])))
        os.close(Root(str(tmp_path)).open(path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        subprocess.run(["rm", "-rf", str(tmp_path / name)], check=True)
    assert [file.path for file in found] == [path]
    assert Rules(include=["file"]).takes(path)


def test_pieces_are_small_and_come_although_nothing_is_found(tmp_path: Path) -> None:
    make(tmp_path, *(f"{number}.log" for number in range(3 * BATCH)))
    pieces = list(batches(Root(str(tmp_path)), Rules(exclude=["*.log"]), Tally()))
    assert len(pieces) >= 4
    assert not any(pieces)
    assert max(map(len, batches(Root(str(tmp_path)), Rules(), Tally()))) <= BATCH


def test_files_without_their_marker_are_held(tmp_path: Path) -> None:
    make(tmp_path, "a/x", "a/b/y", "c/z", "top")
    root, tally = Root(str(tmp_path)), Tally()

    def found() -> set[bytes]:
        return {file.path for batch in batches(root, Rules(), tally, marker=b"Done.txt") for file in batch}

    assert found() == set()
    assert tally.held == 4
    make(tmp_path, "a/Done.txt")
    assert found() == {b"a/Done.txt", b"a/x", b"a/b/y"}
    assert has_marker(root, b"a/b", b"Done.txt")
    assert not has_marker(root, b"c", b"Done.txt")
    below = {file.path for batch in batches(root, Rules(), tally, b"a/b", marker=b"Done.txt") for file in batch}
    assert below == {b"a/b/y"}
