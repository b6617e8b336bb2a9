"""Q3: what the queue does with each class of failure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quaymaster import errors
from quaymaster.model import FileVersion, Identity, Job, State
from quaymaster.pipeline.retry import FIRST_WAIT, LONGEST_WAIT, decide


def job(*, attempts: int = 0, strikes: int = 0) -> Job:
    version = FileVersion("w", b"a", Identity(1, 1, 1))
    return Job(1, version, State.RUNNING, None, attempts, strikes, None, "", "", 0.0, 0.0, None)


@given(attempts=st.integers(0, 10_000), chance=st.floats(0, 1))
def test_a_network_failure_is_retried_for_ever_and_waits_at_most_fifteen_minutes(attempts: int, chance: float) -> None:
    decision = decide(errors.Unreachable("no answer"), job(attempts=attempts), lambda: chance)
    assert decision.state is State.WAITING
    assert FIRST_WAIT / 2 <= decision.wait <= LONGEST_WAIT
    assert not decision.strike


def test_waits_double_and_chance_takes_up_to_half() -> None:
    waits = [decide(errors.Unreachable(""), job(attempts=n), lambda: 1.0).wait for n in range(4)]
    assert waits == [1, 2, 4, 8]
    assert decide(errors.Unreachable(""), job(attempts=3), lambda: 0.0).wait == 4


def test_bytes_that_differ_are_given_three_tries() -> None:
    outcomes = [decide(errors.IntegrityError(""), job(attempts=n, strikes=n), lambda: 0.5) for n in range(3)]
    assert [o.state for o in outcomes] == [State.WAITING, State.WAITING, State.PARKED]
    assert all(o.strike for o in outcomes)


def test_network_failures_in_between_do_not_use_up_the_three_tries() -> None:
    assert decide(errors.IntegrityError(""), job(attempts=50, strikes=1), lambda: 0.5).state is State.WAITING


def test_what_only_an_operator_can_mend_parks_at_once() -> None:
    for error in (errors.PermissionDenied, errors.DestinationMissing, errors.Conflict, errors.SourceRefused):
        assert decide(error(""), job(), lambda: 0.5).state is State.PARKED


def test_a_changed_source_is_superseded_not_failed() -> None:
    assert decide(errors.SourceChanged(""), job(), lambda: 0.5).state is State.SUPERSEDED


def test_a_wait_that_the_server_asks_for_is_kept_within_reason() -> None:
    busy = errors.Unreachable("busy")
    busy.retry_after = 30.0
    assert decide(busy, job(), lambda: 1.0).wait == 30
    assert decide(busy, job(attempts=9), lambda: 1.0).wait == 512
    busy.retry_after = 1e9
    assert decide(busy, job(), lambda: 1.0).wait == LONGEST_WAIT
