"""O4: a command may do what it likes: it costs a thread for its time limit, and nothing else."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quaymaster.command import KEPT
from quaymaster.service.hooks.command import Command


def shell(script: str, timeout: float = 60.0) -> Command:
    return Command("note", ["/bin/sh", "-c", script], timeout)


def send(command: Command, body: bytes = b'{"event":"parked"}') -> str:
    return command.send("parked", "log:7:parked", body).error


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_gets_the_event_and_next_to_nothing_else(tmp_path: Path) -> None:
    os.environ["QUAYMASTER_CANARY"] = "x"
    reading, writing = os.pipe()  # what the service has open
    os.set_inheritable(writing, True)
    script = (
        f"cd {tmp_path}; cat > body; env > env; umask > umask; ulimit -c > core; ulimit -n > files;"
        "pwd -P > cwd.shell; ls -l /proc/self/fd > fds; grep CapAmb /proc/self/status > caps;"
        "cut -d' ' -f1,5,6 /proc/$$/stat > ids"
    )
    try:
        assert send(shell(script), b'{"a":1}') == ""
    finally:
        del os.environ["QUAYMASTER_CANARY"]
        os.close(reading)
        os.close(writing)
    assert (tmp_path / "body").read_bytes() == b'{"a":1}'
    environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert environment.keys() - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        "PATH",
        "LANG",
        "QUAYMASTER_HOOK",
        "QUAYMASTER_EVENT",
        "QUAYMASTER_ID",
    }
    assert environment["QUAYMASTER_ID"] == "log:7:parked"
    assert environment["OLDPWD"] == "/"
    assert (tmp_path / "umask").read_text().strip() == "0077"
    assert (tmp_path / "core").read_text().strip() == "0"
    assert int((tmp_path / "files").read_text()) <= 1024
    assert int((tmp_path / "caps").read_text().split()[1], 16) == 0
    pid, group, session = (tmp_path / "ids").read_text().split()
    assert pid == group == session
    assert "pipe:" not in "".join(
        line for line in (tmp_path / "fds").read_text().splitlines() if line.split()[8:9] not in (["0"], ["1"], ["2"])
    )


def test_how_it_failed_is_told_with_the_end_of_what_it_said() -> None:
    assert send(shell("echo one; echo two >&2; exit 3")) == "the command ended with exit status 3: one | two"
    assert send(shell("kill -9 $$")) == "the command ended with signal SIGKILL"
    said = send(Command("note", ["/no/such/program"], 60))
    assert "exit status 127: /no/such/program cannot be run (No such file or directory)" in said


def test_a_command_that_does_not_want_to_know_may(tmp_path: Path) -> None:
    assert send(shell("exit 0"), b"x" * 5_000_000) == ""
    assert send(shell("exec 0<&-; sleep 0.2; exit 1"), b"x" * 5_000_000) == "the command ended with exit status 1"


def test_endless_output_needs_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = send(shell("head -c 400000000 /dev/zero | tr '\\0' x; echo end; exit 1"))
    assert answer.endswith("xxxend")
    assert len(answer) < KEPT + 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB


def test_one_that_hangs_is_ended_with_all_that_it_began(tmp_path: Path) -> None:
    script = (
        f"trap '' TERM; sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; sleep 1000 & wait; wait"
    )
    command = Command("note", ["/bin/sh", "-c", script], 1.5)
    assert send(command) == "the command did not end within 1.5 s"
    for name in ("child", "self"):
        until(lambda name=name: not alive(int((tmp_path / name).read_text())))


def test_what_it_leaves_behind_is_ended_and_holds_nobody_up(tmp_path: Path) -> None:
    began = time.monotonic()
    assert send(shell(f"sleep 1000 & echo $! > {tmp_path}/child; exit 0")) == ""
    assert time.monotonic() - began < 60
    until(lambda: not alive(int((tmp_path / "child").read_text())))


def test_a_stop_cuts_it_off_at_once_and_says_that_it_was_not_refused(tmp_path: Path) -> None:
    command = shell(f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/self; exec sleep 1000", 1000)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(command.send("parked", "1", b"{}")))
    thread.start()
    until((tmp_path / "self").exists)
    command.cut_off()
    thread.join(60)
    assert answers[0].cut
    assert not alive(int((tmp_path / "self").read_text()))
    assert command.send("parked", "2", b"{}").cut


def test_output_that_is_no_text_is_told_on_one_line() -> None:
    answer = send(shell("printf '\\377\\033[2J\\n\\nx'; exit 1"))
    assert answer.isprintable()
    json.dumps(answer).encode()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to give away")
def test_capabilities_of_the_service_are_not_its_own() -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    child = os.fork()
    if not child:  # in a process of its own: with one ambient capability, like the service
        try:
            libc.prctl(28, 3, 0, 0, 0)  # PR_SET_SECUREBITS, SECBIT_NOROOT: being root means nothing for what it runs
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)
            lease = 1 << 28
            data = (ctypes.c_uint32 * 6)(lease, lease, lease, 0, 0, 0)
            ok = libc.capset(header, data) == 0 and libc.prctl(47, 2, 28, 0, 0) == 0  # PR_CAP_AMBIENT_RAISE
            kept = subprocess.run(["/bin/grep", "CapEff", "/proc/self/status"], capture_output=True).stdout.split()[1]
            answer = send(shell("grep CapEff /proc/self/status; exit 1"))
            os._exit(0 if ok and int(kept, 16) == lease and answer.endswith("0000000000000000") else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_signals_that_python_ignores_are_not_ignored_in_it() -> None:
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    assert send(shell("yes | head -n 1 > /dev/null; exit 0")) == ""
