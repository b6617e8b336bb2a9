"""S6: each thing that doctor looks at is found when it is broken, and comes with what to do."""

from __future__ import annotations

import email.utils
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from quaymaster.config import Config, load
from quaymaster.config.machine import Machine
from quaymaster.destinations.directory import Directory
from quaymaster.service import doctor
from quaymaster.service.doctor import Doctor, Finding
from quaymaster.service.sandbox import Unit
from quaymaster.store import Store


class Place:
    """A machine in a directory, where all is well until a test breaks something."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("in", "out", "state", "staging", "inotify"):
            (folder / name).mkdir(mode=0o700)
        self.limit(max_user_watches=100_000, max_user_instances=128)
        Store(str(folder / "state"), create=True).close()
        self.destination = f'type = "directory"\npath = "{folder}/out"'
        self.watch = ""
        self.limits = 'staging_free = "1MiB"'

    def limit(self, **limits: int) -> None:
        for name, value in limits.items():
            (self.folder / "inotify" / name).write_text(f"{value}\n")

    def config(self) -> Config:
        (self.folder / "quaymaster.toml").write_text(
            f'[service]\nstate_dir = "{self.folder}/state"\nstaging_dir = "{self.folder}/staging"\n'
            f"[limits]\n{self.limits}\n[destination.archive]\n{self.destination}\n"
            f'[watch.in]\npath = "{self.folder}/in"\ndestinations = ["archive"]\nmode = "inotify"\n{self.watch}\n'
        )
        return load(str(self.folder / "quaymaster.toml"), {}, Machine(8 << 30, 4))

    def findings(self, unit: Unit | None = None) -> list[Finding]:
        return list(Doctor(self.config(), unit=unit, inotify=str(self.folder / "inotify"), patience=2.0).findings())

    def broken(self, unit: Unit | None = None) -> Finding:
        """The one finding that failed; each says what to do."""
        found = [finding for finding in self.findings(unit) if finding.state == "failed"]
        assert len(found) == 1, found
        assert found[0].fix
        return found[0]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)  # this machine's own clock is not the subject
    return Place(tmp_path)


def test_where_all_is_well_nothing_fails(place: Place) -> None:
    found = place.findings()
    assert {finding.state for finding in found} == {"ok"}
    assert {"paths", "watch in", "inotify", "space for state", "queue", "destination archive"} <= {
        f.check for f in found
    }


def test_a_watched_directory_that_is_missing(place: Place) -> None:
    (place.folder / "in").rmdir()
    found = [finding for finding in place.findings() if finding.state == "failed"]
    assert {finding.check for finding in found} == {"paths", "watch in"}
    assert all("/in" in finding.text and finding.fix for finding in found)


def test_files_that_the_user_cannot_read_are_named_with_a_remedy(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.folder / "in/a.txt").touch()
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not os.fsencode(path).endswith(b"a.txt") and allowed(path, mode)
    )
    found = place.broken()
    assert found.check == "watch in"
    assert f"the first is {place.folder}/in/a.txt" in found.text
    assert found.fix.startswith("setfacl -R -m u:")


def test_inotify_where_it_sees_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    real = doctor.filesystem_of
    blind = lambda path: replace(real(path), type="nfs4", network=True, inotify=False)  # noqa: E731
    monkeypatch.setattr(doctor, "filesystem_of", blind)
    found = place.broken()
    assert "(network)" in found.text
    assert found.fix == 'Set mode = "auto" for this watch'


def test_too_few_watches_for_the_directories_there_are(place: Place) -> None:
    for number in range(100):
        (place.folder / f"in/{number}").mkdir()
    place.limit(max_user_watches=110)
    found = place.broken()
    assert found.text.startswith("101 directories to watch; the kernel allows 110 watches")
    assert "fs.inotify.max_user_watches = 65536" in found.fix.splitlines()
    place.limit(max_user_watches=130, max_user_instances=2)
    assert "fs.inotify.max_user_instances = 128" in place.broken().fix.splitlines()


def test_a_staging_disk_without_room(place: Place) -> None:
    place.limits = 'staging_free = "4000TiB"'
    found = place.broken()
    assert found.check == "space for staging"
    assert "staging_dir" in found.fix


def test_a_state_directory_that_others_can_read(place: Place) -> None:
    (place.folder / "state").chmod(0o755)
    assert place.broken().fix == f"chmod 0700 {place.folder}/state"


def test_a_damaged_database(place: Place) -> None:
    path = place.folder / "state/quaymaster.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ledger_path'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    found = place.broken()
    assert found.check == "queue"
    assert "damaged" in found.text
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    assert place.broken().check == "queue"


def test_a_custody_log_that_somebody_edited(place: Place) -> None:
    with closing(Store(str(place.folder / "state"))) as store:
        for _ in range(3):
            store.note("service-started", {"version": "1"})
    with closing(sqlite3.connect(place.folder / "state/quaymaster.db")) as connection:
        connection.executescript("DROP TRIGGER IF EXISTS custody_no_update; DROP TRIGGER IF EXISTS custody_no_delete;")
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE custody SET body = replace(body, '\"1\"', '\"2\"') WHERE seq = 2")
        connection.commit()
    found = place.broken()
    assert "custody log does not hold at entry 2" in found.text


def test_a_queue_that_does_not_exist_yet_is_no_failure(place: Place) -> None:
    for path in (place.folder / "state").iterdir():
        path.unlink()
    assert any("makes it when it starts" in finding.text for finding in place.findings())


def test_directories_that_systemd_makes_need_not_be_there_before_the_first_start(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (place.folder / "state").iterdir():
        path.unlink()
    (place.folder / "state").rmdir()
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.realpath(path) != str(place.folder))
    assert place.broken().text.endswith(f"cannot be created in {place.folder}")
    assert {finding.state for finding in place.findings(Unit("u", made=(f"{place.folder}/state",)))} == {"ok"}


def test_a_destination_that_is_missing(place: Place) -> None:
    (place.folder / "out").rmdir()
    found = [finding for finding in place.findings() if finding.state == "failed"]
    assert "destination archive" in {finding.check for finding in found}
    assert all(finding.fix for finding in found)


def test_a_destination_that_cannot_be_reached(place: Place) -> None:
    place.destination = (
        'type = "s3"\nbucket = "lab"\nendpoint_url = "http://127.0.0.1:9"\nconnect_timeout = "1s"\nread_timeout = "1s"'
    )
    found = place.broken()
    assert found.check == "destination archive"
    assert "127.0.0.1:9" in found.text


def test_a_destination_that_never_answers_holds_nobody_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(Directory, "check", lambda self: [str(released.wait(30))])
    (found,) = Doctor(place.config(), patience=0.01)._destinations()
    released.set()
    assert (found.check, found.state) == ("destination archive", "failed")
    assert "does not answer" in found.text


@pytest.fixture
def server() -> Iterator[Callable[[float], str]]:
    """Starts a server whose clock differs from ours by so many seconds; returns its endpoint."""
    servers = []

    def start(ahead: float) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response_only(403)
                self.send_header("Date", email.utils.formatdate(time.time() + ahead, usegmt=True))
                self.end_headers()

            do_GET = do_PUT = do_HEAD

            def log_message(self, *_: object) -> None:
                pass

        found = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(found)
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{found.server_address[1]}"

    yield start
    for found in servers:
        found.shutdown()
        found.server_close()


def test_a_clock_that_differs_from_the_servers(place: Place, server: Callable[[float], str]) -> None:
    for ahead, state in ((600.0, "failed"), (-600.0, "failed"), (2.0, "ok")):
        place.destination = f'type = "s3"\nbucket = "lab"\nendpoint_url = "{server(ahead)}"'
        (found,) = Doctor(place.config(), patience=2.0)._clocks()
        assert found.state == state, found
        assert ("behind" if ahead > 0 else "ahead of") in found.text


def test_a_clock_that_nobody_sets(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "timedatectl"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(program))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for answer, state in (("no", "warning"), ("yes", "ok")):
        program.write_text(f"#!/bin/sh\necho {answer}\n")
        program.chmod(0o755)
        (found,) = Doctor(place.config())._clock()
        assert found.state == state


def test_secrets_that_others_can_read(place: Place) -> None:
    secret = place.folder / "pair"
    secret.write_text('access_key = "a"\nsecret_key = "b"\n')
    place.destination = f'type = "s3"\nbucket = "lab"\ncredentials = "{secret}"'
    for mode, state in ((0o600, "ok"), (0o644, "failed")):
        secret.chmod(mode)
        (found,) = doctor.secrets(place.config(), None)
        assert found.state == state
    assert found.fix == f"chmod 0600 {secret}"
    secret.unlink()
    (found,) = doctor.secrets(place.config(), None)
    assert found.state == "failed"


def test_secrets_of_hooks_are_looked_at_too(place: Place) -> None:
    secret = place.folder / "signs"
    secret.write_text("0123456789abcdef")
    secret.chmod(0o644)
    place.watch = f'[hook.h]\non = ["parked"]\nurl = "http://127.0.0.1:9/"\nsecret = "{secret}"\n'
    (found,) = doctor.secrets(place.config(), None)
    assert (found.state, found.fix) == ("failed", f"chmod 0600 {secret}")


def test_a_unit_that_does_not_let_the_service_write(place: Place) -> None:
    unit = Unit("quaymaster.service", read_only=True, made=(str(place.folder / "state"), str(place.folder / "staging")))
    (found,) = doctor.sandboxed(place.config(), unit)
    assert found.state == "failed"
    assert found.fix.splitlines()[1:] == ["[Service]", f"ReadWritePaths=-{place.folder}/out"]
    assert list(doctor.sandboxed(place.config(), None)) == [], "without systemd there is nothing to compare with"
