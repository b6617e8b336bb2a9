"""What the service says of its destinations: failing with the reason, and told when it is over."""

from __future__ import annotations

from pathlib import Path

import pytest

from quaymaster.config import load
from quaymaster.model import Event, Level
from quaymaster.service import daemon
from quaymaster.service.daemon import Daemon

CONFIG = """
[service]
state_dir = "{0}/state"
staging_dir = "{0}/staging"
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
        patch.setattr(daemon.time, "time", lambda: self.now)
        file = folder / "quaymaster.toml"
        file.write_text(CONFIG.format(folder))
        config = load(str(file), {})
        self.daemon = Daemon(config, lambda: config, self.told.append)
        self.daemon._destinations = {"archive": {"state": "unused", "error": "", "since": self.now}}

    def happens(self, kind: str, code: str = "") -> str:
        self.daemon._emit(Event(kind, "the reason", Level.DEBUG, destination="archive", code=code))
        return str(self.daemon._destinations["archive"]["state"])


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_that_it_works_again_is_told_with_how_long_it_did_not(scene: Scene) -> None:
    assert scene.happens("delivery-failed", "unreachable") == "failing"
    scene.now += 60
    assert scene.happens("delivery-failed", "unreachable") == "failing"
    scene.now += 30
    assert scene.happens("delivered") == "ok"
    (back,) = scene.told
    assert (back.kind, back.message) == ("destination-back", "destination archive works again after 90 s")
    assert back.destination == "archive"


def test_a_short_failure_is_not_worth_a_line(scene: Scene) -> None:
    scene.happens("delivery-failed", "out-of-space")
    scene.now += 3
    scene.happens("delivered")
    assert scene.told == []


@pytest.mark.parametrize("code", ["conflict", "name-refused"])
def test_what_is_wrong_with_one_file_says_nothing_of_the_destination(scene: Scene, code: str) -> None:
    assert scene.happens("delivery-failed", code) == "unused"
    assert scene.happens("delivered") == "ok"
    assert scene.happens("delivery-failed", code) == "ok"
