"""Sizes and durations are read strictly, and printed so that they read back the same."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quaymaster.config.units import (
    LARGEST_SIZE,
    LONGEST_DURATION,
    duration,
    shown_duration,
    shown_size,
    size,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0),
        (1234, 1234),
        ("0B", 0),
        ("10MB", 10_000_000),
        ("512MiB", 512 << 20),
        ("512 MiB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
        ("1kB", 1000),
    ],
)
def test_sizes(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0.0),
        (2.5, 2.5),
        ("500ms", 0.5),
        ("90s", 90.0),
        ("15min", 900.0),
        ("1h", 3600.0),
        ("2d", 172800.0),
        ("1.5 h", 5400.0),
    ],
)
def test_durations(text, expected):
    assert duration(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MiB",
        "5",
        "-1MiB",
        "5 m",
        "5mib",
        "1e3B",
        "0x10B",
        "1.0001B",
        "٥MiB",
        "9" * 20 + "TiB",
        " 5MiB",
        1.5,
        True,
        None,
        [],
        -1,
    ],
)
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match=r"write|must be|the units are"):
        size(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "5",
        "-1s",
        "5m",
        "5M",
        "5 months",
        "1e3s",
        "nan",
        "4000d",
        float("inf"),
        float("nan"),
        True,
        None,
        [],
        -0.1,
    ],
)
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match=r"write|must be|the units are"):
        duration(text)


def test_the_right_spelling_is_offered():
    with pytest.raises(ValueError, match='write "10MiB"'):
        size("10mib")
    with pytest.raises(ValueError, match='write "5min"'):
        duration("5MIN")


@given(st.integers(0, LARGEST_SIZE))
def test_sizes_survive_printing(value):
    assert size(shown_size(value)) == value


@given(st.integers(0, 8000), st.sampled_from(["B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"]))
def test_a_size_is_printed_at_most_as_long_as_it_was_written(number, unit):
    written = f"{number}{unit}"
    assert len(shown_size(size(written))) <= len(written)


@given(st.floats(0, LONGEST_DURATION))
def test_durations_survive_printing(value):
    assert duration(shown_duration(value)) == value


@given(st.text())
def test_any_text_is_a_size_or_a_value_error(text):
    for read in (size, duration):
        with contextlib.suppress(ValueError):
            assert read(text) >= 0
