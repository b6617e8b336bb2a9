"""A running Intake with a queue in memory, for tests on real directories."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from quaymaster.config import Watch
from quaymaster.intake.intake import Intake, WatchStatus
from quaymaster.intake.observe import ignore_lease_breaks
from quaymaster.model import Event, FileVersion, Identity


@pytest.fixture(autouse=True, scope="session")
def _lease_breaks_are_ignored() -> None:
    ignore_lease_breaks()


@pytest.fixture(autouse=True)
def _mounts_of_this_machine_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the mount table makes a watch scan everything, which would hide what a test is about."""
    monkeypatch.setattr("quaymaster.intake.intake.MOUNTINFO", "/proc/self/status")


class Running:
    """One watch that runs, and what it did. ``store`` may be made to fail by tests."""

    def __init__(self, watch: Watch, **clocks: Callable[[], float]) -> None:
        self.watch = watch
        self.lock = threading.Condition()
        self.queued: dict[FileVersion, float] = {}
        self.events: list[Event] = []
        self.statuses: list[WatchStatus] = []
        self.before_enqueue: Callable[[], None] = lambda: None
        self.before_known: Callable[[], None] = lambda: None
        self.intake = Intake(
            watch, known=self.known, enqueue=self.enqueue, emit=self.emit, report=self.statuses.append, **clocks
        )

    def known(self, watch: str, versions: Sequence[tuple[bytes, Identity]]) -> list[bool]:
        self.before_known()
        assert watch == self.watch.name
        return [FileVersion(watch, path, identity) in self.queued for path, identity in versions]

    def enqueue(self, versions: list[FileVersion]) -> int:
        self.before_enqueue()
        now = time.monotonic()
        with self.lock:
            new = [version for version in versions if version not in self.queued]
            self.queued.update(dict.fromkeys(new, now))
            self.lock.notify_all()
        return len(new)

    def emit(self, event: Event) -> None:
        with self.lock:
            self.events.append(event)
            self.lock.notify_all()

    def paths(self) -> set[bytes]:
        return {version.path for version in self.queued}

    def wait(self, condition: Callable[[], object], what: str = "", timeout: float = 20.0) -> None:
        end = time.monotonic() + timeout
        with self.lock:
            while not condition():
                left = end - time.monotonic()
                assert left > 0, f"{what or condition}: {self.intake.status()} {self.events[-5:]} {len(self.queued)}"
                self.lock.wait(min(left, 0.02))

    def wait_for(self, *paths: bytes, timeout: float = 20.0) -> None:
        self.wait(lambda: set(paths) <= self.paths(), f"{paths} queued", timeout)

    def wait_event(self, kind: str, timeout: float = 20.0) -> Event:
        self.wait(lambda: self.kinds(kind), f"event {kind}", timeout)
        return self.kinds(kind)[0]

    def kinds(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    def wait_watching(self) -> None:
        self.wait(lambda: self.intake.status().scans > 0, "first scan")

    def queued_at(self, path: bytes) -> float:
        return max(at for version, at in self.queued.items() if version.path == path)


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a watch on ``path`` (a new directory ``tmp_path/in`` by default) with short waits."""
    running: list[Running] = []

    def start(path: str | os.PathLike[str] | None = None, *, run: bool = True, clocks: dict = {}, **settings: object):
        if path is None:
            path = tmp_path / "in"
            path.mkdir(exist_ok=True)
        fields: dict[str, object] = {
            "name": "w",
            "path": str(path),
            "destinations": ("d",),
            "settle": 0.3,
            "settle_closed": 0.05,
            "poll_interval": 0.2,
            **settings,
        }
        one = Running(Watch.model_construct(**{**_defaults(), **fields}), **clocks)
        running.append(one)
        if run:
            one.intake.start()
            assert one.intake.first_scan_started.wait(10)
        return one

    yield start
    for one in running:
        assert one.intake.stop(10), "the watch's thread ends when it is told to"
        unexpected = [event for event in one.events if "could not be attended" in event.message]
        assert not unexpected


def _defaults() -> dict[str, object]:
    # Built without validation, for intervals shorter than an operator may ask for.
    return Watch(name="w", path="/x", destinations=("d",)).model_dump()
