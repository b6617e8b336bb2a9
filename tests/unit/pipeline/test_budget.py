"""P12: ceilings hold, and at a ceiling work waits."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quaymaster.errors import OutOfSpace
from quaymaster.pipeline.budget import Cancelled, Pool, Staging
from system.service import until


def never() -> bool:
    return False


@given(ceiling=st.integers(1, 100), amounts=st.lists(st.integers(0, 200), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_the_ceiling_is_never_passed_and_everyone_is_served(ceiling: int, amounts: list[int]) -> None:
    pool = Pool(ceiling)
    highest: list[int] = []

    def borrow(amount: int) -> None:
        with pool.lend(amount, never):
            highest.append(pool.used)

    threads = [threading.Thread(target=borrow, args=(a,)) for a in amounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(highest) == len(amounts)
    assert max(highest) <= ceiling
    assert pool.used == 0


def test_a_large_request_is_not_starved_by_small_ones_that_come_later() -> None:
    pool = Pool(10)
    order: list[str] = []

    def borrow(name: str, amount: int) -> None:
        with pool.lend(amount, never):
            order.append(name)

    with pool.lend(5, never):
        large = threading.Thread(target=borrow, args=("large", 10))
        large.start()
        until(lambda: pool.waiting == 1)
        small = threading.Thread(target=borrow, args=("small", 1))
        small.start()
        until(lambda: pool.waiting == 2)
        assert order == []
    large.join(10)
    small.join(10)
    assert order == ["large", "small"]


def test_what_is_small_slips_in_but_not_for_ever() -> None:
    """Small files go on while a large one waits for much memory; it still gets its turn."""
    pool = Pool(64)
    order: list[str] = []
    returned = threading.Event()

    def large() -> None:
        with pool.lend(60, never):
            order.append("large")

    def hold() -> None:
        with pool.lend(40, never):
            returned.wait(30)

    holder, waiter = threading.Thread(target=hold), threading.Thread(target=large)
    holder.start()
    until(lambda: pool.used == 40)
    waiter.start()
    until(lambda: pool.waiting == 1)
    for _ in range(64):
        with pool.lend(4, never):
            order.append("small")
    assert order == ["small"] * 64
    late = threading.Thread(target=lambda: pool.lend(4, never).__enter__())
    late.start()
    until(lambda: pool.waiting == 2)
    returned.set()
    for thread in (holder, waiter, late):
        thread.join(10)
    assert order[-1] == "large"


def test_more_is_lent_while_more_is_free() -> None:
    pool = Pool(100)
    with pool.lend(20, never, 70) as first, pool.lend(20, never, 70) as second:
        assert (first, second, pool.used) == (70, 30, 100)
        pool.set(50)  # a reload
        with pytest.raises(Cancelled), pool.lend(1, lambda: True):
            pass
    with pool.lend(200, never) as all_there_is:
        assert all_there_is == 50


def test_who_wants_nothing_waits_for_nobody() -> None:
    pool = Pool(1)
    with pool.lend(1, never):
        waiting = threading.Thread(target=lambda: pool.lend(1, never).__enter__())
        waiting.start()
        until(lambda: pool.waiting == 1)
        with pool.lend(0, never):
            pass
    waiting.join(10)


def test_waiting_ends_when_the_service_stops() -> None:
    pool = Pool(10)
    with pool.lend(10, never), pytest.raises(Cancelled), pool.lend(1, lambda: True):
        pass
    assert pool.used == 0


def test_staging_keeps_its_ceiling_and_the_free_floor(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path), ceiling=100, floor=0)
    with staging.reserve(60):
        with pytest.raises(OutOfSpace, match=r"limits\.staging"), staging.reserve(60):
            pass
        with staging.reserve(40):
            pass
    with staging.reserve(1000):
        pass  # larger than the ceiling: alone
    with (
        pytest.raises(OutOfSpace, match="must stay free"),
        Staging(str(tmp_path), ceiling=None, floor=1 << 60).reserve(1),
    ):
        pass


def test_what_is_written_is_no_longer_counted_against_the_free_space(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path), ceiling=None, floor=0)
    free = staging._free()
    with ExitStack() as stack:
        wrote = stack.enter_context(staging.reserve(free - (64 << 20)))
        with pytest.raises(OutOfSpace), staging.reserve(256 << 20):
            pass
        wrote(free)
        stack.enter_context(staging.reserve(1 << 20))
