"""M1, P12: the ranges of a large object come in order, in a bounded number of buffers, whoever uses them when."""

from __future__ import annotations

import mmap
import threading
from contextlib import closing

import pytest

from quaymaster.errors import Unreachable
from quaymaster.mirror.ranges import Ranges

SIZE, LENGTH = 10 * mmap.PAGESIZE + 7, mmap.PAGESIZE
OFFSETS = list(range(0, SIZE, LENGTH))


def fill(at: int, buffer: memoryview) -> None:
    buffer[:] = bytes([at // LENGTH]) * len(buffer)


def test_they_come_in_order_and_the_last_is_shorter() -> None:
    with closing(Ranges(fill, 0, SIZE, LENGTH, at_once=4, buffers=3, uses=1)) as ranges:
        seen = []
        for came in ranges:
            seen.append((came.data[0], len(came.data)))
            came.give_back()
    assert seen == [(number, LENGTH if at + LENGTH <= SIZE else 7) for number, at in enumerate(OFFSETS)]


def test_no_more_is_asked_for_than_there_are_buffers_that_nobody_uses() -> None:
    begun, all_begun = list[int](), threading.Semaphore(0)

    def counted(at: int, buffer: memoryview) -> None:
        begun.append(at)
        all_begun.release()
        fill(at, buffer)

    with closing(Ranges(counted, 0, SIZE, LENGTH, at_once=5, buffers=2, uses=2)) as ranges:
        turn = iter(ranges)
        first, second = next(turn), next(turn)
        first.give_back()
        for _ in range(2):
            assert all_begun.acquire(timeout=60)
        assert sorted(begun) == OFFSETS[:2], "one of its two users still needs it"
        assert first.data[0] == 0
        first.give_back()
        assert all_begun.acquire(timeout=60)
        assert sorted(begun) == OFFSETS[:3]
        second.give_back()


def test_what_a_request_raises_comes_out_in_its_turn() -> None:
    def broken(at: int, buffer: memoryview) -> None:
        if at == OFFSETS[2]:
            raise Unreachable("the connection ended")
        fill(at, buffer)

    with closing(Ranges(broken, 0, SIZE, LENGTH, at_once=4, buffers=4, uses=1)) as ranges:
        turn = iter(ranges)
        assert [next(turn).data[0] for _ in range(2)] == [0, 1]
        with pytest.raises(Unreachable):
            next(turn)


def test_they_grow_while_they_come_quickly_and_shrink_when_they_do_not() -> None:
    """On a slow line that breaks now and then, each long range would have to come from its beginning again."""
    asked, now = list[int](), 0.0

    def timed(at: int, buffer: memoryview) -> None:
        nonlocal now
        asked.append(len(buffer) // LENGTH)
        now += asked[-1] * (0.0 if at < 100 * LENGTH else 1.0)  # from then on a page takes a second

    ranges = Ranges(timed, 0, 150 * LENGTH, 16 * LENGTH, at_once=1, buffers=1, uses=1, monotonic=lambda: now)
    with closing(ranges):
        for came in ranges:
            came.give_back()
    assert asked == [2, 4, 8, 16, 16, 16, 16, 16, 16, 16, 8, 4, 4, 4, 4]
