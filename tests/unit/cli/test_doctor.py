"""``quaymaster doctor``: what it says to people and to programs. What it finds: tests/unit/service/test_doctor.py."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that the tests run on may have a unit and a clock of its own."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)


@pytest.fixture
def healthy(scene):
    scene.config.write_text(f'{scene.config.read_text()}\n[limits]\nstaging_free = "1MiB"\n')
    scene.state.chmod(0o700)
    return scene


def test_a_healthy_machine(healthy) -> None:
    answer = healthy.run("doctor")
    assert (answer.code, answer.err) == (0, ""), answer.out
    *checks, verdict = answer.out.splitlines()
    assert all(line.startswith("ok ") for line in checks)
    assert verdict == f"{len(checks)} checks: 0 failed, 0 warnings"
    assert os.listdir(healthy.base / "archive") == [], "the probe is gone"
    body = healthy.run("doctor", "--json").json
    assert body["healthy"] is True
    assert {finding["state"] for finding in body["findings"]} == {"ok"}


def test_what_is_wrong_comes_with_its_remedy_and_a_status(healthy) -> None:
    (healthy.base / "archive").rmdir()
    answer = healthy.run("doctor")
    assert answer.code == 1
    lines = answer.out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("FAILED   destination archive: "))
    assert lines[at + 1].startswith("         ")
    body = healthy.run("doctor", "--json").json
    assert body["healthy"] is False
    assert all(finding["fix"] for finding in body["findings"] if finding["state"] == "failed")


def test_a_wrong_configuration_is_a_finding_for_each_problem(healthy) -> None:
    healthy.config.write_text('[watch.x]\npath = "x"\ndestinations = ["y"]\n')
    answer = healthy.run("doctor")
    assert answer.code == 1
    failed = [line for line in answer.out.splitlines() if line.startswith("FAILED   config: ")]
    assert len(failed) == 2
    assert f"{healthy.config}:2: [watch.x] path" in failed[0]
    assert healthy.run("doctor", "--json").json["healthy"] is False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be asked to look as somebody else")
def test_an_unknown_user_is_told(healthy) -> None:
    answer = healthy.run("doctor", "--user", "no-such-user")
    assert answer.code == 2
    assert "There is no user no-such-user" in answer.err
