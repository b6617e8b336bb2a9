"""M3: what the model server would not take, or would take for something else, is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quaymaster.config import Mirror
from quaymaster.mirror import ovms_config
from quaymaster.mirror.plan import plan
from quaymaster.mirror.serving import Serving
from quaymaster.model import Stored
from quaymaster.store import MirrorUnit


def refusals(*keys: str, ovms_config: str | None = "/etc/config.json") -> dict[str, str]:
    mirror = Mirror(name="models", source="store", path="/models", ovms_config=ovms_config)
    serving = Serving(mirror, lambda: False)
    found = plan([Stored(key, 1, "e") for key in keys], "", mirror.layout, lambda _: True)
    said = {unit.decode(): serving.refusal(wanted, found) for unit, wanted in found.units.items()}
    return {unit: why for unit, why in said.items() if why}


def test_versions_and_files_beside_them_are_taken() -> None:
    assert refusals("m/1/x", "m/9223372036854775807/x", "m/labels.txt", "team/n/2/x") == {}


@pytest.mark.parametrize(
    ("keys", "unit", "why"),
    [
        (["m/latest/x"], "m/latest", "takes numbers as versions"),
        (["m/1/x", "m/9223372036854775808/x"], "m/9223372036854775808", "no version above"),
        (["m/1/x", "m/2_old/x"], "m/2_old", "m/2_old for a version"),
        (["m/1/x", "m/2.part/deep/x"], "m/2.part", "m/2.part for a version"),
        (["a:b/1/x"], "a:b/1", "has no name for"),
        (["a/b/1/x", "a-b/1/x"], "a/b/1", "would call it a-b, which is another model"),
    ],
)
def test_what_it_would_not_take_is_refused(keys: list[str], unit: str, why: str) -> None:
    found = refusals(*keys)
    assert list(found) == [unit]
    assert why in found[unit]
    assert refusals(*keys, ovms_config=None) == {}


def test_a_model_that_cannot_be_listed_keeps_none_of_the_others_out(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    taken = {"config": {"name": "a", "base_path": "/elsewhere"}}
    path.write_text(json.dumps({"model_config_list": [taken]}))
    serving = Serving(Mirror(name="models", source="store", path="/models", ovms_config=str(path)), lambda: False)
    units = {unit: MirrorUnit(unit, "released", objects={unit + b"/x": 1}, checked=True) for unit in (b"a/1", b"b/1")}
    with pytest.raises(ovms_config.ConfigRefused, match=r"config\.json: .*has a model a with the base_path"):
        serving.keep_listed(units)
    names = [entry["config"]["name"] for entry in json.loads(path.read_text())["model_config_list"]]
    assert names == ["a", "b"]
