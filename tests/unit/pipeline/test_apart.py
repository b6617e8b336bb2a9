"""P11: a destination on a thread of its own holds up no other, and loses nothing on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import pytest

from quaymaster.errors import Conflict, OutOfSpace, Unreachable
from quaymaster.model import Digests, Stored
from quaymaster.pipeline.apart import ROOM, Apart, Behind, Resting, Rests


class Sink:
    """An upload that goes on only while ``open`` is set."""

    resume_token = "token"

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.got = bytearray()
        self.said: list[str] = []
        self.error: Exception | None = None

    def write(self, data: bytes | memoryview) -> None:
        self.open.wait(30)
        if self.error:
            raise self.error
        self.got += data

    def publish(self, digests: Digests, metadata: Mapping[str, str]) -> Stored:
        self.said.append("publish")
        return Stored("key", len(self.got))

    def suspend(self) -> None:
        self.said.append("suspend")

    def abort(self) -> None:
        self.said.append("abort")


def test_everything_arrives_in_order_before_it_is_published() -> None:
    sink = Sink()
    sink.open.clear()
    upload = Apart(lambda: sink, "nas")
    buffer = bytearray(b"0")
    for number in range(ROOM):
        buffer[:] = b"%d" % number
        upload.write(memoryview(buffer))  # which is used again at once
    threading.Timer(0.1, sink.open.set).start()
    assert upload.publish(Digests(ROOM, ""), {}).size == ROOM
    assert bytes(sink.got) == b"0123"
    upload.abort()
    assert sink.said == ["publish", "abort"]  # which does nothing any more


def test_one_that_is_too_slow_falls_behind_and_is_left_to_go_on_later() -> None:
    sink = Sink()
    sink.open.clear()
    upload = Apart(lambda: sink, "nas", patience=0.3)
    began = time.monotonic()

    def fill() -> None:
        for _ in range(ROOM + 2):
            upload.write(b"x")

    with pytest.raises(Behind, match="nas takes bytes so slowly"):
        fill()
    assert time.monotonic() - began < 5
    upload.suspend()  # does not wait
    assert sink.said == []
    sink.open.set()
    upload.abort()  # does
    assert sink.said == ["suspend", "abort"]
    assert len(sink.got) == 1  # what it was doing, it ended; nothing more


def test_an_error_comes_out_where_the_next_piece_goes_in() -> None:
    sink = Sink()
    sink.error = Conflict("somebody else's")
    upload = Apart(lambda: sink, "nas")
    with pytest.raises(Conflict, match="somebody else's"):
        upload.publish(Digests(0, ""), {}) if not upload.write(b"x") else None
    upload.abort()
    assert sink.said == ["abort"]


def test_one_that_cannot_even_begin_says_so_and_leaves_nothing() -> None:
    def begin() -> Sink:
        raise Unreachable("nobody answers")

    upload = Apart(begin, "nas")
    with pytest.raises(Unreachable, match="nobody answers"):
        upload.publish(Digests(0, ""), {})
    upload.suspend()
    upload.abort()
    assert upload.resume_token == ""


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_dead_destination_rests_and_one_at_a_time_looks_after_it() -> None:
    clock = Clock()
    rests = Rests(clock)
    rests.enter("nas")
    rests.ended("nas", Unreachable("nobody answers"))
    rests.enter("other")
    with pytest.raises(Resting, match="nobody answers") as refused:
        rests.enter("nas")
    assert refused.value.retry_after == 5.0
    rests.ended("nas", refused.value)  # a refusal is no new failure
    clock.now += 5.0
    rests.enter("nas")  # the one that tries
    with pytest.raises(Resting):
        rests.enter("nas")
    rests.ended("nas", Unreachable("still nobody"))
    with pytest.raises(Resting, match="still nobody") as refused:
        rests.enter("nas")
    assert refused.value.retry_after == 10.0
    for _ in range(9):
        clock.now += 60.0
        rests.enter("nas")
        rests.ended("nas", Unreachable("no"))
    with pytest.raises(Resting) as refused:
        rests.enter("nas")
    assert refused.value.retry_after == 60.0


@pytest.mark.parametrize("answer", [None, OutOfSpace("full"), Conflict("taken")])
def test_any_answer_ends_the_rest(answer: Conflict | OutOfSpace | None) -> None:
    clock = Clock()
    rests = Rests(clock)
    rests.ended("nas", Unreachable("no"))
    clock.now += 5.0
    rests.enter("nas")
    rests.ended("nas", answer)
    rests.enter("nas")


def test_many_that_failed_in_the_same_moment_count_as_one() -> None:
    clock = Clock()
    rests = Rests(clock)
    for _ in range(20):
        rests.ended("nas", Unreachable("no"))
    with pytest.raises(Resting) as refused:
        rests.enter("nas")
    assert refused.value.retry_after == 5.0
