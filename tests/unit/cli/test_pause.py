"""``pause``, ``resume`` and ``rescan``: what an operator asks of watches stands in the store, and is noted."""

from __future__ import annotations


def test_a_pause_is_shown_until_it_is_resumed(scene, monkeypatch) -> None:
    monkeypatch.setenv("SUDO_USER", "anna\x1b")
    answer = scene.run("pause", "sequencer")
    assert answer.code == 0
    assert answer.out.splitlines()[0] == "sequencer is paused; go on with: quaymaster resume sequencer"
    assert "sequencer was paused before, since 20" in scene.run("pause").out
    out = scene.run("status").out
    assert "paused for " in out
    assert "by anna\\x1b as " in out
    assert "quaymaster resume sequencer" in out.replace("\n ", "")
    assert scene.run("resume").out == "sequencer goes on\n"
    assert scene.run("resume").out == "sequencer was not paused\n"
    assert "paused" not in scene.run("status").out
    kinds = [entry.fields["kind"] for entry in scene.store.custody()]
    assert kinds == ["paused", "resumed"]


def test_json_says_what_changed(scene) -> None:
    body = scene.run("pause", "--json").json
    assert (body["action"], body["changed"], body["service_running"]) == ("pause", ["sequencer"], False)
    assert body["watches"][0]["paused"]["since"] > 0
    assert scene.run("pause", "--json").json["changed"] == []
    assert scene.run("resume", "sequencer", "--json").json["watches"] == [{"name": "sequencer", "paused": None}]


def test_a_scan_that_is_asked_for_is_counted_so_that_the_service_sees_it(scene) -> None:
    assert "it is not running" in scene.run("rescan").out
    scene.run("rescan", "sequencer")
    assert scene.store.control().scans == {"sequencer": 2}


def test_a_watch_that_is_not_there_is_named(scene) -> None:
    for word in ("pause", "resume", "rescan"):
        answer = scene.run(word, "nowhere")
        assert answer.code == 2
        assert "no watch nowhere" in answer.err
        assert "sequencer" in answer.err


def test_a_watch_that_is_not_configured_any_more_can_be_resumed(scene) -> None:
    scene.store.pause(["former"], "anna")
    assert scene.run("resume").out == "sequencer was not paused\nformer goes on\n"
    assert scene.store.control().paused == {}


def test_a_pass_does_not_go_round_a_pause(scene) -> None:
    scene.land()
    scene.run("pause")
    answer = scene.run("sync", "sequencer")
    assert answer.code == 2
    assert "is paused by" in answer.err
    scene.run("resume")
    assert scene.run("sync", "sequencer").code == 0
