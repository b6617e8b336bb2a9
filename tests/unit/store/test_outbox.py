"""O4: the outbox is bounded, loses nothing, and keeps the order of each subject, whatever fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quaymaster.config.schema import HookEvent
from quaymaster.model import FileVersion, Identity, Job, State
from quaymaster.store import Filter, MirrorUnit, Store, outbox
from quaymaster.store.outbox import DOWN, EVENTS, Message, Settled, Wants

PARKED = Wants(frozenset({"parked"}))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(str(tmp_path / "state"), create=True, clock=clock)
    yield store
    store.close()


def park(store: Store, path: bytes, watch: str = "w", code: str = "refused") -> Job:
    """One custody entry about a file."""
    store.enqueue([FileVersion(watch, path, Identity(1, 1, park_count()))])
    (job,) = store.claim(1)
    store.fail(job, State.PARKED, code, "no")
    return job


_parked = 0


def park_count() -> int:
    global _parked
    _parked += 1
    return _parked


def take(store: Store, hook: str = "h", now: float = 1e9, limit: int = 100) -> list[Message]:
    store.outbox.feed(hook)
    return store.outbox.due(hook, limit, now)


def confirm(store: Store, *messages: Message, hook: str = "h") -> None:
    store.outbox.settle(hook, [Settled(message, 2000.0) for message in messages])


def test_the_events_of_the_configuration_are_those_of_the_outbox() -> None:
    assert set(HookEvent.__args__) == set(EVENTS)  # type: ignore[attr-defined]


def test_a_new_hook_is_told_what_happens_from_then_on(store: Store) -> None:
    park(store, b"before")
    store.outbox.register({"h": PARKED})
    job = park(store, b"after")
    (message,) = take(store)
    assert (message.event, message.fields["path"], message.job) == ("parked", "after", job.id)
    assert message.fields["error"] == "no"
    confirm(store, message)
    assert take(store) == []
    assert store.outbox.standing()[0].confirmed == 1


def test_what_nobody_wants_is_not_taken(store: Store) -> None:
    store.outbox.register({"h": Wants(frozenset({"parked"}), frozenset({"lab"})), "d": Wants(frozenset({"delivered"}))})
    park(store, b"a", "other")
    park(store, b"b", "lab")
    assert [message.fields["path"] for message in take(store)] == ["b"]
    assert take(store, "d") == []


def test_a_file_whose_bytes_differ_is_an_integrity_failure_and_parked(store: Store) -> None:
    store.outbox.register({"h": Wants(frozenset({"parked", "integrity-failure"}))})
    park(store, b"a", code="integrity")
    assert [message.event for message in take(store)] == ["parked"]
    confirm(store, *take(store))
    assert [message.event for message in take(store)] == ["integrity-failure"]


def test_a_version_that_a_mirror_did_not_take_is_parked_and_one_that_is_not_what_its_manifest_says_differs(
    store: Store,
) -> None:
    store.outbox.register({"h": Wants(frozenset({"parked", "integrity-failure"}), frozenset({"models"}))})
    store.declare(["models", "others"], [])
    store.put_unit("models", MirrorUnit(b"m/1", "none"), "quarantined", {"error": "not served"})
    store.put_unit("models", MirrorUnit(b"m/2", "none"), "quarantined", {"error": "other", "code": "integrity"})
    store.put_unit("others", MirrorUnit(b"m/1", "none"), "quarantined", {"error": "not served"})
    found = []
    while messages := take(store):
        found += [(message.fields["mirror"], message.fields["path"], message.event) for message in messages]
        confirm(store, *messages)
    assert sorted(found) == [
        ("models", "m/1", "parked"), ("models", "m/2", "integrity-failure"), ("models", "m/2", "parked"),
    ]  # fmt: skip


def test_of_each_subject_only_the_oldest_is_due_and_the_others_go_on(store: Store) -> None:
    store.outbox.register({"h": PARKED})
    for name in (b"a", b"a", b"b", b"a", b"c"):
        park(store, name)
    first = take(store)
    assert [m.fields["path"] for m in first] == ["a", "b", "c"]
    store.outbox.settle("h", [Settled(first[0], 2000.0, "no", 3000.0)])
    confirm(store, first[1], first[2])
    assert take(store, now=2500.0) == []
    (again,) = take(store, now=3000.0)
    assert (again.entry, again.attempts, again.error) == (first[0].entry, 1, "no")


def test_a_long_outage_costs_a_bounded_number_of_rows_and_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "WINDOW", 20)
    store.outbox.register({"h": PARKED})
    names = [b"%d" % number for number in range(50)]
    store.enqueue([FileVersion("w", name, Identity(1, 1, 1)) for name in names])
    for job in store.claim(len(names)):
        store.fail(job, State.PARKED, "refused", "no")
    _, more = store.outbox.feed("h")
    assert not more  # there is no room for more
    standing = store.outbox.standing()[0]
    assert (standing.waiting, standing.behind) == (20, 30)
    told = []
    while found := take(store, limit=20):
        told += [message.fields["path"].encode() for message in found]
        confirm(store, *found)
    assert sorted(told) == sorted(names)


def test_what_nobody_wanted_is_not_looked_through_for_ever(store: Store) -> None:
    store.outbox.register({"h": Wants(frozenset({"released"}))})
    for _ in range(3):
        park(store, b"a")
    position, _ = store.outbox.feed("h")
    assert position == store.custody_entry().seq  # type: ignore[union-attr]
    assert store.outbox.feed("h", position) == (position, False)


def test_a_removed_hook_is_forgotten_with_what_it_was_not_told(store: Store) -> None:
    store.outbox.register({"h": PARKED, "other": PARKED})
    park(store, b"a")
    take(store)
    assert store.outbox.register({"other": PARKED}) == {"h": 1}
    assert [standing.name for standing in store.outbox.standing()] == ["other"]
    assert take(store) == []
    assert store.custody_entry().fields["kind"] == "hook-removed"  # type: ignore[union-attr]
    store.outbox.register({"h": PARKED, "other": PARKED})
    assert take(store) == []
    assert len(take(store, "other")) == 1


def test_what_is_given_up_stays_until_an_operator_says_otherwise(store: Store) -> None:
    store.outbox.register({"h": PARKED})
    job = park(store, b"a")
    store.outbox.settle("h", [Settled(take(store)[0], 2000.0, "gone", None)])
    assert take(store) == []
    assert not store.confirmed(job, "h")
    assert store.history(job)[-1].fields["kind"] == "hook-given-up"
    standing = store.outbox.standing()[0]
    assert (standing.waiting, standing.parked, standing.last_error) == (0, 1, "gone")
    assert store.outbox.retry("h", "me") == 1
    (message,) = take(store)
    assert store.outbox.skip("h", [message.id, 4711], "me") == [message.id]
    assert store.confirmed(job, "h")
    assert store.history(job)[-1].fields["kind"] == "hook-skipped"


def test_when_the_receiver_is_back_nothing_waits_for_a_later_try(store: Store) -> None:
    store.outbox.register({"h": PARKED})
    for number in range(DOWN + 1):
        park(store, b"%d" % number)
    found = take(store)
    store.outbox.settle("h", [Settled(message, 2000.0, "no", 2800.0) for message in found[:DOWN]])
    assert [m.id for m in take(store, now=2001.0)] == [found[DOWN].id]
    confirm(store, found[DOWN])
    assert len(take(store, now=2001.0)) == DOWN


def test_a_job_is_confirmed_when_the_hook_has_taken_all_that_concerns_it(store: Store) -> None:
    store.outbox.register({"h": PARKED, "elsewhere": Wants(frozenset({"parked"}), frozenset({"lab"}))})
    job = park(store, b"a")
    assert not store.confirmed(job, "unknown")
    assert store.confirmed(job, "elsewhere")
    assert not store.confirmed(job, "h")  # not even taken from the log
    (message,) = take(store)
    assert not store.confirmed(job, "h")
    store.outbox.settle("h", [Settled(message, 2000.0, "no", 2001.0)])
    assert not store.confirmed(job, "h")
    confirm(store, message)
    assert store.confirmed(job, "h")


def test_who_waits_for_a_hook_runs_as_soon_as_it_has_confirmed(store: Store) -> None:
    store.outbox.register({"h": PARKED})
    park(store, b"a")
    store.retry(Filter())
    (job,) = store.claim(1)
    assert store.await_hooks(job, ["h"], 9999.0) == "h"
    waiting = store.jobs(Filter())[0]
    assert (waiting.state, waiting.retry_at) == (State.WAITING, 9999.0)
    assert "until hook h has confirmed" in waiting.error
    assert store.claim(1) == []
    confirm(store, *take(store))
    (job,) = store.claim(1)
    assert store.await_hooks(job, ["h"], 9999.0) == ""


def test_a_test_is_sent_before_all_else_and_leaves_nothing(store: Store) -> None:
    store.outbox.register({"h": PARKED})
    park(store, b"a")
    store.outbox.feed("h")
    number = store.outbox.test("h", "parked", {"watch": "w"})
    first = take(store)[0]
    assert (first.id, first.test, dict(first.fields)) == (number, True, {"watch": "w"})
    assert store.outbox.tested("h", number) is None
    store.outbox.settle("h", [Settled(first, 2000.0, "no")])
    assert store.outbox.tested("h", number) == "no"
    again = store.outbox.test("h", "parked", {"watch": "w"})
    assert store.outbox.tested("h", again) is None, "that is what the test before came to"
    store.outbox.withdraw_test(again)
    standing = store.outbox.standing()[0]
    assert (standing.waiting, standing.parked, standing.failures) == (1, 0, 0)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    subjects=st.lists(st.sampled_from("abcd"), max_size=15),
    tries=st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), max_size=30),
)
def test_each_subject_is_told_in_order_and_nothing_is_left_out(tmp_path_factory, subjects, tries) -> None:
    """Whatever order tries end in, whatever fails, and wherever the sender begins again after a crash."""
    with_files = Store(str(tmp_path_factory.mktemp("s")), create=True)
    try:
        with_files.outbox.register({"h": PARKED})
        for name in subjects:
            park(with_files, name.encode())
        told: list[tuple[str, int]] = []
        in_flight: dict[int, Message] = {}
        now = 1e9
        for how_many, fails, crash in [*tries, *[(4, False, False)] * (len(subjects) + 1)]:
            now += 10
            with_files.outbox.feed("h")
            for message in with_files.outbox.due("h", how_many, now, list(in_flight)):
                in_flight[message.id] = message
            if crash:
                in_flight.clear()  # perhaps told, never recorded
                continue
            while in_flight:
                _, message = in_flight.popitem()
                if fails:
                    with_files.outbox.settle("h", [Settled(message, now, "no", now + 5)])
                    break
                told.append((message.fields["path"], message.entry))
                with_files.outbox.settle("h", [Settled(message, now)])
        assert sorted(path for path, _ in told) == sorted(subjects)
        for name in set(subjects):
            entries = [entry for path, entry in told if path == name]
            assert entries == sorted(entries)
    finally:
        with_files.close()


def test_subjects_are_files_units_and_parts() -> None:
    assert outbox.subject({"watch": "w", "path_hex": "61"}) != outbox.subject({"watch": "v", "path_hex": "61"})
    assert outbox.subject({"watch": "w", "unit": "r", "path_hex": "61"}) == outbox.subject({"watch": "w", "unit": "r"})
    assert outbox.subject({"destination": "d"}) != outbox.subject({"watch": "d"})


def test_the_lists_of_units_are_not_told_as_files_but_when_one_is_stuck_it_is() -> None:
    """They travel under a name of their own; "unit-complete" tells of them."""
    wants = Wants(["delivered", "parked", "unit-complete"], ["runs"])
    assert wants.events({"kind": "delivered", "watch": "runs"}) == ["delivered"]
    assert wants.events({"kind": "delivered", "watch": "runs@archive"}) == []
    assert wants.events({"kind": "parked", "watch": "runs@archive"}) == ["parked"]
    assert wants.events({"kind": "unit-published", "watch": "runs"}) == ["unit-complete"]
    assert wants.events({"kind": "delivered", "watch": "others"}) == []
