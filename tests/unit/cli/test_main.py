"""The frame around all commands: exit codes, messages on stderr, options in either place, start-up."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import quaymaster
from quaymaster.cli import COMMANDS, main
from quaymaster.cli import check as check_command


def test_version_and_help_need_no_configuration_and_no_heavy_library(scene) -> None:
    code = """
import sys
from quaymaster.cli import main
assert main(["--version"]) == 0
assert main(["--help"]) == 0
heavy = {"pydantic", "boto3", "botocore", "zstandard", "watchdog", "sqlite3", "systemd", "pathspec"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"quaymaster {quaymaster.__version__}\n")


def test_every_command_has_examples_in_its_help(scene) -> None:
    words = [*([command] for command in COMMANDS), *(["jobs", word] for word in ("list", "show", "retry", "drop"))]
    for command in words:
        answer = scene.run_bare(*command, "--help")
        assert answer.code == 0
        assert f"  quaymaster {command[0]}" in answer.out.split("Examples:")[1], command
        assert "--config FILE" in answer.out


def test_without_a_command_the_help_is_shown_and_the_usage_was_wrong(scene) -> None:
    answer = scene.run_bare()
    assert answer.code == 2
    assert "Usage: quaymaster" in answer.err
    assert answer.out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["jobs", "--state", "lost"], "'lost' is not one of"),
        (["jobs", "list", "--watch", "sequencer", "extra"], "unexpected extra argument"),
        (["why"], "Missing argument 'PATH'"),
        (["jobs", "--config"], "'--config' requires an argument"),
        (["why", ""], "PATH is empty"),
        (["jobs", "show", "zero"], "'zero'"),
        (["status", "--colour"], "No such option"),
        (["jobs", "--watch", "nobody"], "There is no watch nobody. The watches are: sequencer"),
        (["run", "--json"], "run has no --json"),
        (["--json", "run"], "run has no --json"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(scene, arguments, said, monkeypatch) -> None:
    monkeypatch.setenv("QUAYMASTER_CONFIG", str(scene.config))
    answer = scene.run_bare(*arguments)
    assert answer.code == 2
    assert said in answer.err
    assert answer.err.startswith("quaymaster: ")
    assert answer.err.count("\n") == 1
    assert answer.out == ""


def test_config_is_accepted_before_and_after_the_command_and_from_the_environment(scene, monkeypatch) -> None:
    config = str(scene.config)
    for arguments in (
        ["--config", config, "jobs"],
        ["jobs", "--config", config],
        ["jobs", f"--config={config}"],
        ["jobs", "--config", config, "list"],
        ["jobs", "list", "--config", config],
        ["--config", "/nowhere.toml", "jobs", "--config", config],
    ):
        assert main(arguments) == 0, arguments
    monkeypatch.setenv("QUAYMASTER_CONFIG", config)
    assert main(["jobs"]) == 0
    assert main(["jobs", "--config", "/nowhere.toml"]) == 2


def test_json_is_accepted_before_and_after_the_command(scene) -> None:
    for arguments in (["--json", "jobs"], ["jobs", "--json"], ["jobs", "--json", "list"], ["jobs", "list", "--json"]):
        assert scene.run(*arguments).json == {"jobs": [], "more": False}


def test_every_problem_of_a_configuration_is_a_line_and_they_are_counted(scene) -> None:
    scene.config.write_text(scene.config.read_text() + 'settel = "5s"\nmode = "psychic"\n')
    for command in ("report", "sync", "config", "check"):
        answer = scene.run(command)
        assert answer.code == 2
        lines = answer.err.splitlines()
        assert len(lines) == 3
        assert lines[0].startswith(f"{scene.config}:12: ")
        assert "settel" in lines[0]
        assert lines[2] == f"2 problems in {scene.config}"
        assert answer.out == ""


def test_a_missing_configuration_is_named(scene) -> None:
    answer = scene.run_bare("status", "--config", "/nowhere/quaymaster.toml")
    assert answer.code == 2
    assert "/nowhere/quaymaster.toml" in answer.err
    assert answer.err.splitlines()[-1] == "1 problem in /nowhere/quaymaster.toml"


@pytest.mark.parametrize("command", [["status"], ["jobs"], ["jobs", "retry", "--all"], ["why", "x"], ["prove", "x"]])
def test_without_a_database_one_clear_line_and_exit_code_1(scene, command: list[str], monkeypatch) -> None:
    monkeypatch.chdir(scene.watched)
    scene.forget_store()
    answer = scene.run(*command)
    assert answer.code == 1
    assert answer.err == (
        f"quaymaster: There is no queue in {scene.state}. Start the service once, or name the right file with"
        " --config\n"
    )
    assert answer.out == ""
    assert not scene.state.exists()


def test_a_database_of_something_else_is_refused_and_left_alone(scene) -> None:
    scene.store.close()
    database = scene.state / "quaymaster.db"
    for file in scene.state.iterdir():
        file.unlink()
    database.write_bytes(b"not a database at all" * 100)
    answer = scene.run("jobs", "--json")
    assert answer.code == 1
    assert "is damaged" in answer.err
    assert answer.out == ""
    assert database.read_bytes() == b"not a database at all" * 100


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_without_permission_is_told_so(scene, scene_at) -> None:
    assert scene.run("jobs").code == 0  # everything is imported now: the interpreter may be out of the other's reach
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        private = scene_at(Path(folder))
        private.state.chmod(0o700)
        os.seteuid(65534)
        try:
            answer = private.run("jobs")
        finally:
            os.seteuid(0)
    assert answer.code == 1
    assert answer.err == (
        f"quaymaster: You have no permission to enter {private.state}."
        " Run the command as root or as the service's user\n"
    )


def test_an_unforeseen_error_is_one_line_and_its_traceback_only_on_request(scene, monkeypatch, capsys) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("the moon\x1b[2J is full")

    monkeypatch.setattr(check_command.show, "count", fails)
    scene.queue()
    answer = scene.run("status")
    assert answer.code == 1
    assert answer.err == (
        "quaymaster: internal error: the moon\\x1b[2J is full; run with QUAYMASTER_DEBUG=1 for details\n"
    )
    monkeypatch.setenv("QUAYMASTER_DEBUG", "1")
    assert "Traceback" in scene.run("status").err


def test_ctrl_c_is_quiet(scene, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quaymaster.store.Store.jobs", interrupted)
    answer = scene.run("jobs")
    assert (answer.code, answer.out, answer.err) == (130, "", "")


@pytest.mark.parametrize("command", [["status"], ["jobs", "--json"], ["--help"]])
def test_a_reader_that_went_away_is_no_error(scene, command: list[str]) -> None:
    for number in range(20):
        scene.queue(b"file-%d" % number)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        answer = scene.spawn(*command, stdout=writer)
    finally:
        os.close(writer)
    assert answer.err == ""
    assert answer.code == 141


def test_a_full_disk_behind_stdout_is_told(scene) -> None:
    with open("/dev/full", "wb") as full:
        answer = scene.spawn("status", stdout=full.fileno())
    assert answer.code == 1
    assert "No space left on device" in answer.err
    assert answer.err.count("\n") == 1


def test_a_locale_without_unicode_still_shows_every_name(scene) -> None:
    scene.queue("日本/ä.txt".encode())
    answer = scene.spawn("jobs", PYTHONIOENCODING="latin-1", PYTHONUTF8="0", encoding="latin-1")
    assert answer.code == 0
    assert "\\u65e5\\u672c/ä.txt" in answer.out


def test_the_module_can_be_run_and_finds_its_arguments(scene) -> None:
    answer = scene.spawn("jobs", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.json == {"jobs": [], "more": False}


def test_shells_can_ask_for_completions(scene) -> None:
    answer = scene.spawn(_QUAYMASTER_COMPLETE="bash_complete", COMP_WORDS="quaymaster jobs --st", COMP_CWORD="2")
    assert "run" not in answer.out
    assert answer.code == 0
    answer = scene.spawn(_QUAYMASTER_COMPLETE="bash_complete", COMP_WORDS="quaymaster pr", COMP_CWORD="1")
    assert answer.out.strip().endswith("prove")


def test_what_is_printed_on_a_terminal_fits_it(scene) -> None:
    for number in range(60):
        scene.park(scene.queue(b"d/" * 60 + b"file-%d" % number), f"code-{number % 9}", "reason " * 40)
    master, slave = pty.openpty()
    try:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "quaymaster", "status", "--config", str(scene.config)],
            stdin=slave, stdout=slave, stderr=slave,
            env={name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")},
        )  # fmt: skip
        os.close(slave)
        seen = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # EIO: the other side was closed
                break
            if not piece:
                break
            seen += piece
        assert process.wait(30) == 0
    finally:
        os.close(master)
    lines = seen.decode().replace("\r\n", "\n").splitlines()
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    assert any("more" in line for line in lines)


def test_a_process_ends_with_its_exit_code_while_threads_hang(scene) -> None:
    code = """
import atexit, sys, threading, time
import quaymaster.__main__ as process
import quaymaster.cli

class LateToGo:  # what crashes in C code shows in Python only as what is done while the interpreter is taken down
    def __del__(self):
        print("taken down", flush=True)

def main():
    global late
    late = LateToGo()
    threading.Thread(target=time.sleep, args=(3600,)).start()
    atexit.register(print, "last words")
    print("done", end=" ")
    return 3

quaymaster.cli.main = main
process.start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "done last words\n", "")


_INTERRUPTED = """
import os, signal, sys
import quaymaster.__main__ as process

class Finder:
    def find_spec(self, name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)
            print("went on", flush=True)

sys.meta_path.insert(0, Finder())
sys.argv = ["quaymaster", "check", "--config", "{config}"]
process.start()
"""


def _interrupted(scene, module: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _INTERRUPTED.format(module=module, config=scene.config)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_ctrl_c_while_the_command_line_is_loaded_is_no_traceback(scene) -> None:
    done = _interrupted(scene, "quaymaster.cli")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_while_the_models_are_built_waits_until_they_are(scene) -> None:
    """pydantic would make an error of its own of it."""
    done = _interrupted(scene, "quaymaster.config.schema")
    assert (done.returncode, done.stdout, done.stderr) == (130, "went on\n", "")
