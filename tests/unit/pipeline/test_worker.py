"""What runs is known as long as it runs, and no longer (PRODUCT Q1, O1)."""

from __future__ import annotations

from typing import Any, cast

import pytest

from quaymaster.model import FileVersion, Identity, Job, State
from quaymaster.pipeline.worker import Workers
from quaymaster.store import Store

JOB = Job(131, FileVersion("w", b"a", Identity(1, 2, 3)), State.RUNNING, None, 0, 0, None, "", "", 0.0, 0.0, None)


@pytest.fixture
def workers() -> Workers:
    return Workers(cast(Store, None), cast(Any, None), {}, 1, lambda event: None)


def test_the_end_of_a_run_is_not_that_of_the_next_one(workers: Workers) -> None:
    """The store gives a job out again as soon as it is put back, which may be before the thread that did so has come
    to its own end."""
    workers._begin(JOB)

    def put_back_and_claimed_again() -> bool:
        workers._begin(JOB)
        return False

    workers._run_until_recorded(JOB, put_back_and_claimed_again)
    assert list(workers.running) == [JOB.id]
    workers._run_until_recorded(JOB, lambda: False)
    assert not workers.running
