"""S1: a directory whose server does not answer holds nobody up, and nothing that was begun there stays."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.places import bytes_of, content, deliver, digests_of
from quaymaster.destinations.answering import Answering
from quaymaster.destinations.base import Put
from quaymaster.destinations.directory import Directory
from quaymaster.destinations.directory_upload import DirectoryUpload
from quaymaster.errors import Conflict, Unreachable

HANG_AFTER = 0.3
DATA = bytes_of(3 << 20)


class Share:
    """A directory whose calls hang when they are told to."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self._patch = path, monkeypatch
        self.network = True
        self.answers = threading.Event()
        self.answers.set()
        self.hanging: set[int] = set()
        self.destination = Answering(
            lambda beat: Directory("nas", str(path), emit=print, beat=beat),
            str(path),
            hang_after=HANG_AFTER,
            may_hang=lambda: self.network,
        )

    def hang(self, owner: type, name: str) -> None:
        """From now on this method does not come to its work until there are answers again."""
        self.answers.clear()
        real = getattr(owner, name)

        def method(*arguments: object, **named: object) -> object:
            if not self.answers.is_set():
                self.hanging.add(threading.get_ident())
            assert self.answers.wait(30)
            return real(*arguments, **named)

        self._patch.setattr(owner, name, method)

    def answer(self) -> None:
        """And until everything that hung has come to its end."""
        self.answers.set()
        self.works_again(lambda: self.destination.stat("no such file"))

    def works_again(self, call: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                call()
                return
            except Unreachable:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    share = Share(tmp_path, monkeypatch)
    yield share
    share.answers.set()
    share.destination.close()


def in_time(call: Callable[[], object]) -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match="No answer from the filesystem of"):
        call()
    assert time.monotonic() - began < HANG_AFTER + 5


def test_nobody_waits_for_an_answer_that_does_not_come(share: Share) -> None:
    destination = share.destination
    stored = deliver(destination, "a", DATA)
    share.hang(Directory, "stat")
    in_time(lambda: destination.stat("a"))
    for _ in range(20):  # nothing more is asked, and no more threads hang
        with pytest.raises(Unreachable):
            destination.stat("a")
        with pytest.raises(Unreachable):
            destination.begin(Put("b", 1))
        assert not destination.abandon("b")
    assert len(share.hanging) == 1
    share.answer()
    assert destination.stat("a") is not None
    assert content(destination, stored) == DATA


@pytest.mark.parametrize("method", ["write", "publish"])
def test_what_an_upload_that_hung_has_begun_is_removed(share: Share, method: str) -> None:
    upload = share.destination.begin(Put("run/a", len(DATA)))
    share.hang(DirectoryUpload, method)
    if method == "publish":
        upload.write(DATA)
    # There would be more time for a publication, but nobody is answered any more.
    share.hang(Directory, "stat")
    in_time(lambda: share.destination.stat("a"))
    if method == "write":
        with pytest.raises(Unreachable):
            upload.write(DATA)
    else:
        with pytest.raises(Unreachable):
            upload.publish(digests_of(DATA), {})
    upload.abort()
    assert upload.resume_token, "it is noted until it is gone"
    share.answer()
    share.works_again(lambda: share.destination.stat("a"))
    assert upload.resume_token == ""
    assert share.names() == []
    assert content(share.destination, deliver(share.destination, "run/a", DATA)) == DATA


def test_a_publication_that_came_too_late_is_found_by_the_next_run(share: Share) -> None:
    upload = share.destination.begin(Put("a", 1))
    upload.write(b"x")
    share.hang(DirectoryUpload, "publish")
    in_time(lambda: upload.publish(digests_of(b"x"), {}))
    upload.abort()
    share.answer()
    assert share.names() == ["a"]
    assert deliver(share.destination, "a", b"x").evidence == "readback"
    with pytest.raises(Conflict):
        deliver(share.destination, "a", b"y")
    assert share.names() == ["a"]


def test_the_bytes_of_a_write_that_hangs_may_be_used_again(share: Share) -> None:
    share.hang(DirectoryUpload, "write")
    upload, buffer = share.destination.begin(Put("a", 1 << 20)), bytearray(1 << 20)
    in_time(lambda: upload.write(memoryview(buffer)))
    buffer.extend(b"which the kernel would refuse to anybody who still looks at them")
    upload.abort()


def test_a_copy_that_cannot_be_read_on_is_closed_later(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = deliver(share.destination, "a", DATA)
    before = len(os.listdir("/proc/self/fd"))
    with share.destination.read(stored) as pieces:
        next(pieces)
        share.hang(Directory, "stat")
        in_time(lambda: share.destination.stat("a"))
        with pytest.raises(Unreachable):
            next(pieces)
    share.answer()
    share.works_again(lambda: share.destination.stat("a"))
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > before:
        assert time.monotonic() < deadline, "it stays open"
        time.sleep(0.02)


def test_what_takes_long_but_goes_on_is_waited_for(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(directory: Directory) -> list[str]:
        for _ in range(10):
            time.sleep(HANG_AFTER / 4)
            directory.beat()
        return ["done"]

    monkeypatch.setattr(Directory, "check", slowly)
    assert share.destination.check() == ["done"]


def test_a_large_file_may_take_its_time_to_be_synced(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three mebibytes have three seconds more, as long as the others are answered."""
    real = DirectoryUpload.publish

    def slowly(upload: DirectoryUpload, *arguments: object) -> object:
        time.sleep(3 * HANG_AFTER)
        return real(upload, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DirectoryUpload, "publish", slowly)
    assert deliver(share.destination, "a", DATA).size == len(DATA)


def test_what_the_store_takes_is_not_blamed_on_the_directory(share: Share) -> None:
    upload = share.destination.begin(Put("a", 1, note=lambda token: time.sleep(3 * HANG_AFTER)))
    upload.abort()
    assert share.names() == []


def test_a_local_directory_is_asked_directly(share: Share) -> None:
    share.network = False
    before = set(threading.enumerate())  # others' may still be ending
    deliver(share.destination, "a", DATA)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "ask-nas"]
