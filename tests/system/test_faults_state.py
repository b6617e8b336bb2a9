"""A state directory that cannot be used, and what may befall the process itself: one clear line, nothing damaged,
nothing lost (PRODUCT Q6, S3)."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from quaymaster.model import State
from system.conftest import Home
from system.mishaps import AS_NOBODY, is_calm, no_mounts, no_nobody, refused, remount, small_disk, told, waiting
from system.service import COMMAND, Service, until

Serve = Callable[..., Service]
needs_mounts = pytest.mark.skipif(bool(no_mounts()), reason=no_mounts())
COMMANDS = (["status"], ["jobs"], ["jobs", "retry", "--all"], ["why", "{landing}/a"], ["prove", "{landing}/a"])


@pytest.fixture
def used(home: Home, serve: Serve) -> Service:
    """A service that has delivered one file and is stopped."""
    service = serve(home.config())
    home.land("a", b"content")
    service.until_done(1)
    service.stop()
    return service


def database(home: Home) -> Path:
    return home.folder / "state" / "quaymaster.db"


def every_command_says(service: Service, home: Home, text: str) -> None:
    for command in COMMANDS:
        done = service.command(*(word.format(landing=home.landing) for word in command))
        is_calm(done.stderr)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert text in line


@needs_mounts
def test_a_state_directory_on_a_read_only_filesystem(home: Home) -> None:
    with small_disk(home.folder / "state", "ro"):
        line = refused(home.config(), home.folder)
    assert f"{home.folder}/state/" in line
    assert "Read-only file system" in line
    assert "Mount it writable" in line


@pytest.mark.skipif(bool(no_nobody()), reason=no_nobody())
def test_a_state_directory_that_belongs_to_another_user(home: Home, used: Service) -> None:
    home.open_to_all()
    line = refused(home.config(), home.folder, *AS_NOBODY)
    assert "(Permission denied). Give the state directory to the service's user" in line
    asked = subprocess.run(
        [*AS_NOBODY, *COMMAND, "status", "--config", str(used.config_file)], capture_output=True, encoding="utf-8"
    )
    assert (asked.returncode, asked.stdout) == (1, "")
    assert "no permission to enter" in asked.stderr
    assert "as root or as the service's user" in asked.stderr


def test_a_second_service_on_the_same_state_directory(home: Home, serve: Serve) -> None:
    service = serve(home.config())
    other = home.folder / "other"
    other.mkdir()
    line = refused(home.config(), other)
    assert f"Another quaymaster (process {service.pid}) uses {home.folder}/state" in line
    assert service.running


NOT_A_DATABASE = b"these are not the bytes of a database " * 200


def test_a_database_that_is_none_is_left_as_it_is(home: Home, used: Service) -> None:
    database(home).write_bytes(NOT_A_DATABASE)
    line = refused(home.config(), home.folder)
    assert f"The database {database(home)} is damaged" in line
    assert "restore a backup" in line
    every_command_says(used, home, "is damaged (file is not a database)")
    assert database(home).read_bytes() == NOT_A_DATABASE


def test_a_database_with_damaged_pages_is_left_as_it_is(home: Home, used: Service) -> None:
    content = bytearray(database(home).read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    database(home).write_bytes(content)
    assert "is damaged" in refused(home.config(), home.folder)
    every_command_says(used, home, "is damaged")
    assert database(home).read_bytes() == content


def test_a_database_of_a_newer_version_is_left_as_it_is(home: Home, used: Service) -> None:
    with sqlite3.connect(database(home)) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = database(home).read_bytes()
    line = refused(home.config(), home.folder)
    assert "was written by a newer quaymaster (schema 99" in line
    every_command_says(used, home, "was written by a newer quaymaster")
    assert database(home).read_bytes() == before


def test_a_database_of_another_program_is_left_as_it_is(home: Home) -> None:
    database(home).parent.mkdir()
    with sqlite3.connect(database(home)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = database(home).read_bytes()
    assert "is not a quaymaster database" in refused(home.config(), home.folder)
    assert database(home).read_bytes() == before


@needs_mounts
def test_a_full_disk_under_the_queue_stops_nothing_for_good(home: Home, serve: Serve) -> None:
    state = home.folder / "state"
    with small_disk(state, "size=3m"):
        service = serve(home.config())
        home.land("first", b"first")
        service.until_done(1)
        fill(state / "ballast")
        for number in range(30):
            home.land(f"file-{number}", b"x" * 1000)
        told(service, "files wait to be queued", "is full. Make room")
        assert "quaymaster" in service.command("status").stdout  # reading needs no room
        (state / "ballast").unlink()
        service.until_done(31)
        told(service, "files can be queued again")
        service.stop()
        assert len(home.arrived()) == 31


@needs_mounts
def test_a_start_on_a_full_disk_says_so(home: Home, used: Service) -> None:
    state = home.folder / "state"
    state.rename(home.folder / "kept")
    with small_disk(state, "size=1m"):
        fill(state / "ballast")
        line = refused(home.config(), home.folder)
        assert f"{state}" in line
        assert "No space left" in line or "is full" in line


@needs_mounts
def test_a_full_staging_disk_makes_files_wait_until_there_is_room(home: Home, serve: Serve) -> None:
    content = os.urandom(3 << 20)
    with small_disk(home.staging, "size=2m"):
        service = serve(home.config("stage = true", limits="").replace('staging_free = "1MiB"', "staging_free = 0"))
        home.land("a", content)
        waiting(service, "out-of-space", f"{home.staging} has", "are needed", "Make room there")
        home.land("small", b"small")
        until(lambda: home.arrived() == {b"small": b"small"} and home.leftovers() == [])
        remount(home.staging, "size=16m")
        service.until_done(2)  # by itself
        assert home.arrived() == {b"a": content, b"small": b"small"}
        assert home.leftovers() == []


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


# -- the process --


def test_a_wrong_configuration_is_told_at_a_reload_and_the_old_one_stays(home: Home, serve: Serve) -> None:
    service = serve(home.config())
    right = service.config_file.read_text()
    service.config_file.write_text(right.replace("settle =", "setle ="))
    os.kill(service.pid, signal.SIGHUP)
    told(service, "error", f"{service.config_file}:", "[watch.landing] setle")
    told(service, "error", "the earlier one stays in effect")
    home.land("a", b"content")
    service.until_done(1)
    service.config_file.write_text(right)
    os.kill(service.pid, signal.SIGHUP)
    told(service, "the configuration was read again")
    home.land("b", b"content")
    service.until_done(2)
    service.stop()


def test_it_goes_on_when_nobody_reads_its_output_any_more(home: Home) -> None:
    config = home.folder / "quaymaster.toml"
    config.write_text(home.config())
    process = subprocess.Popen(
        [*COMMAND, "run", "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        assert b"is watched" in process.stdout.readline()
        process.stdout.close()
        home.land("a", b"content")
        until(lambda: home.arrived() == {b"a": b"content"})
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_notification_socket_that_is_gone_is_no_reason_to_stop(home: Home, serve: Serve) -> None:
    service = serve(home.config())  # whose socket was closed as soon as it was ready
    home.land("a", b"content")
    service.until_done(1)
    until(lambda: service.states()[State.DONE] == 1)
    service.stop()
    is_calm(service.log)
