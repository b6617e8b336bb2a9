"""S1: a file that hangs the service every time is parked in the end; a hang is told once and ends the signs of life."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quaymaster.config import load
from quaymaster.model import Event, FileVersion, Identity, Level, Stage, State
from quaymaster.pipeline.worker import Running
from quaymaster.service import daemon
from quaymaster.service.daemon import Daemon
from quaymaster.service.watchdog import Watchdog
from quaymaster.store import Filter, Queue, Store

CONFIG = """
[destination.archive]
type = "directory"
path = "{0}/archive"
[watch.landing]
path = "{0}/landing"
destinations = ["archive"]
"""


class Scene:
    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.told: list[Event] = []
        self.said: list[str] = []
        patch.setattr(daemon.time, "monotonic", lambda: self.now)
        patch.setattr(daemon, "notify", lambda *lines: self.said.extend(lines))
        (folder / "quaymaster.toml").write_text(CONFIG.format(folder))
        self.config = load(str(folder / "quaymaster.toml"), {})
        self.store = Store(str(folder / "state"), create=True)
        self.store.enqueue([FileVersion("landing", b"a", Identity(1, 10, 1))])
        self.daemon = Daemon(self.config, lambda: self.config, self.told.append, Watchdog(60.0, lambda _: False))

    def crew(self) -> Any:
        """One that has the job in a stage that stands still from now on."""
        (job,) = self.store.claim(1, (Queue("landing"),))
        running = {job.id: Running(job, self.now, Stage.TRANSFER, moved_at=self.now)}
        return SimpleNamespace(config=self.config, running=running, intakes={})

    def restart(self) -> State:
        self.store.recover()
        self.daemon._strike_hung(self.store)
        (job,) = self.store.jobs(Filter())
        return job.state


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    found = Scene(tmp_path, monkeypatch)
    yield found
    found.store.close()


def test_signs_are_given_until_a_job_stands_still_and_again_when_it_moves(scene: Scene) -> None:
    crew = scene.crew()
    scene.daemon._give_sign(scene.store, crew)
    assert scene.said == ["WATCHDOG=1"]
    scene.now += 31.0
    for _ in range(3):
        scene.now += 16.0
        scene.daemon._give_sign(scene.store, crew)
    assert scene.said == ["WATCHDOG=1"]
    (told,) = scene.told
    assert (told.kind, told.level, told.job) == ("hang", Level.ERROR, 1)
    assert "job 1 (landing/a) in stage transfer has stood still for 47 s" in told.message
    crew.running[1].moved_at = scene.now
    scene.daemon._give_sign(scene.store, crew)
    assert scene.said == ["WATCHDOG=1", "WATCHDOG=1"]
    assert scene.restart() is State.QUEUED, "what moved again does not count"


def test_three_hangs_of_one_file_park_it(scene: Scene) -> None:
    for attempt in (1, 2, 3):
        crew = scene.crew()
        scene.now += 100.0
        scene.daemon._stalled.clear()
        scene.daemon._give_sign(scene.store, crew)
        state = scene.restart()
        (job,) = scene.store.jobs(Filter())
        assert (state, job.strikes) == ((State.PARKED if attempt == 3 else State.WAITING), attempt)
        assert "stood still" in job.error
        if attempt < 3:
            assert scene.restart() is State.WAITING, "one hang counts once"
            scene.store.postpone(job, 0.0)


def test_a_job_that_was_settled_meanwhile_is_left_alone(scene: Scene) -> None:
    crew = scene.crew()
    scene.now += 100.0
    scene.daemon._give_sign(scene.store, crew)
    (job,) = scene.store.jobs(Filter())
    scene.store.finish(job)
    assert scene.restart() is State.DONE
