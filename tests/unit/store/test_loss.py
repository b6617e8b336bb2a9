"""Q6: the service never begins anew silently where it had a database: one that is gone, emptied or older than it was is
an error that says what to do, and damages nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from quaymaster.errors import StoreLost
from quaymaster.store import HEAD_FILE, Store


def made(folder: Path, entries: int = 3) -> Path:
    with closing(Store(str(folder), create=True)) as store:
        for number in range(entries):
            store.note("service-started", {"n": number})
    return folder


def test_a_new_state_directory_is_no_loss(tmp_path: Path) -> None:
    made(tmp_path / "state", 0)
    made(tmp_path / "state", 2)
    made(tmp_path / "state", 2)


@pytest.mark.parametrize("what", ["deleted", "emptied"])
def test_a_database_that_is_gone(tmp_path: Path, what: str) -> None:
    state = made(tmp_path / "state")
    for name in os.listdir(state):
        if name.startswith("quaymaster.db"):
            (state / name).unlink()
    if what == "emptied":
        (state / "quaymaster.db").touch()
    with pytest.raises(StoreLost, match=r"quaymaster rebuild") as caught:
        Store(str(state), create=True)
    assert "3" in caught.value.message
    assert (state / HEAD_FILE).read_text().startswith("3:")
    if what == "deleted":
        assert not (state / "quaymaster.db").exists()


def test_a_database_that_is_older_than_it_was(tmp_path: Path) -> None:
    state = made(tmp_path / "state")
    shutil.copytree(state, tmp_path / "backup")
    made(state, 2)
    shutil.copy(tmp_path / "backup" / "quaymaster.db", state / "quaymaster.db")
    for extra in ("quaymaster.db-wal", "quaymaster.db-shm"):
        (state / extra).unlink(missing_ok=True)
    with pytest.raises(StoreLost, match="entry 5 of the custody log is missing"):
        Store(str(state), create=True)


def test_a_log_that_somebody_edited(tmp_path: Path) -> None:
    state = made(tmp_path / "state")
    with closing(sqlite3.connect(state / "quaymaster.db")) as connection:
        connection.execute("UPDATE custody SET sha256 = ? WHERE seq = 3", ("0" * 64,))
        connection.commit()
    with pytest.raises(StoreLost, match="entry 3 of the custody log is not what it was"):
        Store(str(state), create=True)


def test_the_operator_may_accept_the_loss_and_commands_still_work(tmp_path: Path) -> None:
    state = made(tmp_path / "state")
    (state / "quaymaster.db").unlink()
    with closing(Store(str(state), create=True, accept_loss=True)) as store:
        assert store.noted_fault() != ""
        store.note("rebuilt", {})
    with closing(Store(str(state), create=True)) as store:
        assert store.noted_fault() == ""


@pytest.mark.parametrize("text", ["", "nonsense\n", "0:" + "0" * 64, "3:xyz", "\0" * 5000])
def test_a_head_that_cannot_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    state = made(tmp_path / "state")
    (state / HEAD_FILE).write_text(text)
    with closing(Store(str(state), create=True)) as store:
        assert store.noted_head() is None
        store.note("x", {})
    assert (state / HEAD_FILE).read_text().startswith("4:")
