"""W6: that a filesystem does not answer is seen from outside the call that hangs."""

from __future__ import annotations

import threading

from quaymaster.source import Pulse


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_silence_lasts_from_the_question_to_the_answer() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    assert pulse.silence() == 0
    with pulse:
        clock.now += 5
        assert pulse.silence() == 5
        pulse.beat()
        assert pulse.silence() == 0
        clock.now += 2
        with pulse.elsewhere():
            clock.now += 50
            assert pulse.silence() == 0, "the filesystem is not to blame for that"
            pulse.beat()
            assert pulse.silence() == 0
        clock.now += 3
        assert pulse.silence() == 3
    assert pulse.silence() == 0


def test_the_oldest_question_of_all_threads_counts() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    asked, answer = threading.Event(), threading.Event()

    def hang() -> None:
        with pulse:
            asked.set()
            answer.wait(20)

    thread = threading.Thread(target=hang)
    thread.start()
    assert asked.wait(20)
    clock.now += 40
    with pulse:
        assert pulse.silence() == 40
    assert pulse.silence() == 40
    answer.set()
    thread.join()
    assert pulse.silence() == 0
