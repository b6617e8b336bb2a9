"""inotify: hints for what happens, and the truth about when there are none (PRODUCT W2, W3)."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quaymaster.intake.scan import Rules, Tally, batches
from quaymaster.intake.settle import Hint
from quaymaster.intake.watch import Drained, Inotify, parse
from quaymaster.source import Root


class Tree:
    """A watched directory."""

    def __init__(self, path: Path, rules: Rules | None = None) -> None:
        self.path = path
        self.rules = rules or Rules()
        self.inotify = Inotify(self.rules)
        self.scan()

    def scan(self, start: bytes = b"", *, everything: bool = True) -> list[bytes]:
        enter: Callable[[bytes, int], bool] = self.inotify.watch
        if everything:
            enter = lambda path, fd: (self.inotify.watch(path, fd), True)[1]  # noqa: E731
        pieces = batches(Root(str(self.path)), self.rules, Tally(), start, enter=enter)
        return [found.path for piece in pieces for found in piece]

    def drain(self) -> Drained:
        select.select([self.inotify], [], [], 5)
        return self.inotify.drain()


@pytest.fixture(params=["disk", "tmpfs"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tree]:
    path = tmp_path
    if request.param == "tmpfs":
        path = Path(f"/dev/shm/quaymaster-{os.getpid()}-{time.monotonic_ns()}")
        path.mkdir()
    tree = Tree(path)
    yield tree
    tree.inotify.close()
    if path is not tmp_path:
        for folder, directories, files in os.walk(path, topdown=False):
            for name in files:
                os.unlink(os.path.join(folder, name))
            for name in directories:
                os.rmdir(os.path.join(folder, name))
        path.rmdir()


def test_writing_linking_and_renaming_into_place_give_hints(tree: Tree, tmp_path: Path) -> None:
    (tree.path / "written").write_bytes(b"x")
    (tree.path / "a.tmp").write_bytes(b"x")
    (tree.path / "a.tmp").rename(tree.path / "renamed")
    os.link(tree.path / "renamed", tree.path / "linked")
    writing = (tree.path / "open").open("wb")
    assert tree.drain().hints == {
        b"written": Hint.CLOSED,
        b"renamed": Hint.MOVED_IN,
        b"linked": Hint.CHANGED,
        b"open": Hint.CHANGED,
    }
    writing.close()
    assert tree.drain().hints == {b"open": Hint.CLOSED}


def test_reading_gives_no_events(tree: Tree) -> None:
    (tree.path / "f").write_bytes(b"x")
    tree.drain()
    (tree.path / "f").read_bytes()
    os.listdir(tree.path)
    assert tree.inotify.drain() == Drained()


def test_a_new_directory_is_to_be_scanned_and_then_watched(tree: Tree) -> None:
    (tree.path / "a/b").mkdir(parents=True)
    (tree.path / "a/b/early").write_bytes(b"")
    assert list(tree.drain().trees) == [b"a"]
    assert tree.scan(b"a", everything=False) == [b"a/b/early"]
    assert tree.scan(b"a", everything=False) == [], "watched already: nothing can have been missed"
    (tree.path / "a/b/late").write_bytes(b"")
    assert tree.drain().hints == {b"a/b/late": Hint.CLOSED}


def test_excluded_directories_cost_no_watches(tmp_path: Path) -> None:
    (tmp_path / "skip/deep").mkdir(parents=True)
    (tmp_path / "take").mkdir()
    tree = Tree(tmp_path, Rules(exclude=["skip/"]))
    assert tree.inotify.directories == 2
    (tmp_path / "new").mkdir()
    (tmp_path / "new.tmp").mkdir()
    assert list(tree.drain().trees) == [b"new"]
    tree.inotify.close()


def test_hints_after_a_directory_was_renamed_carry_the_new_path(tree: Tree) -> None:
    (tree.path / "a/b").mkdir(parents=True)
    tree.scan()
    tree.drain()
    (tree.path / "a").rename(tree.path / "z")
    (tree.path / "z/b/f").write_bytes(b"")
    drained = tree.drain()
    assert list(drained.trees) == [b"z"]
    assert tree.scan(b"z", everything=False) == [b"z/b/f"]
    (tree.path / "z/b/g").write_bytes(b"")
    assert tree.drain().hints == {b"z/b/g": Hint.CLOSED}
    assert tree.inotify.directories == 3


def test_a_directory_moved_out_is_not_watched_any_more(tree: Tree, tmp_path: Path) -> None:
    (tree.path / "a/b").mkdir(parents=True)
    tree.scan()
    away = tree.path.parent / f"{tree.path.name}-away"
    (tree.path / "a").rename(away)
    try:
        tree.drain()
        assert tree.inotify.directories == 1
        (away / "b/secret").write_bytes(b"")
        assert tree.inotify.drain().hints == {}
    finally:
        (away / "b/secret").unlink()
        (away / "b").rmdir()
        away.rmdir()


def test_a_scan_after_lost_events_corrects_paths_and_drops_watches(tree: Tree) -> None:
    (tree.path / "a/b").mkdir(parents=True)
    (tree.path / "gone").mkdir()
    tree.scan()
    (tree.path / "a").rename(tree.path / "z")
    (tree.path / "gone").rename(tree.path / "gone.tmp")  # not entered any more
    os.read(tree.inotify.fileno(), 1 << 20)  # lost
    tree.inotify.begin_sweep()
    tree.scan()
    tree.inotify.end_sweep()
    assert set(tree.inotify._watch_of) == {b"", b"z", b"z/b"}
    tree.inotify.drain()
    (tree.path / "z/b/f").write_bytes(b"")
    assert tree.drain().hints == {b"z/b/f": Hint.CLOSED}


def test_removed_directories_are_forgotten(tree: Tree) -> None:
    for turn in range(3):
        (tree.path / "a/b").mkdir(parents=True)
        tree.scan()
        (tree.path / "a/b").rmdir()
        (tree.path / "a").rmdir()
        drained = tree.drain()
        assert not drained.root_lost
        assert tree.inotify.directories == 1, turn
    assert tree.inotify._below == {}
    assert list(tree.inotify._watch_of) == [b""]


def test_a_lost_root_is_told(tmp_path: Path) -> None:
    for lose in (lambda path: path.rmdir(), lambda path: path.rename(tmp_path / "elsewhere")):
        (tmp_path / "root").mkdir()
        tree = Tree(tmp_path / "root")
        lose(tmp_path / "root")
        assert tree.drain().root_lost
        tree.inotify.close()


def test_names_of_any_bytes(tree: Tree) -> None:
    odd = [b"\xff\xfe", b"new\nline", b"n" * 255, b" ", b"abc", b"abcd" * 4]
    for name in odd:
        os.close(os.open(os.path.join(os.fsencode(tree.path), name), os.O_CREAT | os.O_WRONLY))
    assert tree.drain().hints == dict.fromkeys(odd, Hint.CLOSED)


def test_the_parser_takes_what_the_kernel_writes() -> None:
    def event(wd: int, mask: int, name: bytes) -> bytes:
        length = (len(name) // 16 + 1) * 16 if name else 0
        return struct.pack("iIII", wd, mask, 0, length) + name.ljust(length, b"\0")

    events = [(1, 0x8, b"a"), (2, 0x100, b"n" * 255), (-1, 0x4000, b""), (1, 0x80, b"\xff")]
    assert list(parse(b"".join(event(*one) for one in events))) == events
    assert list(parse(b"")) == []


def test_an_overflow_is_told(tree: Tree) -> None:
    drained = Drained()
    tree.inotify.take(iter([(-1, 0x4000, b"")]), drained)
    assert drained.overflow
    assert not drained.root_lost
