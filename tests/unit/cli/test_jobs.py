"""``quaymaster jobs``: what is in the queue is listed, shown, retried and dropped, running service or not."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time

import pytest

from quaymaster.cli.jobs import LISTED
from quaymaster.model import State

NOT_UTF8 = b"run/\xff\x1b[2J\nname.bin"
"""A byte that is no UTF-8, a sequence that clears a terminal, and a newline."""


def test_the_list_has_a_row_for_each_job_newest_first_and_says_why_one_waits(scene) -> None:
    parked = scene.park(scene.queue(b"run/secret"), "permission-denied", "run/secret cannot be read. Give permission")
    waiting = scene.fail(
        scene.queue(b"run/x"), State.WAITING, "unreachable", "nobody answers", retry_at=time.time() + 250
    )
    queued = scene.queue(b"run/big", size=3 * 1024**3)
    lines = scene.run("jobs").out.splitlines()
    assert lines[0].split() == ["ID", "STATE", "STAGE", "WATCH", "SIZE", "AGE", "FAILED", "FILE"]
    assert lines[1].split() == [str(queued.id), "queued", "-", "sequencer", "3.00", "GiB", "0", "s", "0", "run/big"]
    assert lines[2].split()[:2] == [str(waiting.id), "waiting"]
    assert lines[3].strip() == "next try in 4 min; unreachable: nobody answers"
    assert lines[4].split()[:2] == [str(parked.id), "parked"]
    assert lines[5].strip() == "permission-denied: run/secret cannot be read. Give permission"


def test_rows_fit_the_terminal_and_keep_the_end_of_the_path(scene) -> None:
    scene.park(scene.queue(b"deep/" * 40 + b"reads.fastq"), error="because " * 50)
    lines = scene.run("jobs").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].endswith("reads.fastq")


def test_names_cannot_move_the_cursor_or_fake_a_line(scene) -> None:
    scene.park(scene.queue(NOT_UTF8), "conflict\x1b[1m", "it said \x1b]0;owned\x07\nID STATE")
    for command in (["jobs"], ["jobs", "1"], ["status"]):
        answer = scene.run(*command)
        assert all(c == "\n" or c.isprintable() for c in answer.out), command
        assert answer.code == 0
    assert "run/\\xff\\x1b[2J\\nname.bin" in scene.run("jobs", "1").out


def test_json_carries_the_bytes_of_a_name_that_is_no_plain_text(scene) -> None:
    scene.queue(NOT_UTF8)
    scene.queue("ä b".encode())
    plain, odd = scene.run("jobs", "--json").json["jobs"]
    assert plain["path"] == "ä b"
    assert "path_bytes_hex" not in plain
    assert odd["path"] == "run/\\xff\\x1b[2J\\nname.bin"
    assert bytes.fromhex(odd["path_bytes_hex"]) == NOT_UTF8


def test_the_fields_of_a_job_in_json_are_those_that_the_manual_names(scene) -> None:
    scene.fail(scene.queue(), State.WAITING, "unreachable", "nobody answers", retry_at=4e9)
    (job,) = scene.run("jobs", "--json").json["jobs"]
    assert job.pop("queued_at") == pytest.approx(time.time(), abs=60)
    assert job.pop("started_at") == pytest.approx(time.time(), abs=60)
    assert job == {
        "id": 1, "watch": "sequencer", "path": "a.fastq", "size": 400, "mtime_ns": 1_700_000_000_123_456_789,
        "inode": 7, "state": "waiting", "stage": None, "attempts": 1, "retry_at": 4e9, "error_code": "unreachable",
        "error": "nobody answers", "ended_at": None,
    }  # fmt: skip


@pytest.fixture
def mixed(scene):
    """1 parked in run7, 2 waiting in run7, 3 parked in run8 with another error, 4 dropped, 5 queued."""
    scene.park(scene.queue(b"run7/a"), "permission-denied")
    scene.fail(scene.queue(b"run7/b"), State.WAITING, "unreachable", "nobody answers", retry_at=time.time() + 1000)
    scene.park(scene.queue(b"run8/a"), "conflict")
    dropped = scene.queue(b"run9")
    assert scene.run("jobs", "drop", str(dropped.id)).code == 0
    scene.queue(b"run7.old")
    return scene


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ([], [5, 4, 3, 2, 1]),
        (["--state", "parked"], [3, 1]),
        (["--state", "parked", "--state", "waiting"], [3, 2, 1]),
        (["--error", "unreachable"], [2]),
        (["--path", "run7"], [2, 1]),
        (["--path", "run7/"], [2, 1]),
        (["--path", "run7/a"], [1]),
        (["--watch", "sequencer", "--path", "run8"], [3]),
        (["--limit", "2"], [5, 4]),
        (["--limit", "0"], [5, 4, 3, 2, 1]),
    ],
)
def test_filters_choose(mixed, filters: list[str], ids: list[int]) -> None:
    assert [job["id"] for job in mixed.run("jobs", *filters, "--json").json["jobs"]] == ids


def test_an_absolute_path_is_a_filter_too(mixed) -> None:
    answer = mixed.run("jobs", "--path", f"{mixed.watched}/run7", "--json")
    assert [job["id"] for job in answer.json["jobs"]] == [2, 1]
    answer = mixed.run("jobs", "--path", "/elsewhere")
    assert answer.code == 1
    assert "/elsewhere is under no watch" in answer.err


def test_a_long_list_is_cut_for_people_and_whole_for_programs(scene) -> None:
    for number in range(LISTED + 5):
        scene.queue(b"%d" % number)
    lines = scene.run("jobs").out.splitlines()
    assert len(lines) == LISTED + 2
    assert "--limit 0" in lines[-1]
    body = scene.run("jobs", "--json").json
    assert (len(body["jobs"]), body["more"]) == (LISTED + 5, False)
    body = scene.run("jobs", "--json", "--limit", "3").json
    assert (len(body["jobs"]), body["more"]) == (3, True)


def test_one_job_is_shown_with_its_deliveries_and_its_history(scene) -> None:
    job = scene.deliver(scene.enqueue(scene.land()), disposal="moved:/srv/done/a.fastq")
    out = scene.run("jobs", str(job.id)).out
    assert out == scene.run("jobs", "show", str(job.id)).out
    for part in ("state     done", "delivered to archive", "source sha256    4e9ce95e", "moved to /srv/done/a.fastq"):
        assert part in out
    history = scene.store.history(job)
    assert len(history) == 2
    for entry in history:
        assert f"  {entry.seq} {entry.sha256} {entry.body}\n" in out
    body = scene.run("jobs", str(job.id), "--json").json
    assert body["state"] == "done"
    assert body["deliveries"][0]["stored_sha256"].startswith("f310dc90")
    assert body["history"] == [{"seq": e.seq, "sha256": e.sha256, "body": e.body} for e in history]


def test_a_job_that_is_not_there_is_said_so(scene) -> None:
    answer = scene.run("jobs", "77")
    assert answer.code == 1
    assert answer.err == "quaymaster: There is no job 77. quaymaster jobs lists them\n"


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["1"], {1}),
        (["1", "2", "1"], {1, 2}),
        (["4"], {4}),
        (["--all"], {1, 2, 3}),
        (["--watch", "sequencer"], {1, 2, 3}),
        (["--error", "conflict"], {3}),
        (["--path", "run7"], {1, 2}),
        (["--state", "dropped"], {4}),
        (["--error", "nothing-of-the-kind"], set()),
    ],
)
def test_retry_queues_again_exactly_what_was_named(mixed, arguments: list[str], ids: set[int]) -> None:
    before = {number: mixed.job(number) for number in range(1, 6)}
    answer = mixed.run("jobs", "retry", *arguments, "--json")
    assert answer.code == 0
    assert set(answer.json["retried"]) == ids
    for number, job in before.items():
        now = mixed.job(number)
        assert now.state is (State.QUEUED if number in ids else job.state)
        assert now.attempts == (0 if number in ids else job.attempts)


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [(["5", "1"], {1, 5}), (["--all"], {1, 2, 3, 5}), (["--error", "unreachable"], {2}), (["--path", "run7"], {1, 2})],
)
def test_drop_gives_up_exactly_what_was_named_and_touches_no_file(mixed, arguments: list[str], ids: set[int]) -> None:
    (mixed.watched / "run7").mkdir()
    (mixed.watched / "run7" / "a").write_text("still here")
    answer = mixed.run("jobs", "drop", *arguments)
    assert answer.code == 0
    assert answer.out == f"Dropped: {len(ids)} job{'s' if len(ids) > 1 else ''}.\n"
    assert {n for n in range(1, 6) if mixed.job(n).state is State.DROPPED} == ids | {4}
    assert (mixed.watched / "run7" / "a").read_text() == "still here"


def test_what_was_named_and_cannot_be_done_makes_exit_code_1(mixed) -> None:
    answer = mixed.run("jobs", "retry", "1", "5", "99")
    assert answer.code == 1
    assert answer.out == "Queued again: 1 job.\n"
    assert answer.err == (
        "quaymaster: job 5 is queued, so there is nothing to try again\nquaymaster: there is no job 99\n"
    )
    body = mixed.run("jobs", "drop", "4", "99", "--json").json
    assert body == {"dropped": [], "refused": [{"id": 4, "state": "dropped"}, {"id": 99, "state": None}]}


@pytest.mark.parametrize("action", ["retry", "drop"])
def test_naming_nothing_never_means_all(mixed, action: str) -> None:
    for arguments in ([], ["1", "--all"], ["1", "--watch", "sequencer"], ["--all", "--error", "conflict"]):
        answer = mixed.run("jobs", action, *arguments)
        assert answer.code == 2, arguments
        assert "Name the jobs" in answer.err
    assert mixed.job(1).state is State.PARKED
    assert mixed.job(5).state is State.QUEUED


def test_every_action_is_in_the_custody_log(mixed) -> None:
    mixed.run("jobs", "retry", "1")
    mixed.run("jobs", "drop", "1")
    kinds = [entry.fields["kind"] for entry in mixed.store.history(mixed.job(1))]
    assert kinds[-2:] == ["retried", "dropped"]


@pytest.mark.parametrize(
    ("answered", "left"), [(b"n\n", State.PARKED), (b"y\n", State.DROPPED), (b"\x03", State.PARKED)]
)
def test_dropping_all_asks_on_a_terminal(mixed, answered: bytes, left: State) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "quaymaster", "jobs", "drop", "--all", "--config", str(mixed.config)],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_own_terminal,
    )  # fmt: skip
    os.close(slave)
    try:
        seen = b""
        while b"[y/N]" not in seen:
            seen += os.read(master, 1000)
        _until_it_waits(process.pid)
        os.write(master, answered)
        code = process.wait(30)
    finally:
        os.close(master)
        process.kill()
        process.wait()
    assert b"Give up 4 jobs?" in seen
    assert mixed.job(1).state is left
    assert code == {b"n\n": 1, b"y\n": 0, b"\x03": 130}[answered]


def _until_it_waits(pid: int) -> None:
    """For the answer: a ^C in the moment between the question and the read is seen only after the next key."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "S":
                return
    raise AssertionError("it never waited for an answer")


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that ^C on it interrupts


def test_dropping_all_does_not_ask_with_yes_or_without_a_terminal(mixed) -> None:
    assert mixed.spawn("jobs", "drop", "--all").code == 0
    assert mixed.job(1).state is State.DROPPED
