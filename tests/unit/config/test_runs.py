"""Which directories are units, what says that one is whole, and the profiles of instruments."""

from __future__ import annotations

import tomllib

import pytest

from quaymaster.config import profiles
from quaymaster.config.runs import Layout, Whole

BASE = '[destination.out]\ntype = "directory"\npath = "/out"\n[watch.in]\npath = "/in"\ndestinations = ["out"]\n'


@pytest.mark.parametrize(
    ("layout", "path", "unit"),
    [
        (Layout(1), b"run/a", b"run"),
        (Layout(1), b"run/sub/a", b"run"),
        (Layout(1), b"a", None),
        (Layout(2), b"g/run/a", b"g/run"),
        (Layout(2), b"g/a", None),
        (Layout.of(1, "*/run_*"), b"g/run_1/a/b", b"g/run_1"),
        (Layout.of(1, "*/run_*"), b"g/other/a", None),
        (Layout.of(1, "*/run_*"), b"run_1/a", None),
        (Layout.of(1, "r[0-9]"), b"r\xff/a", None),
    ],
)
def test_a_file_is_in_one_unit_or_in_none(layout: Layout, path: bytes, unit: bytes | None) -> None:
    assert layout.unit_of(path) == unit


def test_a_unit_is_whole_with_all_of_these_and_one_of_those() -> None:
    whole = Whole(("a", "b"), ("c", "d"), None)
    assert whole.missing([]) == "a, b, c or d"
    assert whole.missing(["a", "b"]) == "c or d"
    assert whole.missing(["a", "b", "d"]) == ""


@pytest.mark.parametrize("name", profiles.names())
def test_each_profile_says_where_its_rules_come_from(site, name: str) -> None:
    config = site.load(BASE + f'profile = "{name}"\n')
    watch = config.watches["in"]
    assert watch.unit == "directory"
    assert watch.whole.patterns
    assert config.where("watch", "in", "unit_complete") == f"profile {name}"
    text = (profiles.importlib.resources.files(profiles) / f"{name}.toml").read_text()
    for paragraph in text.split("\n\n")[1:]:  # each rule has its source just above it
        assert "https://" in paragraph
        assert tomllib.loads(paragraph)


TREES = {
    "illumina": (
        ["240722_A00291_0576_AHVHL5DMXY/RunInfo.xml", "240722_A00291_0576_AHVHL5DMXY/RTAComplete.txt"],
        "240722_A00291_0576_AHVHL5DMXY/CopyComplete.txt",
        b"240722_A00291_0576_AHVHL5DMXY",
    ),
    "ont": (
        ["grp/smp/20250603_1201_3E_PAA12345_e05460c6/pod5/PAA12345_fd97ea7b_0f1d7e9e_57.pod5"],
        "grp/smp/20250603_1201_3E_PAA12345_e05460c6/final_summary_PAA12345_e05460c6_0f1d7e9e.txt",
        b"grp/smp/20250603_1201_3E_PAA12345_e05460c6",
    ),
    "pacbio": (
        ["r84001_20220722_134701/1_A01/hifi_reads/m84001_220722_134701_s1.hifi_reads.bc2001.bam"],
        "r84001_20220722_134701/1_A01/metadata/m84001_220722_134701_s1.transferdone",
        b"r84001_20220722_134701/1_A01",
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_a_profile_knows_the_vendors_names(site, name: str) -> None:
    files, marker, unit = TREES[name]
    watch = site.load(BASE + f'profile = "{name}"\n').watches["in"]
    assert {watch.unit_of(path.encode()) for path in (*files, marker)} == {unit}
    from quaymaster.config.runs import path_matches

    below = marker.encode().removeprefix(unit + b"/")
    assert any(path_matches(below, pattern) for pattern in watch.whole.patterns)
    assert not watch.compresses(b"m84001_220722_134701_s1.hifi_reads.bc2001.bam")
    assert watch.compresses(b"RunInfo.xml")


def test_a_site_has_its_own_profile_and_a_watch_the_last_word(site) -> None:
    own = '[profile.lab]\nunit = "directory"\nunit_idle = "5min"\nsettle = "7s"\n'
    watch = site.load(BASE + 'profile = "lab"\nsettle = "3s"\n' + own).watches["in"]
    assert (watch.unit_idle, watch.settle) == (300.0, 3.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('profile = "ilumina"', 'there is no profile "ilumina"; did you mean illumina?'),
        ('unit = "directory"', "nothing says when one is whole"),
        ('unit = "directory"\nunit_complete = ["a/../b"]', "level by level"),
        ('unit = "directory"\nunit_pattern = "**/x"\nunit_idle = "1s"', "**"),
        ('unit = "directory"\nunit_idle = "1s"\nkey = "{name}"', "same manifest"),
        ("unit_depth = 0", "too small"),
        ('[profile.x]\npath = "/y"', "belongs to one watch"),
        ('[profile.x]\nunti = "directory"', "did you mean unit?"),
    ],
)
def test_what_is_wrong_is_said(site, text: str, said: str) -> None:
    from quaymaster.errors import ConfigError

    with pytest.raises(ConfigError) as error:
        site.load(BASE + text + "\n")
    assert said in str(error.value)
