"""P1, W8, X1: what is read is the version that was queued, and a staged copy is proven against the original."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quaymaster.errors import OutOfSpace, SourceChanged, SourceRefused, SourceUnavailable, SourceVanished
from quaymaster.model import Identity
from quaymaster.pipeline import reader
from quaymaster.pipeline.budget import Cancelled, Staging
from quaymaster.source import Root, identity_of


def never() -> bool:
    return False


def always() -> bool:
    return True


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
    with reader.opened(root, b"a", identity, always) as source:
        assert content(source) == data
        assert source.digest(never) == hashlib.sha256(data).hexdigest()


def test_another_version_is_not_taken_for_it(root: Root) -> None:
    identity = put(root, "a", b"one")
    put(root, "a", b"three")
    with pytest.raises(SourceChanged), reader.opened(root, b"a", identity, always):
        pass


@pytest.mark.parametrize("change", ["append", "replace", "touch", "remove"])
def test_a_change_while_it_is_read_is_noticed(root: Root, change: str) -> None:
    identity = put(root, "a", b"one")
    path = os.path.join(root.path, "a")
    with reader.opened(root, b"a", identity, always) as source:
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


def test_a_file_that_is_gone_is_not_confused_with_a_watch_that_is_away(root: Root) -> None:
    with pytest.raises(SourceVanished), reader.opened(root, b"a", Identity(1, 1, 1), always):
        pass
    with pytest.raises(SourceUnavailable), reader.opened(root, b"a", Identity(1, 1, 1), never):
        pass
    os.rmdir(root.path)
    with pytest.raises(SourceUnavailable), reader.opened(root, b"a", Identity(1, 1, 1), always):
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
    with pytest.raises(SourceRefused), reader.opened(root, name, identity_of(os.stat(secret / "shadow")), always):
        pass


def test_hard_links_of_the_directorys_own_owner_or_by_permission_are_read(root: Root, tmp_path: Path) -> None:
    put(root, "a", b"data")
    os.link(os.path.join(root.path, "a"), os.path.join(root.path, "b"))
    identity = identity_of(os.stat(os.path.join(root.path, "b")))
    with reader.opened(root, b"b", identity, always) as source:
        assert content(source) == b"data"
    os.chmod(root.path, 0o777)
    with reader.opened(Root(root.path, hard_links=True), b"b", identity, always) as source:
        assert content(source) == b"data"


class Stage:
    """A staging directory and what was told of it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.staging = Staging(str(directory), ceiling=None, floor=0)
        self.path = directory / "1.source"
        self.done: list[str] = []

    def copy(self, source: reader.Reader, earlier: str = "", cancelled: Callable[[], bool] = never):  # type: ignore[no-untyped-def]
        return reader.staged(source, self.staging, "1.source", earlier, cancelled, self.done.append, lambda _: None)


def test_a_staged_copy_is_the_source_and_is_removed_afterwards(root: Root, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "staging")
    data = os.urandom(2 * reader.PIECE + 1)
    with reader.opened(root, b"a", put(root, "a", data), always) as source, stage.copy(source) as copy:
        assert content(copy) == data
        assert copy.known_sha256 == hashlib.sha256(data).hexdigest()
        assert stage.done == [copy.known_sha256]
        assert stage.path.stat().st_mode & 0o777 == 0o600
    assert not stage.path.exists()


def test_a_finished_copy_is_used_again_after_a_stop_and_not_fetched_twice(root: Root, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "staging")
    identity = put(root, "a", b"data")
    with pytest.raises(Cancelled), reader.opened(root, b"a", identity, always) as source, stage.copy(source):
        raise Cancelled
    assert stage.path.exists()
    with reader.opened(root, b"a", identity, always) as source, stage.copy(source, stage.done[0]) as copy:
        assert content(copy) == b"data"
    assert len(stage.done) == 1


def test_half_a_copy_is_never_left_nor_used(root: Root, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "staging")
    identity = put(root, "a", b"x" * 3 * reader.PIECE)
    calls = iter([False, False, True])
    with (
        pytest.raises(Cancelled),
        reader.opened(root, b"a", identity, always) as source,
        stage.copy(source, cancelled=lambda: next(calls)),
    ):
        pass
    assert not stage.path.exists()
    stage.path.write_bytes(b"half")
    with reader.opened(root, b"a", identity, always) as source, stage.copy(source, "f" * 64) as copy:
        assert content(copy) == b"x" * 3 * reader.PIECE


def test_a_staging_directory_that_cannot_be_written_waits_and_says_so(root: Root, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "staging")
    stage.path.mkdir()
    identity = put(root, "a", b"data")
    with (
        pytest.raises(OutOfSpace, match=r"service\.staging_dir"),
        reader.opened(root, b"a", identity, always) as source,
        stage.copy(source),
    ):
        pass
