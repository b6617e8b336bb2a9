"""Settling: no file is taken before it is whole, and every file that stays as it is is taken (PRODUCT W4)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from quaymaster.intake.settle import Gone, Hint, Observation, Policy, Ready, Settler, Wait, Writer
from quaymaster.model import Identity

LOCAL = Policy(settle=5.0, settle_closed=1.0, settle_per_gib=0.0, leases=True)
NETWORK = Policy(settle=90.0, settle_closed=1.0, settle_per_gib=0.0, leases=False)
A = Identity(1, 100, 1000)
B = Identity(1, 200, 2000)


def test_a_closed_file_without_writer_is_ready_after_settle_closed() -> None:
    settler = Settler(LOCAL)
    settler.hint(b"f", Hint.CHANGED, 0.0)
    settler.hint(b"f", Hint.CLOSED, 0.5)
    assert settler.next_due() is not None
    assert settler.due(1.4, 10) == []
    assert settler.due(1.5, 10) == [b"f"]
    assert settler.observe(b"f", Observation(A, Writer.NONE), 1.5) == Ready(A)
    assert len(settler) == 0
    assert settler.next_due() is None


def test_a_close_does_not_shorten_the_wait_when_no_lease_can_prove_it() -> None:
    settler = Settler(LOCAL)
    settler.hint(b"f", Hint.CLOSED, 0.0)
    assert settler.observe(b"f", Observation(A, Writer.UNKNOWN), 1.0) == Wait(6.0, 0.0, 5.0)
    assert isinstance(settler.observe(b"f", Observation(A, Writer.UNKNOWN), 5.9), Wait)
    assert settler.observe(b"f", Observation(A, Writer.UNKNOWN), 6.0) == Ready(A)


def test_leases_are_not_believed_on_network_filesystems() -> None:
    settler = Settler(NETWORK)
    settler.hint(b"f", Hint.SEEN, 0.0)
    assert settler.due(0.0, 1) == [b"f"]
    first = settler.observe(b"f", Observation(A, Writer.NONE, age=1e6), 0.0)
    assert isinstance(first, Wait)
    assert first.until == 90.0
    assert settler.observe(b"f", Observation(A, Writer.NONE, age=1e6), 90.0) == Ready(A)


def test_an_old_file_found_by_a_scan_is_ready_at_once() -> None:
    settler = Settler(LOCAL)
    settler.hint(b"f", Hint.SEEN, 0.0)
    assert settler.observe(b"f", Observation(A, Writer.NONE, age=5.0), 0.0) == Ready(A)


@pytest.mark.parametrize(
    "observation",
    [
        Observation(A, Writer.NONE, age=4.9),
        Observation(A, Writer.NONE, age=None),
        Observation(A, Writer.NONE, age=-3600.0),
        Observation(A, Writer.UNKNOWN, age=1e6),
        Observation(A, Writer.OPEN, age=1e6),
    ],
)
def test_a_file_found_by_a_scan_waits_unless_age_and_lease_both_prove_it_whole(observation: Observation) -> None:
    settler = Settler(LOCAL)
    settler.hint(b"f", Hint.SEEN, 0.0)
    assert isinstance(settler.observe(b"f", observation, 0.0), Wait)


def test_a_file_that_changed_since_it_is_here_does_not_count_as_old() -> None:
    # cp -p and rsync -t set an old mtime on a file that they wrote this moment.
    settler = Settler(LOCAL)
    settler.hint(b"f", Hint.CHANGED, 0.0)
    assert isinstance(settler.observe(b"f", Observation(A, Writer.NONE, age=1e6), 0.1), Wait)


def test_an_open_writer_prolongs_and_says_so() -> None:
    settler = Settler(LOCAL)
    settler.hint(b"f", Hint.CLOSED, 0.0)
    for now in (1.0, 6.0, 600.0):
        verdict = settler.observe(b"f", Observation(A, Writer.OPEN), now)
        assert verdict == Wait(now + 5.0, 0.0, 5.0, writing=True)
        assert verdict.evidence == "a program has it open for writing"
    settler.hint(b"f", Hint.CLOSED, 700.0)
    assert settler.observe(b"f", Observation(B, Writer.NONE), 701.0) == Ready(B)


def test_a_growing_file_is_never_ready_and_is_ready_once_it_stops() -> None:
    settler = Settler(LOCAL)
    settler.hint(b"f", Hint.CHANGED, 0.0)
    for size in range(100):
        now = 1.0 + 4.9 * size
        assert isinstance(settler.observe(b"f", Observation(Identity(1, size, size), Writer.UNKNOWN), now), Wait)
    assert settler.observe(b"f", Observation(Identity(1, 99, 99), Writer.UNKNOWN), now + 5.0) == Ready(
        Identity(1, 99, 99)
    )


def test_a_close_accounts_for_a_difference_from_before_it() -> None:
    settler = Settler(LOCAL)
    settler.hint(b"f", Hint.SEEN, 0.0)
    settler.seen(b"f", A, 0.0)
    settler.hint(b"f", Hint.CLOSED, 1.0)
    assert settler.due(2.0, 1) == [b"f"]
    assert settler.observe(b"f", Observation(B, Writer.NONE), 2.0) == Ready(B)


def test_being_seen_again_does_not_prolong() -> None:
    settler = Settler(NETWORK)
    settler.hint(b"f", Hint.SEEN, 0.0)
    settler.observe(b"f", Observation(A), 0.0)
    for now in range(10, 90, 10):  # a poll every 10 s
        settler.hint(b"f", Hint.SEEN, float(now))
    assert settler.due(90.0, 1) == [b"f"]
    assert settler.observe(b"f", Observation(A), 90.0) == Ready(A)


def test_large_files_wait_longer_by_settle_per_gib() -> None:
    settler = Settler(Policy(5.0, 1.0, 10.0, False))
    large = Identity(1, 3 << 30, 0)
    settler.hint(b"f", Hint.SEEN, 0.0)
    settler.observe(b"f", Observation(large), 0.0)
    verdict = settler.observe(b"f", Observation(large), 1.0)
    assert verdict == Wait(35.0, 1.0, 35.0)
    assert verdict.evidence == "unchanged for 1.0 s of the 35.0 s that it must stay so"


def test_settle_closed_never_waits_longer_than_settle() -> None:
    settler = Settler(Policy(0.2, 1.0, 0.0, True))
    settler.hint(b"f", Hint.CLOSED, 0.0)
    assert settler.due(0.2, 1) == [b"f"]
    assert settler.observe(b"f", Observation(A, Writer.NONE), 0.2) == Ready(A)


def test_without_any_settle_time_two_looks_are_still_needed() -> None:
    settler = Settler(Policy(0.0, 0.0, 0.0, False))
    settler.hint(b"f", Hint.CHANGED, 0.0)
    assert isinstance(settler.observe(b"f", Observation(A), 0.0), Wait)
    assert settler.observe(b"f", Observation(A), 0.001) == Ready(A)


def test_a_file_that_vanished_is_forgotten() -> None:
    settler = Settler(LOCAL)
    settler.hint(b"f", Hint.CLOSED, 0.0)
    assert settler.observe(b"f", Observation(None), 1.0) == Gone()
    assert b"f" not in settler
    assert settler.due(100.0, 10) == []


def test_a_postponed_file_comes_up_again() -> None:
    settler = Settler(LOCAL)
    settler.hint(b"f", Hint.CLOSED, 0.0)
    assert settler.due(1.0, 1) == [b"f"]
    settler.postpone(b"f", 3.0)
    assert settler.due(2.9, 1) == []
    assert settler.due(3.0, 1) == [b"f"]


def test_a_hundred_thousand_files_stay_cheap_however_often_they_are_hinted_at() -> None:
    settler = Settler(LOCAL)
    for turn in range(3):
        for number in range(100_000):
            settler.hint(b"%d" % number, Hint.CLOSED, float(turn))
    assert len(settler._heap) == 100_000, "one heap item for each file"
    assert len(settler.due(3.0, 200_000)) == 100_000


PATHS = st.sampled_from([b"a", b"b", b"c"])


class World(RuleBasedStateMachine):
    """Files that are written, closed, replaced and looked at, against what really happened to them.

    ``changed`` is when a file last really changed, or had a writer; a hint comes for some changes only.
    """

    @initialize(leases=st.booleans(), settle=st.sampled_from([0.5, 5.0]))
    def begin(self, leases: bool, settle: float) -> None:
        self.policy = Policy(settle, 1.0, 0.0, leases)
        self.settler = Settler(self.policy)
        self.now = 0.0
        self.versions = itertools.count(1)
        self.identity: dict[bytes, Identity] = {}
        self.changed: dict[bytes, float] = {}
        self.open: set[bytes] = set()

    @rule(path=PATHS, hinted=st.booleans())
    def write(self, path: bytes, hinted: bool) -> None:
        """A writer opens the file and goes on."""
        version = next(self.versions)
        self.identity[path] = Identity(1, version, version)
        self.changed[path] = self.now
        self.open.add(path)
        if hinted:
            self.settler.hint(path, Hint.CHANGED, self.now)

    @rule(path=PATHS)
    def close(self, path: bytes) -> None:
        if path in self.open:
            self.open.remove(path)
            self.changed[path] = self.now
            self.settler.hint(path, Hint.CLOSED, self.now)

    @rule(path=PATHS)
    def move_in(self, path: bytes) -> None:
        version = next(self.versions)
        self.identity[path] = Identity(version, version, version)
        self.changed[path] = self.now
        self.open.discard(path)
        self.settler.hint(path, Hint.MOVED_IN, self.now)

    @rule(path=PATHS)
    def remove(self, path: bytes) -> None:
        self.identity.pop(path, None)
        self.open.discard(path)

    @rule(path=PATHS)
    def scan(self, path: bytes) -> None:
        if path in self.identity:
            self.settler.hint(path, Hint.SEEN, self.now)

    @rule(path=PATHS)
    def scan_closely(self, path: bytes) -> None:
        if path in self.identity:
            self.settler.seen(path, self.identity[path], self.now)

    @rule(seconds=st.floats(0.01, 10.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(lease_answers=st.booleans())
    def look(self, lease_answers: bool) -> None:
        for path in self.settler.due(self.now, 10):
            self._look(path, lease_answers)

    def _look(self, path: bytes, lease_answers: bool) -> None:
        identity = self.identity.get(path)
        writer = Writer.UNKNOWN
        if lease_answers and self.policy.leases:
            writer = Writer.OPEN if path in self.open else Writer.NONE
        age = self.now - self.changed[path] if identity and self.policy.leases else None
        verdict = self.settler.observe(path, Observation(identity, writer, age), self.now)
        if identity is None:
            assert verdict == Gone()
        elif isinstance(verdict, Ready):
            assert verdict.identity == identity
            assert writer is not Writer.OPEN
            quiet = self.now - self.changed[path]
            if writer is Writer.NONE:
                # An unhinted change with a writer that stopped cannot be: closing is a hint. So all is known.
                assert quiet >= min(self.policy.settle, self.policy.settle_closed) - 1e-6
            elif path not in self.open:
                assert quiet >= self.policy.settle - 1e-6
        elif isinstance(verdict, Wait):
            assert verdict.until > self.now or self.policy.settle == 0

    @invariant()
    def every_file_has_a_time(self) -> None:
        if not hasattr(self, "settler"):
            return
        next_due = self.settler.next_due()
        assert (next_due is None) == (len(self.settler) == 0)

    def teardown(self) -> None:
        if not hasattr(self, "settler"):
            return
        for path in sorted(self.open):
            self.close(path)
        for _ in range(20):  # nothing changes any more: all become ready
            due = self.settler.next_due()
            if due is None:
                break
            self.now = max(self.now, due)
            for path in self.settler.due(self.now, 10):
                self._look(path, lease_answers=True)
        assert len(self.settler) == 0


World.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestWorld = World.TestCase


@given(
    hints=st.lists(st.tuples(st.floats(0, 10), st.sampled_from(Hint)), min_size=1, max_size=30),
    leases=st.booleans(),
)
@settings(deadline=None)
def test_hints_repeated_change_nothing_but_the_quiet_time(hints: list[tuple[float, Hint]], leases: bool) -> None:
    hints.sort(key=lambda hint: hint[0])
    once, thrice = Settler(Policy(5, 1, 0, leases)), Settler(Policy(5, 1, 0, leases))
    for now, kind in hints:
        once.hint(b"f", kind, now)
        for _ in range(3):
            thrice.hint(b"f", kind, now)
    now = 10.0
    for _ in range(3):
        now += 2.5
        due = once.due(now, 5)
        assert due == thrice.due(now, 5)
        for path in due:
            look = Observation(A, Writer.NONE)
            assert once.observe(path, look, now) == thrice.observe(path, look, now)
