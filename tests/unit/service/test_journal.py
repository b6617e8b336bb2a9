"""S2: one event, told to a journal with fields or to a terminal as a line."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest

from quaymaster.model import Event, Level
from quaymaster.service import journal

EVENT = Event(
    "delivered", "delivered to archive", watch="w", path=b"a\xff\nb", job=42, destination="archive", size=7, sha256="ab"
)


def test_fields_carry_the_exact_bytes_of_a_name_and_nothing_that_is_empty() -> None:
    assert journal.fields(EVENT) == {
        "QUAYMASTER_EVENT": "delivered", "QUAYMASTER_WATCH": "w", "QUAYMASTER_PATH": b"a\xff\nb",
        "QUAYMASTER_JOB": "42", "QUAYMASTER_DESTINATION": "archive", "QUAYMASTER_BYTES": "7", "QUAYMASTER_SHA256": "ab",
    }  # fmt: skip
    assert journal.fields(Event("started", "hello")) == {"QUAYMASTER_EVENT": "started"}


def test_a_hostile_name_cannot_forge_a_second_line() -> None:
    stream = io.StringIO()
    journal.sink(stream, {})(EVENT)
    (line,) = stream.getvalue().splitlines()
    assert "w/a\\xff\\nb: delivered to archive [sha256 ab]" in line


def test_the_priority_is_seen_on_a_terminal() -> None:
    stream = io.StringIO()
    journal.sink(stream, {})(Event("parked", "no", Level.ERROR))
    assert " error: no" in stream.getvalue()


def test_message_ids_are_stable_and_differ() -> None:
    assert journal.message_id("delivered") == "af2a2f5c74c650f2a337350575a4c91e"
    assert journal.message_id("delivered") != journal.message_id("parked")


def test_the_journal_is_used_exactly_when_our_output_is_connected_to_it(tmp_path: Path) -> None:
    with open(tmp_path / "out", "w") as stream:
        status = os.fstat(stream.fileno())
        assert journal._is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert not journal._is_journal(stream, {"JOURNAL_STREAM": "1:2"})
        assert not journal._is_journal(stream, {})
    assert not journal._is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


@pytest.mark.skipif(not os.path.exists("/run/systemd/journal/socket"), reason="no journal listens on this machine")
def test_sending_to_a_real_journal_does_not_fail() -> None:
    journal._to_journal(EVENT)


def test_sd_notify_reaches_the_socket_and_is_silent_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quaymaster.service.systemd import notify

    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1", "STATUS=watching")
        assert listener.recv(100) == b"READY=1\nSTATUS=watching"
