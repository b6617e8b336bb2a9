"""M5: how a mirror stands, what is wrong with one, and whose names they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quaymaster.config import load
from quaymaster.errors import StoreError, Unreachable
from quaymaster.mirror.standing import Standing, Voice
from quaymaster.model import FileVersion, Identity
from quaymaster.service.api.metrics import exposition
from quaymaster.service.doctor import Doctor
from quaymaster.service.view.mirrors import wrong_with
from quaymaster.service.view.snapshot import snapshot
from quaymaster.store import Store

GOOD: dict[str, Any] = {
    "name": "models", "state": "ok", "reason": "", "last_good": 1000.0, "server": "", "quarantined": {}, "paused": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"state": "outage", "reason": "no answer"}, "mirror models fails: no answer"),
        ({"last_good": 500.0}, "has not listed its bucket for 510 s"),
        ({"last_good": 500.0, "paused": {"since": 1.0, "by": "me"}}, ""),
        ({"server": "config.json is broken"}, "config.json is broken"),
        ({"quarantined": {"m/2": "not served"}}, "versions that were not taken: m/2"),
    ],
)
def test_what_is_wrong_with_a_mirror_is_told(change: dict[str, Any], said: str) -> None:
    found = wrong_with({**GOOD, **change}, 1010.0, 30.0)
    assert "".join(found) == "" if not said else said in found[0]


def test_what_fails_is_told_once_and_again_after_it_was_mended() -> None:
    told: list[str] = []
    voice = Voice("models", Standing(), lambda event: told.append(event.message), lambda: 0.0)
    for _ in range(2):
        voice.failing("server", Unreachable("no answer"))
    assert len(told) == 1
    voice.mended("server")
    voice.failing("server", Unreachable("no answer"))
    assert len(told) == 2


def config_of(tmp_path: Path) -> Any:
    (tmp_path / "models").mkdir()
    (tmp_path / "q.toml").write_text(
        f'[service]\nstate_dir = "{tmp_path}/state"\nstaging_dir = "{tmp_path}/staging"\n'
        '[destination.store]\ntype = "s3"\nbucket = "models"\n'
        f'[mirror.models]\nsource = "store"\npath = "{tmp_path}/models"\ndisk_free = "1MiB"\n'
    )
    return load(str(tmp_path / "q.toml"), {})


def test_status_and_metrics_show_each_mirror(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    store = Store(str(tmp_path / "state"), create=True)
    store.declare(config.mirrors, config.watches)
    store.report("mirror:models", {"state": "outage", "reason": "gone", "released": 3, "last_good": 99.5})
    found = snapshot(config, store, 1, 100.0)
    store.close()
    (mirror,) = found["mirrors"]
    assert (mirror["state"], mirror["reason"], mirror["released"]) == ("outage", "gone", 3)
    assert found["watches"] == []
    text = exposition(found, ["gone"])
    for line in ('mirror_up{mirror="models"} 0', 'mirror_released_units{mirror="models"} 3',
                 'mirror_last_good_time_seconds{mirror="models"} 99.5'):  # fmt: skip
        assert f"quaymaster_{line}\n" in text


def test_the_doctor_looks_at_the_directory_and_writes_nothing_to_the_bucket(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    (finding,) = Doctor(config)._mirrors()
    assert (finding.state, finding.check) == ("ok", "mirror models")
    assert config.only_read == {"store"}
    (tmp_path / "models").rmdir()
    (finding,) = Doctor(config)._mirrors()
    assert finding.state == "failed"
    assert finding.fix


def test_a_name_that_was_a_watch_does_not_become_a_mirror_with_its_jobs(tmp_path: Path) -> None:
    store = Store(str(tmp_path), create=True)
    store.enqueue([FileVersion("old", b"a", Identity(1, 2, 3))])
    with pytest.raises(StoreError, match="old was the name of a watch"):
        store.declare(["old"], [])
    store.declare(["models"], ["old"])
    assert store.mirrors() == {"models"}
    store.enqueue([FileVersion("models", b"a", Identity(1, 2, 3))])
    with pytest.raises(StoreError, match="models was the name of a mirror"):
        store.declare([], ["models"])
    store.close()
