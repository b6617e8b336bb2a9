"""The one place that formats: what people read is right, aligned and harmless."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quaymaster.cli import show


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536, "1.50 KiB"), (10 * 1024, "10.0 KiB"),
        (100 * 1024, "100 KiB"), (1023 * 1024, "1.00 MiB"), (1024**2 - 1, "1.00 MiB"), (5 * 1024**4, "5.00 TiB"),
        (2**63 - 1, "8.00 EiB"), (700 * 1024**3, "700 GiB"),
    ],
)  # fmt: skip
def test_sizes_have_three_digits(number: int, text: str) -> None:
    assert show.size(number) == text


@given(st.integers(1024, 2**63 - 1))
def test_sizes_are_right_within_half_a_percent(number: int) -> None:
    value, unit = show.size(number).split(" ")
    power = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].index(unit)
    assert math.isclose(float(value) * 1024**power, number, rel_tol=0.006)
    assert len(value) <= 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"), (0.2, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (12000, "3 h 20 min"),
        (86400, "1 d"), (5 * 86400 + 7300, "5 d 2 h"),
    ],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


def test_times_are_local_iso_8601_with_the_offset(monkeypatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert show.when(1_700_000_000.9) == "2023-11-15T03:43:20+05:30"
        assert show.when_ns(1_700_000_000_000_000_007) == "2023-11-15T03:43:20.000000007+05:30"
        assert show.when_ns(-1) == "1970-01-01T05:29:59.999999999+05:30"
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_time_that_a_file_may_carry_can_be_shown(nanoseconds: int) -> None:
    assert show.when_ns(nanoseconds)
    assert show.when(nanoseconds)


@given(st.text())
def test_plain_text_is_printable_and_on_one_line(text: str) -> None:
    assert show.plain(text).isprintable()
    if text.isprintable():
        assert show.plain(text) == text


@given(st.text(st.characters(codec="utf-8")), st.integers(10, 60))
def test_cut_text_fits_and_keeps_its_end_of_interest(text: str, columns: int) -> None:
    text = show.plain(text)
    for cut in (show.cut(text, columns), show.cut_path(text, columns)):
        assert show.width(cut) <= columns
        if show.width(text) <= columns:
            assert cut == text
    if show.width(text) > columns:
        assert show.cut_path(text, columns).startswith("...")
        assert text.startswith(show.cut(text, columns)[:-3])


def test_a_table_aligns_wide_characters_and_cuts_its_last_column() -> None:
    lines = show.table(("A", ">N", "FILE"), [("日本", "1", "x" * 50), ("ab", "1,000", "y")], 40)
    assert lines == [
        "A         N  FILE",
        "日本      1  ..." + "x" * 24,
        "ab    1,000  y",
    ]
    assert all(show.width(line) <= 40 for line in lines)


def test_facts_leave_out_what_has_no_value() -> None:
    assert show.facts([("a", "1"), ("long", ""), ("bcd", "2")]) == ["  a    1", "  bcd  2"]


def test_wrapped_text_has_at_most_so_many_lines() -> None:
    lines = show.wrapped("word " * 60, 40, indent=2, most=2)
    assert len(lines) == 2
    assert all(len(line) <= 40 and line.startswith("  word") for line in lines)
    assert lines[1].endswith("...")


@given(st.recursive(st.none() | st.text() | st.integers(), st.lists))
def test_json_is_ascii_and_means_the_same(value: object) -> None:
    text = show.as_json(value)
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == value
