"""W5, O2: how many units there are, and how long the oldest has been open, for status and Prometheus."""

from __future__ import annotations

from pathlib import Path

from quaymaster.config import load
from quaymaster.service.api.metrics import exposition
from quaymaster.service.view.snapshot import snapshot
from quaymaster.store import Store


def test_status_and_metrics_count_the_units_of_each_watch(tmp_path: Path) -> None:
    for name in ("runs", "plain", "archive"):
        (tmp_path / name).mkdir()
    (tmp_path / "q.toml").write_text(
        f'[service]\nstate_dir = "{tmp_path}/state"\nstaging_dir = "{tmp_path}/staging"\n'
        f'[destination.archive]\ntype = "directory"\npath = "{tmp_path}/archive"\n'
        f'[watch.plain]\npath = "{tmp_path}/plain"\ndestinations = ["archive"]\n'
        f'[watch.runs]\npath = "{tmp_path}/runs"\ndestinations = ["archive"]\n'
        'unit = "directory"\nunit_idle = "1min"\nunit_open_max = "1h"\n'
    )
    config = load(str(tmp_path / "q.toml"), {})
    now = [1000.0]
    store = Store(str(tmp_path / "state"), create=True, clock=lambda: now[0])
    text = exposition(snapshot(config, store, 1, 1000.0), [])
    assert 'quaymaster_oldest_open_unit_age_seconds{watch="runs"} 0.0' in text.splitlines()
    for path in (b"a", b"b", b"c"):
        store.units.opened("runs", path)
        now[0] += 1000
    store.units.abandon(store.units.find("runs")[0], "me")
    found = snapshot(config, store, 1, 6000.0)
    store.close()
    plain, runs = found["watches"]
    assert plain["units"] is None
    assert runs["units"] | {"open": 2, "abandoned": 1, "overdue": 1, "oldest_open": 2000.0} == runs["units"]
    lines = exposition(found, []).splitlines()
    for line in ('units{watch="runs",state="open"} 2', 'units{watch="runs",state="complete"} 0',
                 'units{watch="runs",state="abandoned"} 1', 'units_overdue{watch="runs"} 1',
                 'oldest_open_unit_age_seconds{watch="runs"} 4000.0'):  # fmt: skip
        assert f"quaymaster_{line}" in lines
    assert not [line for line in lines if 'units{watch="plain"' in line]
