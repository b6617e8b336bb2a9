"""Commands when there is nothing to answer from, and on jobs in every state: one line, the right exit code, and parked
jobs can be retried or dropped whether the service runs or not (PRODUCT Q3, Q5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quaymaster.model import State
from system.conftest import Home
from system.mishaps import is_calm, parked, retried
from system.service import Service, until

Serve = Callable[..., Service]


@pytest.mark.parametrize(
    "command", [["status"], ["jobs"], ["jobs", "5"], ["jobs", "retry", "--all"], ["why", "landing/a"], ["prove", "a"]]
)
def test_without_a_queue_each_command_says_so(home: Home, command: list[str]) -> None:
    service = Service(home.config(), home.folder)
    words = [str(home.landing / "a") if word in ("landing/a", "a") else word for word in command]
    done = service.command(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"quaymaster: There is no queue in {home.folder}/state. Start the service once")
    assert len(done.stderr.splitlines()) == 1
    assert not (home.folder / "state").exists()  # asking makes nothing


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["jobs", "7"], 1, "There is no job 7"),
        (["jobs", "retry"], 2, "Name the jobs"),
        (["jobs", "retry", "--all", "1"], 2, "Name the jobs"),
        (["jobs", "drop", "x"], 2, "'x' is not a valid"),
        (["jobs", "retry", "7"], 1, "there is no job 7"),
        (["jobs", "--state", "lost"], 2, "'lost' is not one of 'queued'"),
        (["jobs", "--watch", "lost"], 2, "There is no watch lost. The watches are: landing"),
        (["why", "/etc/passwd"], 1, "/etc/passwd is under no watch. The watches are: landing ("),
        (["prove", "{landing}/never"], 1, "has not been delivered"),
        (["status", "--wrong"], 2, "No such option '--wrong'"),
        (["wrong"], 2, "No such command 'wrong'. Try: quaymaster --help"),
        (["run", "--json"], 2, "run has no --json"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    home: Home, idle: Service, command: list[str], code: int, says: str
) -> None:
    done = idle.command(*(word.format(landing=home.landing) for word in command))
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
    is_calm(done.stderr)


@pytest.fixture
def idle(home: Home) -> Service:
    """A service that ran once and has an empty queue."""
    from quaymaster.store import Store

    Store(str(home.folder / "state"), create=True).close()
    return Service(home.config(), home.folder)


def test_a_parked_job_is_shown_with_its_error_and_what_to_do_everywhere(home: Home, serve: Serve) -> None:
    (home.archive / "a").write_bytes(b"theirs")
    service = serve(home.config())
    home.land("a", b"ours")
    job = parked(service, "conflict", "Something else is already at")
    for width in ("80", "200"):
        service.environment["COLUMNS"] = width
        listed = " ".join(service.command("jobs").stdout.split())
        assert f"conflict: {job.error}" in listed  # in full, however narrow the terminal is
        assert "quaymaster jobs retry N" in listed
    shown = service.command("jobs", str(job.id)).stdout
    assert job.error in shown
    why = service.command("why", str(home.landing / "a")).stdout
    assert job.error in why
    assert f"quaymaster jobs retry {job.id}" in why
    status = service.command("status", "--all").stdout
    assert "1 x conflict" in status
    assert "quaymaster jobs retry --error conflict" in status


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_jobs_are_retried_and_dropped_whether_the_service_runs_or_not(home: Home, serve: Serve, running: bool) -> None:
    for name in ("a", "b"):
        (home.archive / name).write_bytes(b"theirs")
    service = serve(home.config())
    home.land("a", b"ours")
    job = parked(service, "conflict")
    home.land("b", b"ours")
    other = parked(service, "conflict", path="b")
    if not running:
        service.stop()
    (home.archive / "a").unlink()
    assert service.cli("jobs", "drop", str(other.id)) == (0, {"dropped": [other.id], "refused": []})
    code, found = service.cli("jobs", "drop", str(other.id))
    assert (code, found["refused"]) == (1, [{"id": other.id, "state": "dropped"}])
    retried(service, job)
    if not running:
        assert service.states() == {**dict.fromkeys(State, 0), State.QUEUED: 1, State.DROPPED: 1}
        service.start()
    service.until_done(1)
    assert home.arrived() == {b"a": b"ours", b"b": b"theirs"}
    assert "given up by an operator" in service.command("why", str(home.landing / "b")).stdout
    (home.archive / "b").unlink()
    retried(service, other)  # by its number it comes back
    service.until_done(2)
    until(lambda: home.arrived() == {b"a": b"ours", b"b": b"ours"})
    assert (home.landing / "b").read_bytes() == b"ours"
