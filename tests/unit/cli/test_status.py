"""``quaymaster status``: one screen that is true whether the service runs, hangs or is stopped."""

from __future__ import annotations

import os
import time

import pytest

from quaymaster.model import Stage, State
from quaymaster.service.lock import Lock


@pytest.fixture
def service(scene):
    """What a running service leaves in its state directory; this process is it."""
    lock = Lock(str(scene.state))
    scene.store.report(
        "service",
        {"pid": os.getpid(), "version": "9.8.7", "started_at": time.time() - 7200, "state": "running"},
    )
    yield scene
    lock.release()


def watch_says(scene, **fields: object) -> None:
    body = {"name": "sequencer", "mode": "inotify", "state": "watching", "reason": "", "pending": 3, "directories": 12}
    scene.store.report("watch:sequencer", body | fields)


def test_a_running_service_is_shown_with_its_process_and_age(service) -> None:
    first = service.run("status").out.splitlines()[0]
    assert first.startswith("quaymaster 9.8.7: running since 20")
    assert first.endswith(f"(2 h)   pid {os.getpid()}")


def test_a_service_that_is_not_ready_yet_is_starting(scene) -> None:
    scene.store.report("service", {"pid": 1, "version": "0", "started_at": 1.0, "state": "running"})
    lock = Lock(str(scene.state))
    try:
        assert f": starting   pid {os.getpid()}" in scene.run("status").out
    finally:
        lock.release()


def test_what_a_dead_service_last_said_is_not_believed(scene) -> None:
    scene.store.report("service", {"pid": 4242, "version": "9.8.7", "started_at": 1.0, "state": "running"})
    watch_says(scene, state="outage", reason="the mount is gone")
    scene.store.report("destination:archive", {"state": "failing", "error": "nobody answers", "since": 1.0})
    scene.store.report("progress", {"jobs": {"1": {"stage": "transfer", "source_bytes": 100}}})
    scene.start(scene.queue())
    answer = scene.run("status")
    assert answer.code == 0
    assert "stopped   start it with: systemctl start quaymaster" in answer.out.splitlines()[0]
    assert "the mount is gone" not in answer.out
    assert "nobody answers" not in answer.out
    assert "1 job interrupted by the stop" in answer.out
    body = scene.run("status", "--json").json
    assert body["service"] == {"state": "stopped", "pid": None, "version": None, "started_at": None}
    assert [watch["state"] for watch in body["watches"]] == ["stopped"]
    assert [destination["state"] for destination in body["destinations"]] == ["stopped"]


def test_totals_count_jobs_and_bytes_and_name_the_next_try_and_the_oldest_file(service) -> None:
    service.deliver(service.enqueue(service.land()))
    service.park(service.queue(b"p", 2048))
    service.fail(service.queue(b"w", 10), State.WAITING, "unreachable", "x", retry_at=time.time() + 605)
    service.queue(b"q1", 1024**3)
    service.queue(b"q2", 1024**3)
    out = service.run("status").out
    for part in ("queued 2 (2.00 GiB)", "running 0", "waiting 1 (10 B), next try in 10 min", "parked 1 (2.00 KiB)",
                 "done 1 (400 B)", "oldest undelivered file: "):  # fmt: skip
        assert part in out
    body = service.run("status", "--json").json
    assert body["totals"]["queued"] == {"jobs": 2, "bytes": 2 * 1024**3}
    assert body["totals"]["superseded"] == {"jobs": 0, "bytes": 0}
    assert body["oldest_open"] == pytest.approx(time.time(), abs=60)


def test_it_says_on_what_work_waits(service) -> None:
    service.queue(b"q", 10)
    mib = 2**20
    flow = {"destination": "", "rate": 48 * mib, "limit": 50 * mib, "until": "18:00", "waiting": 3}
    service.store.report(
        "ceilings",
        {
            "files": {"used": 20, "ceiling": 20},
            "memory": {"used": 250 * mib, "ceiling": 256 * mib, "waiting": 7},
            "compressing": {"used": 1, "ceiling": 1, "waiting": 2},
            "staging": {"used": 40 * mib, "ceiling": 50 * mib},
            "bandwidth": [flow, flow | {"destination": "archive", "limit": 1 * mib, "rate": 0, "until": None}],
        },
    )
    lines = service.run("status").out.splitlines()
    for line in (
        "bandwidth: 48 of 50 MiB/s until 18:00, 3 files waiting",
        "bandwidth to archive: 0.00 of 1.00 MiB/s, 3 files waiting",
        "files: all 20 are in flight (limits.files); the others wait",
        "memory: 7 files waiting, 250 MiB of 256 MiB in use (limits.memory)",
        "compressing: 2 files waiting, 1 of 1 in use (limits.compress_threads)",
        "staging: 40.0 MiB of 50.0 MiB in use",
    ):
        assert line in lines, (line, lines[:12])
    assert service.run("status", "--json").json["ceilings"]["memory"]["waiting"] == 7


def test_nothing_to_do_is_said_so(service) -> None:
    assert "nothing undelivered" in service.run("status").out


def test_each_watch_has_a_row_and_an_outage_its_reason(service) -> None:
    watch_says(service, state="outage", reason="the directory is not mounted\x1b[31m")
    service.queue(b"x")
    lines = service.run("status").out.splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("sequencer"))
    assert lines[row].split() == ["sequencer", "inotify", "outage", "3", "1", "0", "0", "0"]
    assert lines[row + 1] == "  the directory is not mounted\\x1b[31m"
    (watch,) = service.run("status", "--json").json["watches"]
    assert watch["seen"]["directories"] == 12
    assert watch["jobs"]["queued"]["jobs"] == 1


def test_a_watch_that_is_no_longer_configured_keeps_its_row_while_it_has_jobs(service) -> None:
    service.queue(b"x", watch="former")
    rows = [line.split() for line in service.run("status").out.splitlines()]
    assert ["former", "-", "not", "configured", "0", "1", "0", "0", "0"] in rows


def test_each_destination_has_a_row_and_a_failing_one_its_error(service) -> None:
    service.store.report("destination:archive", {"state": "failing", "error": "nobody answers", "since": 1e9})
    lines = service.run("status").out.splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("archive"))
    assert lines[row].split()[:3] == ["archive", "directory", "failing"]
    assert lines[row].split()[3].startswith("2001-09-0")
    assert lines[row + 1] == "  nobody answers"


def progress(scene, job, **fields: object) -> None:
    body = {"stage": "publish", "source_bytes": 250, "size": 1000, "stored_bytes": 90, "since": time.time() - 2}
    scene.store.report("progress", {"jobs": {str(job.id): body | fields}})


def test_a_running_job_shows_how_far_it_is(service) -> None:
    job = service.start(service.queue(b"reads.fastq", 1000))
    progress(service, job)
    row = service.run("status").out.splitlines()[-1].split()
    assert row[:4] == [str(job.id), "publish", "25", "%"]
    assert row[-1] == "reads.fastq"
    assert "B/s" in row[-2]
    (running,) = service.run("status", "--json").json["running"]
    assert (running["source_bytes"], running["stored_bytes"], running["size"]) == (250, 90, 1000)


def test_progress_that_is_old_is_not_shown_as_now(service) -> None:
    job = service.start(service.queue(b"reads.fastq", 1000))
    service.store.checkpoint(job, Stage.TRANSFER)
    service.store._clock = lambda: time.time() - 6
    progress(service, job)
    row = service.run("status").out.splitlines()[-1].split()
    assert row[:3] == [str(job.id), "transfer", "-"]


def test_parked_jobs_are_grouped_by_their_error_with_what_to_do(service) -> None:
    for number in range(3):
        service.park(service.queue(b"d%d" % number), "permission-denied", "d cannot be read. Give permission")
    service.park(service.queue(b"c"), "conflict", "c is in the way. Move it away")
    lines = service.run("status").out.splitlines()
    assert lines[-5:] == [
        "PARKED: 4 files waiting for you; mend the cause, then retry or drop",
        "  3 x permission-denied: d cannot be read. Give permission",
        "    then: quaymaster jobs retry --error permission-denied",
        "  1 x conflict: c is in the way. Move it away",
        "    then: quaymaster jobs retry --error conflict",
    ]


def test_the_worst_day_still_fits_80_by_24_and_says_what_is_left_out(service) -> None:
    text = service.config.read_text()
    for number in range(8):
        (service.base / f"w{number}").mkdir()
        text += f'[watch.watch-number-{number}]\npath = "{service.base}/w{number}"\ndestinations = ["archive"]\n'
        text += f'[destination.d{number}]\ntype = "directory"\npath = "{service.base}/to{number}"\n'
        service.store.report(f"destination:d{number}", {"state": "failing", "error": "no " * 90, "since": 1e9})
        service.store.report(
            f"watch:watch-number-{number}", {"mode": "poll", "state": "outage", "reason": "gone " * 60, "pending": 1}
        )
    service.config.write_text(text)
    for number in range(30):
        service.park(service.queue(b"p/" * 50 + b"%d" % number), f"error-{number % 7}", "why " * 100)
    for number in range(20):
        service.start(service.queue(b"r/" * 50 + b"%d" % number))
    lines = service.run("status").out.splitlines()
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    for title in ("WATCH", "DESTINATION", "JOB", "PARKED"):
        assert any(line.lstrip().startswith(title) for line in lines), title
    assert sum("quaymaster status --all" in line for line in lines) >= 3
    everything = service.run("status", "--all").out.splitlines()
    assert len(everything) > 60
    assert sum(line.startswith("watch-number-") for line in everything) == 8


# -- while somebody edits the configuration --


@pytest.mark.parametrize(
    "command", [("status",), ("jobs",), ("jobs", "show", "1"), ("jobs", "retry", "--all"), ("audit", "export")]
)
def test_a_mistake_in_a_watch_does_not_hide_the_queue(scene, command: tuple[str, ...]) -> None:
    scene.deliver(scene.queue())
    mistake = '[watch.new]\npath = "/srv/new"\ndestinations = ["archive", "archiv"]\ncompress = "zst"\n'
    scene.config.write_text(scene.config.read_text() + mistake)
    answer = scene.run(*command)
    assert answer.code == 0, answer.err
    assert f"warning: 2 problems in {scene.config}" in answer.err
    assert "sequencer" in answer.out or command[1:] == ("retry", "--all")
    assert "new" not in answer.out.split()


@pytest.mark.parametrize("mistake", ["[servce]\n", "[[", "[service]\nstop_timeout = 'x'\n"])
def test_nothing_is_shown_when_it_is_open_where_the_queue_is(scene, mistake: str) -> None:
    scene.config.write_text(scene.config.read_text().replace("[service]", "[limits]") + mistake)
    answer = scene.run("status")
    assert (answer.code, answer.out) == (2, "")
    assert f"in {scene.config}" in answer.err
