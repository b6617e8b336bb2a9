"""I6, I7: what ``verify`` and ``restore`` say, and how they end, when there is nothing to say it about."""

from __future__ import annotations

import os
import time

import pytest

from quaymaster.cli.restore import moment


def test_times_are_understood_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert moment(None, None, "2026-03-31T18:00:00+02:00") == 1774972800
    assert moment(None, None, "2026-03-31T16:00") == 1774972800
    assert moment(None, None, "@1774972800.5") == 1774972800.5
    assert moment(None, None, "2026-03-31") == pytest.approx(1775001600, abs=0.01)
    assert moment(None, None, None) == 0.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["restore"], "It is not said what to restore"),
        (["restore", "--at", "yesterday", "--to", "x"], "is not a time"),
        (["restore", "--at", "2026-01-01", "--from-destination", "--to", "x"], "--at needs the ledger"),
        (["restore", "--destination", "nowhere", "--to", "x"], "There is no destination nowhere"),
        (["verify", "--destination", "nowhere"], "The destinations are: archive"),
        (["verify", "--budget", "5 chunks"], "has an unknown unit"),
        (["verify", "--level", "hearsay"], "hearsay"),
    ],
)
def test_what_is_asked_wrongly_is_said(scene, arguments: list[str], said: str) -> None:
    answer = scene.run(*arguments)
    assert answer.code == 2
    assert said in answer.err


def test_nothing_to_verify_or_restore_is_not_a_success(scene) -> None:
    assert scene.run("verify").code == 0
    answer = scene.run("verify", str(scene.watched / "never"))
    assert (answer.code, "No copy is recorded" in answer.err) == (1, True)
    answer = scene.run("restore", str(scene.watched / "never"))
    assert (answer.code, "nothing to restore" in answer.out) == (1, True)


def test_a_watch_that_is_configured_no_more_can_be_restored_elsewhere(scene) -> None:
    old = scene.deliver(scene.queue(b"a", watch="old"), b"A" * 400)
    assert old.version.watch == "old"
    answer = scene.run("restore", "--watch", "old")
    assert answer.code == 1
    assert "not configured any more: say with --to" in answer.err
    assert not os.path.exists(scene.base / "to")
    assert "is gone" in scene.run("restore", "--watch", "old", "--to", str(scene.base / "to")).err
