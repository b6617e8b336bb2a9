"""W8, X1: what is read is the version that was queued."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from quaymaster.errors import SourceChanged, SourceRefused, SourceVanished
from quaymaster.model import Identity
from quaymaster.pipeline import reader
from quaymaster.source import Root, identity_of


def never() -> bool:
    return False


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "watch").mkdir()
    return Root(str(tmp_path / "watch"))


def put(root: Root, name: str, data: bytes) -> Identity:
    path = os.path.join(root.path, name)
    with open(path, "wb") as file:
        file.write(data)
    return identity_of(os.stat(path))


def content(source: reader.Reader) -> bytes:
    read = source.pieces(never)
    return b"".join(iter(read, b""))


def test_it_reads_the_version_that_was_queued(root: Root) -> None:
    data = os.urandom(3 * reader.PIECE + 17)
    identity = put(root, "a", data)
    with reader.opened(root, b"a", identity) as source:
        assert content(source) == data
        assert source.digest(never) == hashlib.sha256(data).hexdigest()


def test_another_version_is_not_taken_for_it(root: Root) -> None:
    identity = put(root, "a", b"one")
    put(root, "a", b"three")
    with pytest.raises(SourceChanged), reader.opened(root, b"a", identity):
        pass


@pytest.mark.parametrize("change", ["append", "replace", "touch", "remove"])
def test_a_change_while_it_is_read_is_noticed(root: Root, change: str) -> None:
    identity = put(root, "a", b"one")
    path = os.path.join(root.path, "a")
    with reader.opened(root, b"a", identity) as source:
        reader.unchanged(root, b"a", source, identity)
        if change == "append":
            with open(path, "ab") as file:
                file.write(b"more")
        elif change == "replace":
            put(root, "b", b"two")
            os.rename(os.path.join(root.path, "b"), path)
        elif change == "touch":
            os.utime(path, ns=(1, 1))
        else:
            os.unlink(path)
        with pytest.raises((SourceChanged, SourceVanished)):
            reader.unchanged(root, b"a", source, identity)


def test_a_file_that_is_gone_is_told_as_such(root: Root) -> None:
    with pytest.raises(SourceVanished), reader.opened(root, b"a", Identity(1, 1, 1)):
        pass


@pytest.mark.parametrize("kind", ["link", "link-above", "fifo", "directory", "hard link"])
def test_nothing_but_a_plain_file_beneath_the_root_is_read(root: Root, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "shadow").write_bytes(b"root:*")
    name, path = b"a", os.path.join(root.path, "a")
    if kind == "link":
        os.symlink(secret / "shadow", path)
    elif kind == "link-above":
        os.symlink(secret, path)
        name = b"a/shadow"
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        os.mkdir(path)
    else:
        os.chmod(root.path, 0o1777)
        os.link(secret / "shadow", path)
    with pytest.raises(SourceRefused), reader.opened(root, name, identity_of(os.stat(secret / "shadow"))):
        pass


def test_hard_links_of_the_directorys_own_owner_or_by_permission_are_read(root: Root, tmp_path: Path) -> None:
    put(root, "a", b"data")
    os.link(os.path.join(root.path, "a"), os.path.join(root.path, "b"))
    identity = identity_of(os.stat(os.path.join(root.path, "b")))
    with reader.opened(root, b"b", identity) as source:
        assert content(source) == b"data"
    os.chmod(root.path, 0o777)
    with reader.opened(Root(root.path, hard_links=True), b"b", identity) as source:
        assert content(source) == b"data"


def test_several_pieces_are_asked_for_at_a_time_and_come_in_their_order(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(4 * reader.PIECE + 17)
    identity = put(root, "a", data)
    together, read = threading.Barrier(3), os.pread

    def met(descriptor: int, length: int, offset: int) -> bytes:
        if offset < 3 * reader.PIECE:
            together.wait(60)  # breaks unless three are asked for at a time
        return read(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", met)
    with reader.opened(root, b"a", identity) as source:
        assert b"".join(iter(source.pieces(never, at_once=3), b"")) == data


def test_pieces_behind_one_that_is_short_are_asked_for_again(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem may answer with less than it was asked for, in the middle of a file."""
    data = os.urandom(3 * reader.PIECE)
    identity = put(root, "a", data)
    read = os.pread

    def half(descriptor: int, length: int, offset: int) -> bytes:
        return read(descriptor, length // 2 if offset == reader.PIECE else length, offset)

    monkeypatch.setattr(os, "pread", half)
    with reader.opened(root, b"a", identity) as source:
        assert b"".join(iter(source.pieces(never, at_once=3), b"")) == data
