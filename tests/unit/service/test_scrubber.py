"""I7: the schedule of the service holds over restarts, and what it finds is told with all that it concerns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quaymaster.config import Config, load
from quaymaster.model import Event, Level
from quaymaster.service.scrubber import REPORT, Scrubber
from quaymaster.store import Store

HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "state"), create=True)
    yield store
    store.close()


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Config]:
    def make(verify: str) -> Config:
        for name in ("landing", "archive"):
            (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / "q.toml").write_text(
            f"[service]\nstate_dir = {json.dumps(str(tmp_path / 'state'))}\n[verify]\n{verify}\n"
            f'[destination.archive]\ntype = "directory"\npath = "{tmp_path}/archive"\n'
            f'[watch.landing]\npath = "{tmp_path}/landing"\ndestinations = ["archive"]\n'
        )
        return load(str(tmp_path / "q.toml"), {})

    return make


@pytest.mark.parametrize(
    ("last", "due"),
    [
        (None, 1000 + 300),
        ({"started_at": 500, "complete": True, "unreachable": {}}, 500 + 24 * HOUR),
        ({"started_at": 500, "complete": True, "unreachable": {"archive": "away"}}, 500 + HOUR),
        ({"started_at": 500, "complete": False, "unreachable": {}}, 1000 + 300),
    ],
)
def test_a_restart_does_not_begin_anew(store: Store, config, last: dict | None, due: float) -> None:
    if last:
        store.report(REPORT, last)
    scrubber = Scrubber(config('interval = "1d"'), store, lambda _: None, clock=lambda: 1000.0)
    assert scrubber._due(1000.0) == due


def test_without_an_interval_nothing_runs(store: Store, config) -> None:
    scrubber = Scrubber(config('interval = "none"'), store, lambda _: None)
    scrubber.start()
    assert not scrubber._thread.is_alive()
    scrubber.stop()


def test_an_outage_is_a_warning_and_the_run_is_remembered(store: Store, config, tmp_path: Path) -> None:
    from quaymaster.model import Compression, Digests, FileVersion, Identity, Proof, Stored

    version = FileVersion("landing", b"a", Identity(1, 3, 1))
    store.enqueue([version])
    (job,) = store.claim(1)
    digests = Digests(3, "00" * 32)
    stored = Stored("a", 3, "1:1", checksum="sha256:" + "00" * 32)
    store.deliver(Proof(job.id, version, "archive", digests, digests, Compression.NONE, "", stored, 1.0))
    store.finish(job, "kept")
    told: list[Event] = []
    scrubber = Scrubber(config('interval = "1d"\nlevel = "listing"'), store, told.append)
    (tmp_path / "archive").rename(tmp_path / "away")
    scrubber.run()
    assert (told[0].kind, told[0].level, told[0].destination) == ("verify-incomplete", Level.WARNING, "archive")
    assert store.reports()[REPORT][1]["unreachable"].keys() == {"archive"}
    told.clear()
    (tmp_path / "away").rename(tmp_path / "archive")
    scrubber.run()
    fault = told[0]
    assert (fault.kind, fault.level, fault.job, fault.path) == ("integrity-failure", Level.ERROR, job.id, b"a")
    assert (fault.watch, fault.destination) == ("landing", "archive")
    assert store.reports()[REPORT][1]["missing"] == 1
