"""W5: however many units wait, looking at them takes a bounded part of the time, and none waits for a larger one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quaymaster.config import load
from quaymaster.intake.units import Eyes
from quaymaster.service.units import Keeper
from quaymaster.source import Pulse
from quaymaster.store import Store

LONG = 200.0


class Scene:
    """A keeper by a clock of its own; each look at a unit takes as long as ``cost`` says (seconds)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.looks: Counter[bytes] = Counter()
        self.cost: Callable[[bytes], float] = lambda unit: 0.01
        for name in ("landing", "archive"):
            (folder / name).mkdir()
        self.landing = folder / "landing"
        (folder / "q.toml").write_text(
            f'[service]\nstate_dir = "{folder}/state"\nstaging_dir = "{folder}/staging"\n'
            f'[destination.archive]\ntype = "directory"\npath = "{folder}/archive"\n'
            f'[watch.landing]\npath = "{folder}/landing"\ndestinations = ["archive"]\n'
            'unit = "directory"\nunit_complete = ["Done.txt"]\n'
        )
        self.store = Store(str(folder / "state"), create=True)
        fitting = Eyes.fitting

        def slow(eyes: Eyes, unit: bytes, *more: Any) -> list[str]:
            self.looks[unit] += 1
            self.now += self.cost(unit)
            return fitting(eyes, unit, *more)

        monkeypatch.setattr(Eyes, "fitting", slow)
        intake: Any = SimpleNamespace(pulse=Pulse(), here=lambda: True, confirm=lambda: None)
        self.keeper = Keeper(
            load(str(folder / "q.toml"), {}).watches["landing"], self.store, intake, lambda watch, found: [], {},
            staging_dir=str(folder / "staging"), host="lab1", emit=lambda event: None, wake=lambda: None,
            monotonic=lambda: self.now,
        )  # fmt: skip

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.keeper.tend()
            self.now += 0.5


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(tmp_path, monkeypatch)
    yield made
    made.store.close()


def test_many_that_wait_take_no_larger_part_of_the_time_than_one(scene: Scene) -> None:
    for number in range(100):
        (scene.landing / f"run{number}").mkdir()
    scene.run(LONG)
    assert len(scene.looks) == 100
    assert min(scene.looks.values()) > 10
    assert sum(scene.looks.values()) * 0.01 < LONG / 4


def test_a_large_one_keeps_the_small_ones_waiting_only_while_it_is_looked_at(scene: Scene) -> None:
    scene.cost = lambda unit: 10.0 if unit == b"large" else 0.01
    for name in ("large", *(f"run{number}" for number in range(20))):
        (scene.landing / name).mkdir()
    scene.run(LONG)
    assert 2 <= scene.looks[b"large"] <= 7
    assert min(scene.looks.values()) == scene.looks[b"large"]
    assert all(number > 30 for unit, number in scene.looks.items() if unit != b"large")


def test_a_unit_that_is_gone_is_closed_also_when_a_file_has_its_name(scene: Scene) -> None:
    (scene.landing / "run").mkdir()
    scene.run(5)
    assert scene.store.units.find()[0].why == "Done.txt is missing"
    (scene.landing / "run").rmdir()
    (scene.landing / "run").write_text("a file now")
    scene.run(5)
    assert scene.store.units.find()[0].state == "abandoned", "nothing of it was delivered"
