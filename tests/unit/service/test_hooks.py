"""O4: one hook at work, by a clock of its own: a day of status 500, one event that nobody wants, an operator's word."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quaymaster.config import Hook
from quaymaster.model import Event, FileVersion, Identity, State
from quaymaster.service.hooks.answer import Answer
from quaymaster.service.hooks.line import Line
from quaymaster.service.hooks.payload import payload
from quaymaster.store import Filter, Store
from quaymaster.store.outbox import EVENTS, LONGEST_WAIT, Message, Wants

HOUR = 3600.0


class Receiver:
    """Takes what ``answer`` takes, and remembers what it was told."""

    def __init__(self) -> None:
        self.answer: Callable[[str], Answer] = lambda number: Answer()
        self.tries: list[str] = []
        self.taken: list[str] = []

    def send(self, event: str, number: str, body: bytes) -> Answer:
        answer = self.answer(number)
        self.tries.append(number)
        if not answer.error:
            self.taken.append(number)
        return answer

    def cut_off(self) -> None:
        pass


class Scene:
    def __init__(self, folder: Path) -> None:
        self.now = 1_000_000.0
        self.store = Store(str(folder / "state"), create=True, clock=lambda: self.now)
        self.receiver = Receiver()
        self.events: list[Event] = []
        self.jobs = 0
        self.line = self.begin()

    def begin(self, **settings: object) -> Line:
        hook = Hook(name="h", on=("parked",), command=("/bin/true",), **settings)  # type: ignore[arg-type]
        self.store.outbox.register({"h": Wants(frozenset(hook.on))})
        self.line = Line(
            hook, self.receiver, self.store.outbox, lambda: "log", "host", self.events.append,
            lambda: self.now, lambda: 1.0,
        )  # fmt: skip
        return self.line

    def happen(self, *paths: bytes) -> None:
        self.jobs += 1
        self.store.enqueue([FileVersion("w", path, Identity(1, 1, self.jobs)) for path in paths])
        for job in self.store.claim(len(paths)):
            self.store.fail(job, State.PARKED, "refused", "no")

    def turn(self) -> int:
        """Let it work until nothing is under way; how many tries that were."""
        before = len(self.receiver.tries)
        while True:
            self.line.turn()
            if not self.line._in_flight:
                return len(self.receiver.tries) - before
            deadline = time.monotonic() + 60
            while self.line._busy():
                assert time.monotonic() < deadline
                time.sleep(0.001)

    @property
    def standing(self):
        return self.store.outbox.standing()[0]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.line.end()
    made.store.close()


def entries(numbers: list[str]) -> list[int]:
    return [int(number.split(":")[1]) for number in numbers]


def test_a_day_of_status_500_costs_few_tries_and_then_all_is_told_at_once(scene: Scene) -> None:
    scene.receiver.answer = lambda number: Answer("it answered with status 500")
    scene.happen(*(b"%d" % number for number in range(40)))
    tries = 0
    for _ in range(24 * 60):
        tries += scene.turn()
        scene.now += 60
    assert tries < 8 + 10 + 24 * 4 * 2
    standing = scene.standing
    assert (standing.waiting, standing.refused > 0, standing.last_error) == (40, True, "it answered with status 500")
    assert scene.now - standing.failing_since == 24 * HOUR
    scene.receiver.answer = lambda number: Answer()
    scene.now += LONGEST_WAIT
    scene.turn()
    scene.turn()
    assert sorted(entries(scene.receiver.taken)) == list(range(1, 41))
    assert scene.kinds().count("hook-back") == 1
    assert scene.standing.failing_since is None


def test_a_list_of_a_unit_is_told_as_of_its_watch_and_destination(scene: Scene) -> None:
    fields = {"watch": "w@nas", "path": "run/SHA256SUMS", "error": "somebody else's"}
    found = payload(Message(1, "h", 7, "parked", 0.0, fields), "log", "host")
    assert (found["watch"], found["destination"], found["path"]) == ("w", "nas", "run/SHA256SUMS")
    assert found["text"] == "w/run/SHA256SUMS is parked: somebody else's"


def test_one_event_that_nobody_takes_holds_up_its_own_file_alone(scene: Scene) -> None:
    scene.happen(b"a", b"poison", b"b")
    bad = {job.id for job in scene.store.jobs(Filter(path=b"poison"))}
    seq = next(e.seq for job in scene.store.jobs(Filter(path=b"poison")) for e in scene.store.history(job))
    assert bad
    scene.receiver.answer = lambda number: Answer("no" if f":{seq}:" in number else "")
    for _ in range(60):
        scene.happen(b"poison", b"c%d" % scene.jobs)
        scene.turn()
        scene.now += 60
    assert len(scene.receiver.taken) == 62
    assert scene.standing.waiting == 61
    assert scene.standing.refused_since == 1_000_000.0
    scene.receiver.answer = lambda number: Answer()
    scene.now += LONGEST_WAIT
    scene.turn()
    told = entries(scene.receiver.taken)
    of_poison = told[-61:]
    assert of_poison == sorted(of_poison)
    assert scene.standing.waiting == 0


def test_waits_grow_to_a_quarter_of_an_hour_and_what_the_receiver_asks_for_is_kept(scene: Scene) -> None:
    scene.receiver.answer = lambda number: Answer("later", retry_after=100)
    scene.happen(b"a")
    scene.turn()
    assert scene.standing.next_try == scene.now + 100
    for _ in range(20):
        scene.now += 2 * LONGEST_WAIT
        scene.turn()
    assert scene.standing.next_try == scene.now + LONGEST_WAIT


def test_a_clock_that_is_set_back_puts_nothing_off(scene: Scene) -> None:
    scene.receiver.answer = lambda number: Answer("no")
    scene.happen(*(b"%d" % number for number in range(20)))
    for _ in range(100):
        scene.turn()
        scene.now += 60
    scene.receiver.answer = lambda number: Answer()
    scene.now -= 24 * HOUR
    scene.turn()
    assert scene.turn() + len(scene.receiver.taken) >= 20


def test_an_operator_need_not_wait(scene: Scene) -> None:
    scene.receiver.answer = lambda number: Answer("no")
    scene.happen(*(b"%d" % number for number in range(20)))
    for _ in range(200):
        scene.turn()
        scene.now += 60
    assert scene.turn() == 0
    scene.receiver.answer = lambda number: Answer()
    scene.store.outbox.retry("h", "me")
    assert scene.turn() == 20


def test_what_is_old_is_given_up_only_where_that_is_configured(scene: Scene) -> None:
    scene.begin(give_up=HOUR)
    scene.receiver.answer = lambda number: Answer("no")
    scene.happen(b"a")
    scene.turn()
    assert scene.standing.parked == 0
    scene.now += HOUR
    scene.turn()
    assert (scene.standing.parked, scene.standing.waiting) == (1, 0)
    assert scene.kinds()[-1] == "hook-given-up"


def test_a_receiver_that_is_gone_is_asked_once_for_each(scene: Scene) -> None:
    scene.receiver.answer = lambda number: Answer("it answered with status 410", gone=True)
    scene.happen(b"a", b"b")
    assert scene.turn() == 2
    assert scene.standing.parked == 2
    scene.now += HOUR
    assert scene.turn() == 0


def test_what_was_cut_off_is_told_again_and_counts_as_no_failure(scene: Scene) -> None:
    scene.receiver.answer = lambda number: Answer("the service stops", cut=True)
    scene.happen(b"a")
    scene.line.turn()
    while scene.line._busy():
        time.sleep(0.001)
    scene.line.end()
    scene.line.turn()
    assert (scene.standing.waiting, scene.standing.failures) == (1, 0)
    assert scene.events == []
    scene.receiver.answer = lambda number: Answer()
    scene.begin()
    scene.turn()
    assert len(scene.receiver.taken) == 1


def test_a_defect_of_a_sender_is_a_failure_like_others(scene: Scene) -> None:
    def break_down(number: str) -> Answer:
        raise RuntimeError("oops")

    scene.receiver.answer = break_down
    scene.happen(b"a")
    scene.line.turn()
    while scene.line._busy():
        time.sleep(0.001)
    scene.line.turn()
    assert "RuntimeError: oops" in scene.standing.last_error


def test_a_test_is_sent_even_while_the_receiver_is_down_and_is_marked(scene: Scene) -> None:
    scene.receiver.answer = lambda number: Answer("no")
    scene.happen(*(b"%d" % number for number in range(20)))
    for _ in range(200):
        scene.turn()
        scene.now += 60
    number = scene.store.outbox.test("h", "parked", {"watch": "w"})
    assert scene.turn() == 1
    assert scene.store.outbox.tested("h", number) == "no"
    first = scene.receiver.tries[-1]
    assert first.split(":")[1].startswith("test-")
    scene.now += 1
    assert scene.store.outbox.test("h", "parked", {"watch": "w"}) == number
    scene.turn()
    assert scene.receiver.tries[-1] != first, "who drops what came already must not drop another test"


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_has_a_stable_name_and_a_sentence(event: str) -> None:
    fields = {"watch": "w", "path": "a\\xff", "path_hex": "61ff", "code": "refused", "error": "no", "destination": "d"}
    message = Message(1, "h", 7, event, 1_700_000_000.5, fields)
    found = payload(message, "0123", "lab1")
    assert found == payload(message, "0123", "lab1")
    assert (found["id"], found["schema"], found["host"]) == (f"0123:7:{event}", 1, "lab1")
    assert (found["time"], found["at"]) == ("2023-11-14T22:13:20.500Z", 1_700_000_000.5)
    assert (found["path"], found["path_bytes_hex"], found["error_code"]) == ("a\\xff", "61ff", "refused")
    assert found["text"]
    assert "test" not in found
    assert payload(Message(1, "h", 0, event, 0.0, fields), "0123", "lab1")["test"] is True
