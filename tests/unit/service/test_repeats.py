"""Trouble that comes a thousand times is told a few times, and never left out altogether."""

from __future__ import annotations

import pytest

from quaymaster.model import Event, Level
from quaymaster.service.repeats import AT_ONCE, FIRST_PERIOD, LONGEST_PERIOD, Repeats


class Scene:
    def __init__(self) -> None:
        self.now = 1000.0
        self.told: list[Event] = []
        self.repeats = Repeats(self.told.append, lambda: self.now)

    def fail(self, times: int, *, watch: str = "w", code: str = "unreachable") -> None:
        for number in range(times):
            path = b"file-%d" % number
            self.repeats(
                Event(
                    "retry", f"no answer for {number}", Level.WARNING, watch=watch, path=path, job=number + 1, code=code
                )
            )

    def after(self, seconds: float) -> list[Event]:
        """What is told at the end of so many seconds of one tick each."""
        self.told.clear()
        for _ in range(int(seconds)):
            self.now += 1
            self.repeats.tick()
        return list(self.told)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_few_are_told_as_they_come(scene: Scene) -> None:
    scene.fail(AT_ONCE)
    assert [event.path for event in scene.told] == [b"file-%d" % number for number in range(AT_ONCE)]
    assert scene.after(10 * FIRST_PERIOD) == []


def test_of_many_the_rest_is_one_line_with_number_example_and_where_to_look(scene: Scene) -> None:
    scene.fail(1000)
    assert len(scene.told) == AT_ONCE
    (summary,) = scene.after(FIRST_PERIOD)
    assert summary.message == (
        "995 more times within 1 min, the last for file-999: no answer for 999."
        " List them: quaymaster jobs --error unreachable"
    )
    assert (summary.kind, summary.watch, summary.path, summary.job) == ("retry", "w", b"", 0)
    assert summary.level == Level.WARNING


def test_ten_minutes_of_a_thousand_a_minute_are_a_dozen_lines(scene: Scene) -> None:
    told = 0
    for _ in range(600):
        scene.fail(17)
        scene.now += 1
        scene.repeats.tick()
        told = len(scene.told)
    assert AT_ONCE < told <= 14


def test_the_time_between_two_lines_has_a_limit(scene: Scene) -> None:
    scene.fail(10)
    for _ in range(8):  # past the doubling
        scene.after(LONGEST_PERIOD)
        scene.fail(10)
    assert scene.after(LONGEST_PERIOD) != []


def test_a_single_one_that_was_held_back_is_told_as_it_was(scene: Scene) -> None:
    scene.fail(AT_ONCE + 1)
    (late,) = scene.after(FIRST_PERIOD)
    assert (late.path, late.message) == (b"file-%d" % AT_ONCE, f"no answer for {AT_ONCE}")


def test_after_a_quiet_time_it_is_news_again(scene: Scene) -> None:
    scene.fail(1000)
    scene.after(FIRST_PERIOD + 2 * FIRST_PERIOD + 1)
    scene.told.clear()
    scene.fail(AT_ONCE)
    assert len(scene.told) == AT_ONCE


def test_other_watches_and_other_errors_are_told_for_themselves(scene: Scene) -> None:
    scene.fail(1000)
    scene.told.clear()
    scene.fail(1, watch="other")
    scene.fail(1, code="permission-denied")
    assert len(scene.told) == 2


def test_what_is_held_back_at_the_end_is_told(scene: Scene) -> None:
    scene.fail(100)
    scene.told.clear()
    scene.repeats.tick(last=True)
    assert len(scene.told) == 1


@pytest.mark.parametrize(
    "event",
    [
        Event("delivered", "delivered", Level.INFO, watch="w", path=b"a"),
        Event("config-refused", "q.toml:1: wrong", Level.ERROR),
    ],
)
def test_deliveries_and_each_problem_of_a_configuration_are_always_told(scene: Scene, event: Event) -> None:
    for _ in range(100):
        scene.repeats(event)
    assert scene.told == [event] * 100
