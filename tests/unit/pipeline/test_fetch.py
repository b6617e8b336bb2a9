"""P1, P13: a staged copy is the whole source or nothing, and what hangs with one watch hangs on its threads only."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quaymaster.errors import OutOfSpace, SourceChanged
from quaymaster.model import FileVersion, Job, State
from quaymaster.pipeline import reader
from quaymaster.pipeline.budget import Cancelled, Staging
from quaymaster.pipeline.fetch import STAGED, Copy, Fetchers, fetch
from quaymaster.source import Root, identity_of

DATA = os.urandom(2 * reader.PIECE + 1)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Case:
    """A file in a watch, and a staging directory."""

    def __init__(self, folder: Path) -> None:
        for name in ("watch", "staging"):
            (folder / name).mkdir()
        self.source, self.staged = folder / "watch/a", folder / "staging/1.source"
        self.source.write_bytes(DATA)
        self.root = Root(str(folder / "watch"))
        self.staging = Staging(str(folder / "staging"), ceiling=2 * len(DATA), floor=0)
        version = FileVersion("w", b"a", identity_of(self.source.stat()))
        self.done: list[str] = []
        self.job = Job(1, version, State.RUNNING, None, 0, 0, None, "", "", 0.0, 0.0, None)

    def fetch(self, cancelled: Callable[[], bool] = lambda: False, earlier: str = "") -> Copy:
        job = replace(self.job, checkpoint={STAGED: earlier} if earlier else {})
        return fetch(job, self.root, self.staging, cancelled, lambda _: None, self.done.append)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def content(copy: Copy) -> bytes:
    with copy.opened() as source:
        read = source.pieces(lambda: False)
        assert source.known_sha256 == copy.sha256
        return b"".join(iter(read, b""))


def test_a_copy_is_the_source_and_is_removed_when_it_is_released(case: Case) -> None:
    copy = case.fetch()
    assert content(copy) == DATA
    assert copy.sha256 == SHA256
    assert case.done == [SHA256]
    assert case.staged.stat().st_mode & 0o777 == 0o600
    copy.release(keep=False)
    assert not case.staged.exists()


def test_it_takes_its_room_until_it_is_released(case: Case) -> None:
    first, second = case.fetch(), case.fetch()
    with pytest.raises(OutOfSpace, match=r"limits\.staging"):
        case.fetch()
    first.release(keep=False)
    case.fetch().release(keep=False)
    second.release(keep=False)


def test_a_finished_copy_is_used_again_after_a_stop_and_not_fetched_twice(case: Case) -> None:
    case.fetch().release(keep=True)
    assert case.staged.exists()
    assert content(case.fetch(earlier=SHA256)) == DATA
    assert case.done == [SHA256]


def test_half_a_copy_is_never_left_nor_used(case: Case) -> None:
    calls = iter([False, False, True])
    with pytest.raises(Cancelled):
        case.fetch(cancelled=lambda: next(calls))
    assert not case.staged.exists()
    case.staged.write_bytes(b"half")
    assert content(case.fetch(earlier=SHA256)) == DATA


def test_a_source_that_changes_while_it_is_copied_leaves_no_copy(case: Case) -> None:
    def change() -> bool:
        case.source.write_bytes(b"newer")
        return False

    with pytest.raises(SourceChanged):
        case.fetch(cancelled=change)
    assert case.done == []
    assert not case.staged.exists()


def test_a_staging_directory_that_cannot_be_written_waits_and_says_so(case: Case) -> None:
    case.staged.mkdir()
    with pytest.raises(OutOfSpace, match=r"service\.staging_dir"):
        case.fetch()


def test_a_staging_disk_that_answers_with_an_error_at_close_is_no_reason_to_fail(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = os.close

    def stale(descriptor: int) -> None:
        ours = os.readlink(f"/proc/self/fd/{descriptor}") == str(case.staged)
        close(descriptor)
        if ours:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "close", stale)
    assert content(case.fetch()) == DATA


def test_while_one_hangs_the_others_go_on_and_nothing_given_is_lost(case: Case) -> None:
    hanging, released, ran = threading.Event(), threading.Event(), threading.Event()
    waiting = [case.job]

    def run(job: Job) -> None:
        ran.set()
        hanging.set()
        assert released.wait(20)

    fetchers = Fetchers("w", 1, lambda: waiting.pop() if waiting else None, run, lambda: 0.01)
    fetchers.start()
    assert hanging.wait(20)
    assert fetchers.give(case.job)
    assert fetchers.end() == [case.job]
    assert not fetchers.give(case.job), "whoever comes later must put it back"
    released.set()
    for thread in fetchers.threads:
        thread.join(20)
        assert not thread.is_alive()
