"""What shells offer when Tab is pressed: names and numbers that there are, and nothing else is ever printed."""

from __future__ import annotations

import pytest
from click.shell_completion import BashComplete

from quaymaster.cli import COMPLETE, PROGRAM, commands
from quaymaster.store.outbox import Wants


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
    assert offered("sync", "") == offered("report", "") == ["dir", "sequencer"]
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


def test_hooks_their_events_and_what_they_were_not_told(scene, offered) -> None:
    scene.config.write_text(scene.config.read_text() + '[hook.mail]\non = ["parked"]\ncommand = ["/usr/bin/mail-it"]\n')
    scene.store.outbox.register({"mail": Wants(frozenset({"parked"}))})
    scene.park(scene.queue(b"a"))
    scene.store.outbox.feed("mail")
    for line in (["hooks", "test", "m"], ["hooks", "retry", ""], ["hooks", "skip", ""], ["hooks", "show", ""]):
        assert offered(*line) == ["mail"], line
    assert offered("hooks", "") == ["list", "retry", "show", "skip", "test", "mail"]
    assert offered("hooks", "m") == ["mail"]
    assert offered("hooks", "test", "mail", "--event", "pa") == ["parked"]
    number = str(scene.store.outbox.messages("mail")[0].id)
    assert offered("hooks", "skip", "mail", "") == [number]
    assert offered("hooks", "skip", "mail", number, "") == []
    assert "--json" in offered("hooks", "-")


def test_units_that_the_word_is_for_else_directories(scene, offered) -> None:
    text = scene.config.read_text().replace("[watch.sequencer]", '[watch.sequencer]\nunit = "directory"\nunit_idle = 1')
    scene.config.write_text(text)
    for path in (b"run1", b"run2", b"with space"):
        scene.store.units.opened("sequencer", path)
    (unit,) = [unit for unit in scene.store.units.find() if unit.path == b"run2"]
    scene.store.units.abandon(unit, "me")
    one, two = (f"{scene.watched}/{name}" for name in ("run1", "run2"))
    assert offered("units", "show", "") == [one, two]
    assert offered("units", "complete", f"{scene.watched}/run") == [one, two]
    assert offered("units", "abandon", "") == [one], "a path that is offered in two ways is completed in none"
    assert offered("units", "show", "nowhere") == ["dir"]
    for command in ("verify", "restore"):
        assert offered(command, "--unit", "/") == ["dir"], "none is published"
    assert offered("units", "--watch", "") == ["sequencer"]


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
