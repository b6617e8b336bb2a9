"""Exit codes are an interface: 0 done, 1 some of it failed, 2 wrong usage or configuration, 3 an integrity failure."""

from __future__ import annotations

import sqlite3

import pytest

from quaymaster.cli import COMMANDS

NEEDED = {
    "why": ["PATH"], "prove": ["PATH"], "accept": ["sequencer"], "audit": ["verify"],
    "restore": ["--watch", "sequencer"],
}  # fmt: skip
"""What a command must be given, that a missing argument is not what is wrong."""
ELSEWHERE = {"run", "top"}
"""One ends only when it is told to, the other needs a terminal: tests/system."""
WITHOUT = {"check", "config", "doctor", "sync", "report", "rebuild"}
"""They need no database, or make one."""
FINDS = {"check", "doctor"}
"""They say on standard output what is wrong with a configuration; to doctor it is one finding of several."""


@pytest.fixture
def delivered(scene) -> str:
    """The path of a file with a copy that is as it was recorded."""
    content = b"ACGT" * 100
    scene.deliver(scene.enqueue(scene.land(content=content)), content, key="sequencer/a.fastq.zst")
    (scene.base / "archive/sequencer").mkdir()
    (scene.base / "archive/sequencer/a.fastq.zst").write_bytes(content[::2])
    return f"{scene.watched}/a.fastq"


def test_done_is_0(scene, delivered: str) -> None:
    arguments = {
        "why": [delivered], "prove": [delivered], "audit": ["verify"], "accept": ["sequencer"],
        "restore": [delivered, "--dry-run"], "sync": ["--dry-run"],
    }  # fmt: skip
    for command in COMMANDS:
        if command in ELSEWHERE | {"doctor", "verify"}:  # what they find is told in tests of their own
            continue
        answer = scene.run(command, *arguments.get(command, []))
        assert answer.code == 0, (command, answer.err)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_line_and_a_wrong_configuration_are_2(scene, command: str) -> None:
    needed = NEEDED.get(command, [])
    answer = scene.run(command, *needed, "--no-such-option")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("quaymaster: ")
    assert f"Try: quaymaster {command}" in answer.err
    # Outside of any table: some commands do without one of a watch that is wrong.
    scene.config.write_text("nonsense = 1\n" + scene.config.read_text())
    for more in ([], ["--json"]):
        answer = scene.run(command, *needed, *more)
        assert answer.code == (1 if command == "doctor" else 2), more
        if command not in ELSEWHERE | FINDS:
            assert answer.out == ""
            assert "nonsense" in answer.err


@pytest.mark.parametrize(
    "command", sorted({*COMMANDS} - ELSEWHERE - {"check", "config", "doctor", "sync", "report", "rebuild"})
)
def test_without_a_database_it_is_1(scene, command: str) -> None:
    scene.forget_store()
    needed = [str(scene.watched / "a")] if command in ("why", "prove") else NEEDED.get(command, [])
    answer = scene.run(command, *needed)
    assert (answer.code, answer.out) == (1, "")
    assert len(answer.err.splitlines()) == 1


def test_something_that_failed_is_1(scene) -> None:
    assert scene.run("jobs", "retry", "99").code == 1
    assert scene.run("jobs", "99").code == 1
    assert scene.run("prove", str(scene.watched / "never")).code == 1


def test_an_integrity_failure_is_3(scene, delivered: str) -> None:
    (scene.base / "archive/sequencer/a.fastq.zst").write_bytes(b"x" * 200)
    for command in (["verify", "--level", "readback"], ["verify", "--level", "readback", "--json"]):
        assert scene.run(*command).code == 3, command
    scene.store.close()
    with sqlite3.connect(next(scene.state.glob("*.db"))) as database:
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {trigger}")
        database.execute("UPDATE custody SET body = replace(body, 'delivered', 'delivereD')")
    database.close()
    for command in (
        ["audit", "verify"],
        ["prove", delivered],
        ["audit", "verify", "--json"],
        ["prove", delivered, "--json"],
    ):
        assert scene.run(*command).code == 3, command
