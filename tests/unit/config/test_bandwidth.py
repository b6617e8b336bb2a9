"""P12: a bandwidth by the time of day, and what can be wrong with one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quaymaster.config.bandwidth import DAY, Bandwidth, Window, clock, parse
from quaymaster.config.units import MIB
from quaymaster.errors import ConfigError

BOTH = (
    '[destination.out]\ntype = "directory"\npath = "/data/out"\n[watch.in]\npath = "/data/in"\ndestinations = ["out"]\n'
)


def at(limit: Bandwidth, text: str) -> tuple[int | None, str | None]:
    hours, _, minutes = text.partition(":")
    rate, until = limit.at(int(hours) * 60 + int(minutes))
    return rate, None if until is None else clock(until)


def test_one_rate_for_ever_or_none(site) -> None:
    assert site.load(BOTH).limits.bandwidth == Bandwidth()
    config = site.load('[limits]\nbandwidth = "200MiB/s"\n' + BOTH)
    assert at(config.limits.bandwidth, "12:00") == (200 * MIB, None)
    assert config.destinations["out"].bandwidth == Bandwidth()


def test_windows_of_the_day(site) -> None:
    limit = site.load(
        '[limits]\nbandwidth = { "08:00-18:00" = "50MiB/s", "18:00-20:30" = "10MiB/s", default = "none" }\n' + BOTH
    ).limits.bandwidth
    assert at(limit, "07:59") == (None, "08:00")
    assert at(limit, "08:00") == (50 * MIB, "18:00")
    assert at(limit, "18:00") == (10 * MIB, "20:30")
    assert at(limit, "20:30") == (None, "08:00")


def test_a_window_over_midnight() -> None:
    limit = parse({"22:00-06:00": "none", "default": "5MB/s"})
    assert [at(limit, text) for text in ("21:59", "22:00", "00:00", "05:59", "06:00")] == [
        (5_000_000, "22:00"),
        (None, "06:00"),
        (None, "06:00"),
        (None, "06:00"),
        (5_000_000, "22:00"),
    ]


def test_neighbours_with_the_same_rate_are_one() -> None:
    limit = parse({"00:00-12:00": "5MB/s", "12:00-24:00": "5MB/s"})
    assert at(limit, "03:00") == (5_000_000, None)


def test_of_a_destination_and_back_through_config(site, tmp_path) -> None:
    from quaymaster.config import to_toml

    own = '[destination.out.bandwidth]\ndefault = "1MiB/s"\n"22:00-06:00" = "none"\n'
    config = site.load('[limits]\nbandwidth = "3MiB/s"\n' + BOTH + own)
    assert config.destinations["out"].bandwidth == Bandwidth(MIB, (Window(22 * 60, 6 * 60, None),))
    text = to_toml(config)
    assert 'bandwidth = { "22:00-06:00" = "none", default = "1MiB/s" }' in text
    assert site.load(text).digest == config.digest


MISTAKES = {
    "overlap": ('"08:00-18:00" = "1MiB/s"\n"17:00-19:00" = "2MiB/s" #!', 'overlaps "08:00-18:00"'),
    "overlap over midnight": ('"22:00-06:00" = "1MiB/s"\n"05:00-07:00" = "2MiB/s" #!', 'overlaps "22:00-06:00"'),
    "no unit of time": ('"08:00-18:00" = "50MiB" #!', 'write "none", "200MiB/s"'),
    "a number": ("default = 5 #!", 'write "none", "200MiB/s"'),
    "not a time": ('"8-18" = "50MiB/s" #!', 'write it like "08:00-18:00"'),
    "no such hour": ('"08:00-25:00" = "50MiB/s" #!', 'write it like "08:00-18:00"'),
    "empty": ('"08:00-08:00" = "50MiB/s" #!', 'write "00:00-24:00"'),
    "nothing at all": ('default = "0B/s" #!', 'write at least "1KiB/s"'),
    "unknown unit": ('default = "5mib/s" #!', 'write "5MiB"'),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_has_its_line(site, name: str) -> None:
    table, words = MISTAKES[name]
    text = f"[limits.bandwidth]\n{table}\n" + BOTH
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "#!" in row)
    with pytest.raises(ConfigError) as raised:
        site.load(text)
    (problem,) = raised.value.problems
    assert f":{line}: [limits] bandwidth." in problem
    assert words in problem


def test_a_rate_that_is_no_table_is_named_too(site) -> None:
    with pytest.raises(ConfigError, match=r"\[limits\] bandwidth: is not a bandwidth; write"):
        site.load('[limits]\nbandwidth = "fast"\n' + BOTH)


@given(st.lists(st.integers(0, DAY - 1), min_size=2, max_size=6, unique=True), st.integers(0, DAY - 1))
def test_the_time_that_is_told_is_when_it_changes(edges: list[int], minute: int) -> None:
    pairs = list(zip(sorted(edges), sorted(edges)[1:], strict=False))[::2]
    limit = parse({f"{clock(a)}-{clock(b)}": f"{i + 1}MiB/s" for i, (a, b) in enumerate(pairs)})
    rate, until = limit.at(minute)
    assert until is not None
    assert limit.at(until)[0] != rate
    between = [(minute + step) % DAY for step in range((until - minute) % DAY)]
    assert all(limit.at(each)[0] == rate for each in between)
