"""Sizes and durations as people write them: "512MiB", "10MB", "90s", "15min", or a plain number (bytes, seconds).

Strict on purpose: a unit is written exactly as the tables below have it, because "5m" may mean minutes or months,
and a wrong settle time ships half a file. Every refusal is a ValueError that names the right spelling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from quaymaster.config.values import quoted

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

SIZES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": TIB,
}
DURATIONS = {"ms": Decimal("0.001"), "s": Decimal(1), "min": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}

LARGEST_SIZE = (1 << 63) - 1  # what SQLite and off_t hold
LONGEST_DURATION = 3650 * 86400.0
SHORTEST_WAIT = 0.001
"""Seconds. The least for an interval or timeout, where none at all would be a busy loop or an instant failure."""

_WRITTEN = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,400})?) ?([A-Za-zµ]*)")


def _split(text: str, units: dict[str, int] | dict[str, Decimal], example: str) -> tuple[Decimal, str]:
    match = _WRITTEN.fullmatch(text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not understood; write {example}")
    number, unit = match.groups()
    if unit not in units:
        alike = [known for known in units if known.lower() == unit.lower()]
        if alike:
            raise ValueError(f'{quoted(text)} has an unknown unit; write "{number}{alike[0]}"')
        if not unit:
            raise ValueError(f"{quoted(text)} has no unit; write {example}")
        raise ValueError(f"{quoted(text)} has an unknown unit; the units are {', '.join(units)}")
    return Decimal(number), unit


def size(value: object) -> int:
    """Bytes. Raises ValueError with what to write instead."""
    example = 'a size such as "512MiB", "10MB" or a number of bytes'
    if isinstance(value, str):
        number, unit = _split(value, SIZES, example)
        exact = number * SIZES[unit]
        if exact != exact.to_integral_value():
            raise ValueError(f"{quoted(value)} is not a whole number of bytes; write {example}")
        value = int(exact)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"is not a size; write {example}")
    if not 0 <= value <= LARGEST_SIZE:
        raise ValueError(f"must be between 0 and {LARGEST_SIZE} bytes")
    return value


def duration(value: object) -> float:
    """Seconds. Raises ValueError with what to write instead."""
    example = 'a duration such as "500ms", "90s", "15min", "1h", "2d" or a number of seconds'
    if isinstance(value, str):
        number, unit = _split(value, DURATIONS, example)
        value = float(number * DURATIONS[unit])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is not a duration; write {example}")
    if not 0 <= value <= LONGEST_DURATION:  # also false for nan
        raise ValueError(f"must be between 0 and {shown_duration(LONGEST_DURATION)}; write {example}")
    return float(value)


def shown_size(value: int) -> str:
    """The shortest text that :func:`size` reads back as exactly ``value``."""
    fitting = [f"{value // factor}{unit}" for unit, factor in reversed(SIZES.items()) if value % factor == 0]
    return min(fitting, key=len) if value else "0B"


def shown_duration(value: float) -> str:
    """The shortest text that :func:`duration` reads back as exactly ``value``."""
    for unit in ("d", "h", "min", "s"):
        if value and value % float(DURATIONS[unit]) == 0:
            return f"{int(value // float(DURATIONS[unit]))}{unit}"
    milliseconds = round(value * 1000)
    if 0 < milliseconds < 1000 and milliseconds / 1000 == value:
        return f"{milliseconds}ms"
    return f"{Decimal(repr(value)):f}s" if value else "0s"


@dataclass(frozen=True)
class Size:
    """A setting in bytes. ``word`` is what stands for "none at all" in the file, where a setting has such a word."""

    least: int = 0
    most: int = LARGEST_SIZE
    word: str = ""

    def parse(self, value: object) -> int | None:
        if value is None or (self.word and value == self.word):
            return None
        number = size(value)
        if not self.least <= number <= self.most:
            raise ValueError(_out_of_range(shown_size(self.least), shown_size(self.most), number < self.least))
        return number

    def show(self, value: int) -> str:
        return shown_size(value)


@dataclass(frozen=True)
class Seconds:
    """A setting in seconds. ``word`` as in :class:`Size`."""

    least: float = 0.0
    most: float = LONGEST_DURATION
    word: str = ""

    def parse(self, value: object) -> float | None:
        if value is None or (self.word and value == self.word):
            return None
        number = duration(value)
        if not self.least <= number <= self.most:
            raise ValueError(_out_of_range(shown_duration(self.least), shown_duration(self.most), number < self.least))
        return number

    def show(self, value: float) -> str:
        return shown_duration(value)


def _out_of_range(least: str, most: str, too_small: bool) -> str:
    return f'is too small; write at least "{least}"' if too_small else f'is too large; write at most "{most}"'
