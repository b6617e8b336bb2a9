"""One service a state directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quaymaster.errors import StoreBusy, StoreUnwritable
from quaymaster.service.lock import Lock, holder


def test_a_second_service_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    assert holder(str(tmp_path)) is None
    lock = Lock(str(tmp_path))
    assert holder(str(tmp_path)) == os.getpid()
    with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
        Lock(str(tmp_path))
    lock.release()
    assert holder(str(tmp_path)) is None
    Lock(str(tmp_path)).release()


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        Lock(str(tmp_path))
        os._exit(0)
    os.waitpid(child, 0)
    assert holder(str(tmp_path)) is None


def test_a_state_directory_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreUnwritable, match="cannot be opened"):
        Lock(str(tmp_path / "missing"))
