"""``quaymaster check`` and ``quaymaster config``: what is configured, whether it is right, and whether it works."""

from __future__ import annotations

import os
import tomllib

import pytest


def test_a_right_configuration_is_valid(scene) -> None:
    answer = scene.run("check")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"{scene.config}: configuration is valid\n"
    assert scene.run("check", "--json").json == {"valid": True, "sources": [str(scene.config)], "warnings": []}


def test_it_needs_no_queue(scene) -> None:
    scene.forget_store()
    assert scene.run("check").code == 0
    assert scene.run("config").code == 0
    assert not scene.state.exists()


def test_what_this_machine_lacks_is_a_warning(scene) -> None:
    scene.watched.rmdir()
    answer = scene.run("check")
    assert answer.code == 0
    warning, verdict = answer.out.splitlines()
    assert warning.startswith(f"warning: {scene.config}:9: ")
    assert str(scene.watched) in warning
    assert verdict.endswith("configuration is valid, 1 warning")
    assert len(scene.run("check", "--json").json["warnings"]) == 1


def test_problems_are_json_too(scene) -> None:
    scene.config.write_text("[watch.x]\n")
    answer = scene.run("check", "--json")
    assert answer.code == 2
    assert answer.json["valid"] is False
    assert answer.json["problems"] == answer.err.splitlines()[:-1]


def test_destinations_are_really_tried(scene) -> None:
    answer = scene.run("check", "--destinations")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("destination archive: works\n")
    assert os.listdir(scene.base / "archive") == []
    body = scene.run("check", "--destinations", "--json").json
    (tried,) = body["destinations"]
    assert (tried["name"], tried["ok"], tried["error"]) == ("archive", True, "")


def test_a_destination_that_fails_makes_exit_code_1(scene) -> None:
    (scene.base / "archive").rmdir()
    answer = scene.run("check", "--destinations")
    assert answer.code == 1
    assert "destination archive: FAILS" in answer.out
    assert answer.err.startswith("quaymaster: destination archive: ")
    body = scene.run("check", "--destinations", "--json").json
    assert body["destinations"][0]["ok"] is False


def test_a_destination_beside_the_sources_is_tried_there(scene) -> None:
    scene.config.write_text(
        scene.config.read_text()
        .replace('destinations = ["archive"]', 'destinations = ["beside"]\ncompress = "zstd"')
        .replace("[destination.archive]", '[destination.beside]\ntype = "beside"\n[destination.archive]')
    )
    assert "destination beside: works" in scene.run("check", "--destinations").out
    scene.watched.rmdir()
    answer = scene.run("check", "--destinations")
    assert answer.code == 1
    assert "destination beside: FAILS" in answer.out


@pytest.mark.parametrize("where", ["file", "conf.d"])
def test_the_effective_configuration_says_where_each_value_comes_from(scene, where: str) -> None:
    if where == "conf.d":
        (scene.base / "conf.d").mkdir()
        (scene.base / "conf.d" / "10-slow.toml").write_text('[watch.sequencer]\nsettle = "7s"\n')
    answer = scene.run("config")
    assert answer.code == 0
    line = next(line for line in answer.out.splitlines() if line.startswith("settle ="))
    place = f"{scene.base}/conf.d/10-slow.toml:2" if where == "conf.d" else f"{scene.config}:11"
    assert line.split("#")[1].strip() == place
    loaded = tomllib.loads(answer.out)
    assert loaded["watch"]["sequencer"]["path"] == str(scene.watched)
    settings = {item["key"]: item for item in scene.run("config", "--json").json["settings"]}
    assert settings["watch.sequencer.settle"]["where"] == place
    assert settings["limits.files"] == {"key": "limits.files", "value": 20, "where": "default"}
