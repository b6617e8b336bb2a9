"""How many parts travel at once: more while that pays, and turns shared out evenly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from quaymaster.destinations.s3_pace import Climb, Pace


def climbed(rate: Callable[[int], float], windows: int, least: int = 8, most: int = 160) -> list[int]:
    """The number of each window, for a server that moves ``rate(number)`` bytes a second."""
    climb, seen = Climb(least, most), []
    for _ in range(windows):
        seen.append(climb.limit)
        climb.measured(rate(climb.limit))
    return seen


def test_it_takes_all_when_each_connection_adds_its_own() -> None:
    seen = climbed(lambda number: 12e6 * number, 20)
    assert seen[:3] == [8, 16, 32]
    assert max(seen) == 160


def test_a_server_at_its_limit_is_left_alone() -> None:
    seen = climbed(lambda number: 100e6, 200)
    assert sum(number > 8 for number in seen) < 20, "tries are rare"
    assert seen[1] == 16
    assert max(seen[2:]) == 12, "and small, but for the first"


def test_it_stays_where_more_no_longer_pays() -> None:
    seen = climbed(lambda number: 12e6 * min(number, 40), 100)
    assert max(seen) == 128
    assert sum(36 <= number <= 64 for number in seen) > 80


def test_it_comes_down_again_when_fewer_do_as_well() -> None:
    climb = Climb(8, 160)
    while climb.limit < 160:
        climb.measured(1e6 * climb.limit)
    for _ in range(400):
        climb.measured(50e6)
    assert climb.limit <= 12


@pytest.mark.parametrize(("least", "most"), [(8, 8), (8, 1), (1, 1)])
def test_there_may_be_nothing_to_choose(least: int, most: int) -> None:
    assert set(climbed(lambda number: 1e6 * number, 50, least, most)) == {least}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Parts:
    """Parts that wait for turns of one pace, each in a thread, and move until they are let go."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.changed = threading.Condition()
        self.moving: list[str] = []
        self.refused: list[str] = []
        self.over: set[str] = set()
        self.files: dict[str, threading.Event] = {}
        self.threads: list[threading.Thread] = []

    def begin(self, file: str, number: int) -> None:
        for _ in range(number):
            thread = threading.Thread(target=self._move, args=(file, self.files.setdefault(file, threading.Event())))
            thread.start()
            self.threads.append(thread)

    def _move(self, file: str, stopped: threading.Event) -> None:
        with self.pace.turn(1, stopped) as mine, self.changed:
            (self.moving if mine else self.refused).append(file)
            self.changed.notify_all()
            if mine:
                assert self.changed.wait_for(lambda: file in self.over, 60)
                self.over.discard(file)
                self.moving.remove(file)
                self.changed.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 60), self.moving

    def end(self, file: str) -> None:
        with self.changed:
            self.over.add(file)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: file not in self.over, 60)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


def test_the_file_with_the_fewest_parts_under_way_is_next() -> None:
    parts = Parts(Pace(2, 2))
    parts.begin("large", 6)
    parts.until(lambda: parts.moving == ["large", "large"])
    parts.begin("other", 1)
    until(lambda: parts.pace.waiting == 5)
    parts.end("large")
    parts.until(lambda: sorted(parts.moving) == ["large", "other"])
    for file in ["other", *["large"] * 5]:
        parts.until(lambda file=file: file in parts.moving)  # type: ignore[misc]
        parts.end(file)
    parts.join()


def test_one_that_is_given_up_waits_no_longer() -> None:
    parts = Parts(Pace(1, 1))
    parts.begin("first", 1)
    parts.until(lambda: parts.moving == ["first"])
    parts.begin("second", 3)
    parts.files["second"].set()
    parts.until(lambda: parts.refused == ["second"] * 3)
    parts.begin("third", 1)
    parts.end("first")
    parts.until(lambda: parts.moving == ["third"])
    parts.end("third")
    parts.join()


def test_a_failure_gives_the_turn_back() -> None:
    pace, stopped = Pace(1, 1), threading.Event()
    for _ in range(3):
        with pytest.raises(OSError, match="lost"), pace.turn(1, stopped):
            raise OSError("lost")
    with pace.turn(1, stopped) as mine:
        assert mine


def test_while_not_all_turns_are_wanted_there_are_not_more() -> None:
    clock = [0.0]
    pace, stopped = Pace(4, 100, lambda: clock[0]), threading.Event()
    for _ in range(500):
        clock[0] += 0.5
        with pace.turn(1 << 20, stopped):
            pass
    assert pace.limit == 4
