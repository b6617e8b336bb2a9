"""What shells offer when Tab is pressed: names and numbers that there are, and nothing else is ever printed."""

from __future__ import annotations

import pytest
from click.shell_completion import BashComplete

from quaymaster.cli import COMPLETE, PROGRAM, commands


@pytest.fixture
def offered(scene, monkeypatch):
    """The words (and "file" or "dir" for what the shell itself completes) after a line that is not finished."""
    monkeypatch.setenv("QUAYMASTER_CONFIG", str(scene.config))

    def offered(*line: str) -> list[str]:
        completion = BashComplete(commands, {}, PROGRAM, COMPLETE)
        found = completion.get_completions(list(line[:-1]), line[-1])
        return [item.value if item.type == "plain" else item.type for item in found]

    return offered


def test_names_of_watches_and_destinations(offered) -> None:
    for line in (
        ["pause", "seq"], ["resume", ""], ["rescan", ""], ["jobs", "--watch", ""], ["jobs", "retry", "--watch", "s"],
        ["verify", "--watch", ""], ["restore", "--watch", ""],
    ):  # fmt: skip
        assert offered(*line) == ["sequencer"], line
    for command in ("verify", "restore"):
        assert offered(command, "--destination", "arch") == ["archive"]
    assert offered("accept", "") == ["sequencer", "archive"]
    assert offered("sync", "") == offered("report", "") == ["sequencer", "dir"]
    assert offered("pause", "x") == []
    assert offered("pause", "sequencer", "") == [], "it is named already"


def test_numbers_of_jobs_that_the_word_is_for(scene, offered) -> None:
    scene.park(scene.queue(b"parked"), "conflict")
    scene.queue(b"queued")
    assert offered("jobs", "retry", "") == ["1"]
    assert offered("jobs", "drop", "") == ["2", "1"]
    assert offered("jobs", "drop", "2", "") == ["1"]
    assert offered("jobs", "show", "") == ["2", "1"]
    assert offered("jobs", "") == ["drop", "list", "retry", "show", "2", "1"]
    assert offered("jobs", "re") == ["retry"]
    assert "--limit" in offered("jobs", "--")
    assert offered("jobs", "retry", "--error", "") == ["conflict"]
    (item,) = BashComplete(commands, {}, PROGRAM, COMPLETE).get_completions(["jobs", "retry"], "1")
    assert item.help == "parked sequencer/parked"


def test_files_are_left_to_the_shell(offered) -> None:
    for line in (["why", "/srv"], ["prove", "x"], ["restore", ""], ["verify", ""], ["jobs", "--path", "/"],
                 ["status", "--config", "/etc"], ["sync", "--files-from", ""]):  # fmt: skip
        assert offered(*line) == ["file"], line
    for line in (["restore", "--to", "/"], ["prove", "--bundle", "/"]):
        assert offered(*line) == ["dir"], line


def test_the_configuration_that_was_named_counts(scene, offered, monkeypatch) -> None:
    monkeypatch.setenv("QUAYMASTER_CONFIG", "/nowhere")
    assert offered("pause", "") == []
    assert offered("pause", "--config", str(scene.config), "") == ["sequencer"]
    assert offered("--config", str(scene.config), "pause", "") == ["sequencer"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_nothing_is_said_when_there_is_nothing_to_offer(scene, shell: str) -> None:
    def ask(line: str, last: str) -> tuple[int, str, str]:
        number = last if shell == "fish" else str(len(line.split(" ")) - 1)
        environment = {"_QUAYMASTER_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": number}
        answer = scene.spawn(**environment)
        return answer.code, answer.out.strip(), answer.err

    code, out, error = ask("quaymaster pause seq", "seq")
    assert (code, "sequencer" in out, error) == (0, True, "")
    scene.config.write_text("not [ TOML")
    assert ask("quaymaster pause seq", "seq") == (0, "", "")
    assert ask("quaymaster jobs retry ", "") == (0, "", "")
