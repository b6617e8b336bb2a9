"""O4: an operator sees at a glance which hook is behind, why, since when, and what to do."""

from __future__ import annotations

import time

import pytest

from quaymaster.config import load
from quaymaster.service.api.metrics import exposition
from quaymaster.service.api.site import Site
from quaymaster.service.view.hooks import FAILING_AFTER, failing, hook_records
from quaymaster.service.view.snapshot import snapshot
from quaymaster.store.outbox import Settled, Wants


@pytest.fixture
def told(scene):
    """A scene with a hook that was told of nothing, and three parked files."""
    scene.config.write_text(
        scene.config.read_text() + '[hook.mail]\non = ["parked"]\ncommand = ["/usr/bin/mail-it"]\n'
        '[hook.web]\non = ["delivered"]\nurl = "http://127.0.0.1:1/x"\n'
    )
    scene.store.outbox.register({"mail": Wants(frozenset({"parked"})), "web": Wants(frozenset({"delivered"}))})
    for name in (b"a", b"b", b"c"):
        scene.park(scene.queue(name))
    scene.store.outbox.feed("mail")
    return scene


def fail(scene, at: float, retry_at: float | None = 9e9) -> None:
    message = scene.store.outbox.due("mail", 1, 1e9 * 9)[0]
    scene.store.outbox.settle("mail", [Settled(message, at, "exit status 1: no such list", retry_at)])


def test_the_list_says_which_hook_fails_why_and_what_to_do(told) -> None:
    fail(told, time.time() - 3600)
    out = told.run("hooks").out
    assert "exit status 1: no such list" in " ".join(out.split())
    assert "quaymaster hooks retry mail" in " ".join(out.split())
    assert told.run("status").out.count("failing") == 1
    assert all(len(line) <= 80 for line in out.splitlines())


def test_all_well_is_one_line_in_status(told) -> None:
    assert "2 hooks told; 3 events on the way" in told.run("status").out


def test_one_hook_shows_what_it_was_not_told_those_that_failed_first(told) -> None:
    fail(told, 2000.0)
    found = told.run("hooks", "mail", "--json").json
    assert [event["attempts"] for event in found["events"]] == [1, 0, 0]
    out = told.run("hooks", "show", "mail", "--limit", "2").out
    assert "sequencer/a" in out
    assert "and 1 more here" in out
    assert told.run("hooks", "nobody").code == 2


def test_an_operator_retries_and_skips(told) -> None:
    fail(told, 2000.0, None)
    assert told.run("hooks", "list", "--json").json["hooks"][0]["parked"] == 1
    assert "given up on 1 event" in told.run("hooks").out
    assert told.run("hooks", "retry", "mail").out == "1 event will be told to mail again now\n"
    assert told.run("hooks", "retry", "mail").out == "nothing failed\n"
    number = str(told.run("hooks", "mail", "--json").json["events"][0]["id"])
    assert told.run("hooks", "skip", "mail", number).code == 0
    assert told.run("hooks", "skip", "mail", number).code == 1
    assert [entry.fields["kind"] for entry in told.store.custody()][-2:] == ["hook-retried", "hook-skipped"]


def test_a_test_without_the_service_is_sent_by_the_command(told) -> None:
    answer = told.run("hooks", "test", "web", "--json")
    assert (answer.code, answer.json["service_running"]) == (1, False)
    assert "Connection refused" in answer.json["error"]
    assert told.run("hooks", "test", "web", "--event", "party").code == 2


def test_health_is_degraded_when_a_hook_has_failed_for_ten_minutes(told) -> None:
    config, now = load(str(told.config), {}), time.time()
    fail(told, now)
    (mail, _) = hook_records(config, told.store, now)
    assert mail["state"] == "failing"
    since = mail["failing_since"]
    assert failing([mail], since + FAILING_AFTER - 1) == []
    (line,) = failing([mail], since + FAILING_AFTER + 1)
    assert "hook mail has not taken 1 of 3 events, for 10 min: exit status 1: no such list" in line
    found = snapshot(config, told.store, 1, since + FAILING_AFTER + 1)
    assert line in Site(lambda: config, told.store, lambda: 0.0).reasons(found)
    text = exposition(found, [])
    assert 'quaymaster_hook_up{hook="mail"} 0' in text
    assert 'quaymaster_hook_waiting_events{hook="mail"} 3' in text
    assert 'quaymaster_hook_refused_events{hook="mail"} 1' in text
    assert 'quaymaster_hook_up{hook="web"} 1' in text


def test_without_hooks_nothing_is_said_of_them(scene) -> None:
    assert "hook" not in scene.run("status").out
    assert "No hook is configured" in scene.run("hooks").out
