"""M3, X5: config.json is kept in step, and what others wrote in it stays byte for byte."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quaymaster.mirror.ovms_config import LIST, ConfigRefused, change, model_name, with_model, without_model

OTHERS = """{
    // not allowed in JSON
}"""
WRITTEN = """{
  "custom_loader_config_list": [],
  "model_config_list": [
    { "config": { "name": "own",
                  "base_path": "/own", "nireq": 4,
                  "plugin_config": {"A": "1"} } },
    {"config":{"name":"b","base_path":"gs://b/]}"}}
  ],\t
  "monitoring": {"metrics": {"enable" : true}}
}
"""


def entry(name: str, base: str = "/models/m") -> dict[str, Any]:
    return {"config": {"name": name, "base_path": base}}


def test_a_model_is_put_in_behind_the_others_and_taken_out_again() -> None:
    after = with_model(WRITTEN, "m", "/models/m")
    before, behind = WRITTEN.split('"gs://b/]}"}}')
    assert after.startswith(before + '"gs://b/]}"}},\n')
    assert after.endswith(behind)
    assert json.loads(after)[LIST][2] == entry("m")
    assert with_model(after, "m", "/models/m") == after
    assert without_model(after, "m", "/models/m") == WRITTEN
    assert without_model(WRITTEN, "m", "/models/m") == WRITTEN
    assert without_model(after, "m", "/elsewhere") == after


def test_fields_that_others_added_to_our_entry_stay() -> None:
    ours = WRITTEN.replace('"own"', '"m"').replace('"/own"', '"/models/m"')
    assert with_model(ours, "m", "/models/m") == ours


@pytest.mark.parametrize(
    "text", ["", "{}", '{"model_config_list": []}', '{"a": 1}', '{"model_config_list":[ ] , "x": "[{"}', "\n { } \n"]
)
def test_where_there_is_nothing_yet_it_is_begun(text: str) -> None:
    after = with_model(text, "m", "/models/m")
    found = json.loads(after)
    assert found.pop(LIST) == [entry("m")]
    assert found == {k: v for k, v in (json.loads(text) if text.strip() else {}).items() if k != LIST}
    assert json.loads(without_model(after, "m", "/models/m"))[LIST] == []


@pytest.mark.parametrize(
    "text",
    [OTHERS, "[]", '{"model_config_list": {}}', '{"model_config_list": [', '{"model_config_list": [], "a": 1, "a": 2}',
     "\ufeff{}", "[" * 100_000],
)  # fmt: skip
def test_a_broken_one_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    for edit in (with_model, without_model):
        with pytest.raises(ConfigRefused, match="left alone"):
            change(str(path), lambda text, edit=edit: edit(text, "m", "/models/m"))
    assert path.read_text() == text


def test_a_model_of_somebody_else_with_that_name_is_not_taken_over() -> None:
    with pytest.raises(ConfigRefused, match="not of the mirror"):
        with_model(WRITTEN, "own", "/models/own")
    assert without_model(WRITTEN, "own", "/models/own") == WRITTEN


def test_mode_and_owner_stay_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(WRITTEN)
    path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(path, 1234, 1235)
    before = path.stat()
    assert change(str(path), lambda text: with_model(text, "m", "/models/m"))
    assert not change(str(path), lambda text: with_model(text, "m", "/models/m"))
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino
    assert os.listdir(tmp_path) == ["config.json"]


def test_names_that_the_server_would_not_serve_are_refused() -> None:
    assert model_name(b"team/bert-1.0_x") == "team-bert-1.0_x"
    assert model_name("\u00e9".encode()) == "\u00e9"
    for name in (b"a:b", b"\xff", b"a b", b"a?b", b"a%b", b"a#b", b"a\nb"):
        with pytest.raises(ConfigRefused):
            model_name(name)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_blank = st.text(alphabet=" \t\n\r", max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.text(max_size=5).filter(lambda key: key != LIST), _json, max_size=3),
    st.none() | st.lists(st.builds(lambda n, more: entry(f"o{n}") | more, st.integers(0, 99), st.dictionaries(
        st.text(max_size=3).filter(lambda key: key != "config"), _json, max_size=2)), max_size=4),
    st.sampled_from([None, 0, 2, "\t"]), _blank, st.booleans(), st.booleans(),
)  # fmt: skip
def test_whatever_stands_in_it_only_our_entry_comes_and_goes(
    others: dict[str, Any], models: list[Any] | None, indent: Any, blank: str, first: bool, escape: bool
) -> None:
    whole = {LIST: models, **others} if first else {**others, LIST: models}
    if models is None:
        del whole[LIST]
    text = blank + json.dumps(whole, indent=indent, ensure_ascii=escape) + blank
    after = with_model(text, "m", "/models/m")
    assert json.loads(after) == {**whole, LIST: [*(models or []), entry("m")]}
    back = without_model(after, "m", "/models/m")
    assert json.loads(back) == {**whole, LIST: models or []}
    if models:
        assert back == text


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from('{}[]",: \\u01eE-.tfn\n"model_config_list"'), max_size=60))
def test_no_text_makes_it_fail_in_another_way(text: str) -> None:
    for edit in (with_model, without_model):
        try:
            after = edit(text, "m", "/models/m")
        except ConfigRefused:
            continue
        assert not after.strip() or isinstance(json.loads(after), dict)


MODEL_FIELDS = {
    "name", "base_path", "batch_size", "graph_path", "subconfig", "model_version_policy", "shape", "layout", "nireq",
    "target_device", "allow_cache", "plugin_config", "custom_loader_options",
}  # fmt: skip
TABLES = {
    "model_config_list", "custom_loader_config_list", "pipeline_config_list", "mediapipe_config_list",
    "custom_node_library_config_list", "monitoring",
}  # fmt: skip


@pytest.mark.parametrize("text", ["", "{}", '{"model_config_list": []}', '{"monitoring": {"metrics": {}}}', WRITTEN])
def test_the_server_takes_what_is_written(text: str) -> None:
    """What its schema (src/schema.cpp, MODELS_CONFIG_SCHEMA) asks: the list must be there, nothing unknown beside it;
    each entry has ``config`` alone, with a name, and no field that is not one of a model."""
    two = with_model(with_model(text, "m", "/models/m"), "n", "/models/n")
    for written in (
        two,
        without_model(two, "m", "/models/m"),
        without_model(without_model(two, "n", "/models/n"), "m", "/"),
    ):
        whole = json.loads(written)
        assert isinstance(whole[LIST], list)
        assert whole.keys() <= TABLES
        for each in whole[LIST]:
            assert each.keys() == {"config"}
            assert isinstance(each["config"]["name"], str)
            assert each["config"].keys() <= MODEL_FIELDS
            assert isinstance(each["config"].get("base_path", ""), str)


@pytest.mark.parametrize("table", ["pipeline_config_list", "mediapipe_config_list"])
def test_a_name_that_is_served_already_is_refused(table: str) -> None:
    text = json.dumps({LIST: [], table: [{"name": "m"}]})
    with pytest.raises(ConfigRefused, match=table):
        with_model(text, "m", "/models/m")
    assert json.loads(with_model(text, "n", "/models/n"))[LIST] == [entry("n", "/models/n")]
