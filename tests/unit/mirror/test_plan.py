"""M2, X2: what a listing means, whatever the keys are."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from quaymaster.mirror.plan import Plan, plan, tag_of
from quaymaster.model import Stored


def planned(*keys: str, layout: str = "name/version", prefix: str = "") -> Plan:
    return plan([Stored(prefix + key, 5, "e") for key in keys], prefix, layout, lambda _: True)


def units(found: Plan) -> dict[str, list[str]]:
    return {os.fsdecode(path): sorted(map(os.fsdecode, unit.objects)) for path, unit in found.units.items()}


def test_a_version_is_what_is_below_a_number_and_other_files_go_by_themselves() -> None:
    found = planned(
        "m/1/a",
        "m/1/sub/2/b",
        "m/10/a",
        "team/m/2/a",
        "m/config.json",
        "top",
        "plain/latest/x",
        "m/labels/x",
        prefix="p/",
    )
    assert units(found) == {
        "m/1": ["m/1/a", "m/1/sub/2/b"],
        "m/10": ["m/10/a"],
        "team/m/2": ["team/m/2/a"],
        "m/config.json": ["m/config.json"],
        "top": ["top"],
        "plain/latest": ["plain/latest/x"],
        "m/labels": ["m/labels/x"],
    }
    versions = {os.fsdecode(path): (unit.version, unit.directory) for path, unit in found.units.items()}
    assert versions["team/m/2"] == (2, True)
    assert versions["plain/latest"] == (0, True)
    assert versions["m/config.json"] == (0, False)


def test_numbers_that_are_no_versions_are_none() -> None:
    for name in ("0", "01", "-1", "1.5", "١", "9" * 30):
        found = planned(f"m/{name}/a")
        assert [unit.version for unit in found.units.values()] == [0]
    assert planned("1/a").units[b"1/a"].version == 0  # a version is one of something


def test_a_directory_at_the_top_is_one_if_asked_for() -> None:
    found = planned("m/1/a", "m/2/a", "m/config.pbtxt", "readme", layout="name")
    assert units(found) == {"m": ["m/1/a", "m/2/a", "m/config.pbtxt"], "readme": ["readme"]}


def test_keys_that_are_no_paths_are_refused_and_their_version_with_them() -> None:
    found = planned("m/1/ok", "m/1/../../etc/passwd", "m/2/a//b", "n/1/a", "/abs", "nul%00", "m/3/" + "x" * 256)
    assert {key for key, _ in found.refused} == {
        "m/1/../../etc/passwd", "m/2/a//b", "/abs", "nul%00", "m/3/" + "x" * 256,
    }  # fmt: skip
    assert found.units[b"m/1"].refused
    assert not found.units[b"n/1"].refused


def test_what_is_a_file_and_a_directory_at_once_is_refused() -> None:
    found = planned("m/1", "m/1/a", "n/1/f", "n/1/f/g", "o/x/1/a", "o/x")
    assert {os.fsdecode(path) for path, unit in found.units.items() if unit.refused} >= {"m/1", "n/1", "o/x"}


def test_two_spellings_of_one_name_are_not_two_files() -> None:
    found = planned("m/1/%41", "m/1/A")
    assert len(found.refused) == 1
    assert found.units[b"m/1"].refused


def test_the_fingerprint_follows_the_objects() -> None:
    one = [Stored("m/1/a", 5, "e"), Stored("m/1/b", 6, "f")]
    takes = lambda _: True  # noqa: E731
    same = plan(reversed(one), "", "name/version", takes).units[b"m/1"].fingerprint()
    assert plan(one, "", "name/version", takes).units[b"m/1"].fingerprint() == same
    other = [one[0], Stored("m/1/b", 6, "g")]
    assert plan(other, "", "name/version", takes).units[b"m/1"].fingerprint() != same
    assert tag_of("e", 5) != tag_of("e", 6)
    assert 0 <= tag_of("e", 5) < 1 << 63


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet=st.sampled_from("a1/.%~\\2eF\x00\n\ud800é "), min_size=1, max_size=14), max_size=12))
def test_no_key_ever_leads_out_of_the_directory(keys: list[str]) -> None:
    for layout in ("name/version", "name"):
        found = planned(*keys, layout=layout)
        for path, unit in found.units.items():
            for each in unit.objects:
                parts = each.split(b"/")
                assert b".." not in parts
                assert b"." not in parts
                assert b"" not in parts
                assert b"\0" not in each
                assert not any(part.startswith((b".qm-", b".quaymaster-")) for part in parts)
                assert each == path or each.startswith(path + b"/")
