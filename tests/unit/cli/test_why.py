"""``quaymaster why``: what became of a file, or what it is still waiting for."""

from __future__ import annotations

import os
import threading
import time

import pytest

from quaymaster.config import load
from quaymaster.errors import QuaymasterError
from quaymaster.model import FileVersion, Identity, State
from quaymaster.service.lock import Lock
from quaymaster.service.view.locate import locate

NOT_UTF8 = b"run/\xff\x1b[2J\nname.bin"


def why(scene, path: str | bytes, *more: str):
    return scene.run("why", os.path.join(os.fsencode(scene.watched), os.fsencode(path)), *more)


def test_a_delivered_file_is_delivered_where_and_how(scene) -> None:
    scene.deliver(scene.enqueue(scene.land()))
    answer = why(scene, "a.fastq")
    assert answer.code == 0
    assert answer.out.splitlines()[0] == f"{scene.watched}/a.fastq (watch sequencer)"
    assert "delivered to archive as sequencer/a.fastq.zst, 2023-11-14T" in answer.out
    assert "proven by readback" in answer.out
    assert "[missing]" not in answer.out
    assert why(scene, "a.fastq", "--json").json["state"] == "done"


def test_a_source_that_was_moved_after_delivery_is_told(scene) -> None:
    scene.deliver(scene.enqueue(scene.land()), disposal="moved:/srv/done/a.fastq")
    (scene.watched / "a.fastq").unlink()
    out = why(scene, "a.fastq").out
    assert "the source was moved to /srv/done/a.fastq" in out
    assert "there is no file of that name now" in out


def test_a_queued_file_waits_for_the_service_to_be_started(scene) -> None:
    scene.enqueue(scene.land())
    out = why(scene, "a.fastq").out
    assert "queued since 20" in out
    assert "start it with: systemctl start quaymaster" in out
    lock = Lock(str(scene.state))
    try:
        assert "systemctl" not in why(scene, "a.fastq").out
    finally:
        lock.release()


def test_a_waiting_file_says_until_when_and_because_of_what(scene) -> None:
    scene.fail(scene.enqueue(scene.land()), State.WAITING, "unreachable", "nobody answers", retry_at=1e10)
    out = why(scene, "a.fastq").out
    assert "waiting until 2286-11-20T" in out
    assert "after 1 failure (job 1) because: nobody answers" in out


def test_a_parked_file_says_why_and_how_to_go_on(scene) -> None:
    scene.park(scene.enqueue(scene.land()), "conflict", "something is in the way. Move it")
    out = why(scene, "a.fastq").out
    assert "parked after 1 failure (job 1) because: something is in the way. Move it" in out
    assert "when the cause is mended: quaymaster jobs retry 1" in out


def test_a_dropped_file_can_be_taken_back(scene) -> None:
    scene.enqueue(scene.land())
    scene.run("jobs", "drop", "1")
    out = why(scene, "a.fastq").out
    assert "given up by an operator" in out
    assert "quaymaster jobs retry 1" in out


def test_a_file_that_is_being_written_says_what_is_missing(scene) -> None:
    with open(scene.watched / "growing", "wb") as file:
        file.write(b"x")
        file.flush()
        out = why(scene, "growing").out
    assert "not in the queue" in out
    assert "[missing] a program has it open for writing" in out
    assert "it must stay as it is for 5 s" in out
    evidence = why(scene, "growing", "--json").json["evidence"]
    assert {item["ok"] for item in evidence} >= {True, False}


def test_a_file_left_out_by_a_rule_names_the_rule(scene) -> None:
    scene.land(b"reads.fastq.part")
    answer = why(scene, "reads.fastq.part")
    assert answer.code == 0
    assert "[missing]" in answer.out
    assert ".part" in answer.out.split("[missing]")[1]


def test_a_file_that_changed_since_its_delivery_is_a_version_of_its_own(scene) -> None:
    scene.deliver(scene.enqueue(scene.land()))
    scene.land(b"a.fastq", b"something else")
    out = why(scene, "a.fastq").out
    assert "this version is not in the queue; the last one was finished" in out
    assert "[ok]" in out


def test_a_superseded_version_that_is_back_is_not_taken_for_queued(scene) -> None:
    version = scene.land()
    scene.enqueue(version)
    scene.enqueue(FileVersion("sequencer", b"a.fastq", Identity(1, 1, 1)))
    assert why(scene, "a.fastq", "--json").json["state"] == "not queued"


def test_a_name_that_is_nowhere_is_said_so(scene) -> None:
    out = why(scene, "never-was").out
    assert "not in the queue" in out
    assert "does not exist" in out


def test_any_name_can_be_asked_for_and_is_printed_safely(scene) -> None:
    scene.park(scene.enqueue(scene.land(NOT_UTF8)))
    answer = why(scene, NOT_UTF8)
    assert "parked" in answer.out
    assert all(c == "\n" or c.isprintable() for c in answer.out)
    assert scene.spawn("why", os.path.join(os.fsencode(scene.watched), NOT_UTF8)).out == answer.out
    assert bytes.fromhex(why(scene, NOT_UTF8, "--json").json["path_bytes_hex"]) == NOT_UTF8


def test_a_directory_counts_what_is_below_it(scene) -> None:
    scene.land(b"run/a")
    scene.park(scene.queue(b"run/a"))
    scene.queue(b"run/b")
    scene.queue(b"elsewhere")
    assert "files below it in the queue: 1 parked, 1 queued" in why(scene, "run").out
    assert why(scene, "", "--json").json["jobs_below"] == {"parked": 1, "queued": 2}


@pytest.mark.parametrize("command", ["why", "prove"])
def test_a_path_under_no_watch_names_the_watches(scene, command: str) -> None:
    answer = scene.run(command, "/etc/passwd")
    assert answer.code == 1
    assert answer.err == (f"quaymaster: /etc/passwd is under no watch. The watches are: sequencer ({scene.watched})\n")
    assert scene.run(command, f"{scene.watched}-not/x").code == 1


@pytest.mark.parametrize("command", ["why", "prove"])
def test_a_path_may_be_relative_or_lead_through_links(scene, command: str, monkeypatch) -> None:
    scene.deliver(scene.enqueue(scene.land(b"run/a.fastq")))
    (scene.base / "link").symlink_to(scene.watched)
    (scene.base / "run-link").symlink_to(scene.watched / "run")
    monkeypatch.chdir(scene.watched / "run")
    for path in (
        "a.fastq", "./a.fastq", "../run/a.fastq", f"{scene.watched}//run/./a.fastq", f"{scene.base}/link/run/a.fastq",
        f"{scene.base}/run-link/a.fastq",
    ):  # fmt: skip
        answer = scene.run(command, path)
        assert (answer.code, answer.err) == (0, ""), path
        assert "run/a.fastq (watch sequencer)" in answer.out


def test_a_watch_that_is_named_through_a_link_is_found_by_its_real_path(scene) -> None:
    (scene.base / "link").symlink_to(scene.watched)
    scene.config.write_text(scene.config.read_text().replace(str(scene.watched), f"{scene.base}/link"))
    scene.park(scene.enqueue(scene.land()))
    assert "parked" in scene.run("why", f"{scene.watched}/a.fastq").out
    assert "parked" in scene.run("why", f"{scene.base}/link/a.fastq").out


def test_a_path_that_is_under_a_watch_by_its_text_asks_no_filesystem(scene, monkeypatch) -> None:
    config = load(str(scene.config), {})
    back = threading.Event()
    monkeypatch.setattr("os.path.realpath", lambda path: back.wait(60) and path)  # a mount that is dead until then
    assert locate(config, os.fsencode(scene.watched / "run" / "a")).path == b"run/a"
    with pytest.raises(QuaymasterError, match="a filesystem does not answer") as raised:
        locate(config, b"/elsewhere/a", patience=0.1)
    assert raised.value.exit_code == 1
    back.set()


def test_a_filesystem_that_does_not_answer_does_not_hang_the_command(scene, monkeypatch) -> None:
    scene.enqueue(scene.land())
    fifo = scene.base / "hang"
    os.mkfifo(fifo)
    monkeypatch.setattr("quaymaster.service.view.file.PATIENCE", 0.2)
    monkeypatch.setattr("quaymaster.source.Root.open", lambda *_: os.open(fifo, os.O_RDONLY))  # blocks for ever
    begun = time.monotonic()
    try:
        answer = why(scene, "a.fastq")
        assert time.monotonic() - begun < 5
        assert "does not answer within 0.2 s; is its mount hung?" in answer.out
        assert "queued" in answer.out
    finally:
        os.close(os.open(fifo, os.O_WRONLY))  # lets the thread go
