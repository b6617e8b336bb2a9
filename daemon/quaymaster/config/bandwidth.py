"""How many bytes a second may go out, by the time of day: "none", "200MiB/s", or
``{ "08:00-18:00" = "50MiB/s", default = "none" }`` (PRODUCT P12)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import core_schema

from quaymaster.config.units import KIB, LARGEST_SIZE, shown_size, size
from quaymaster.config.values import quoted

DAY = 24 * 60
"""Minutes."""
_SLOWEST = KIB
_EXAMPLE = '"none", "200MiB/s" or { "08:00-18:00" = "50MiB/s", default = "none" }'
_WINDOW = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-(?:([01][0-9]|2[0-3]):([0-5][0-9])|24:00)")


@dataclass(frozen=True, slots=True)
class Window:
    """From minute ``begin`` of a day up to minute ``end``, of the next day when that is not later."""

    begin: int
    end: int
    rate: int | None

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The same as parts of one day."""
        return ((self.begin, self.end),) if self.begin < self.end else ((self.begin, DAY), (0, self.end))

    def holds(self, minute: int) -> bool:
        return any(begin <= minute < end for begin, end in self.spans)

    def __str__(self) -> str:
        return f"{clock(self.begin)}-{clock(self.end)}"


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes a second; None: as many as there are."""

    default: int | None = None
    windows: tuple[Window, ...] = ()

    def at(self, minute: int) -> tuple[int | None, int | None]:
        """The rate at this minute of the day (local time), and the minute at which another one begins; None if none
        does."""
        now = self._rate(minute)
        edges = {edge % DAY for window in self.windows for edge in (window.begin, window.end)}
        following = sorted(edges, key=lambda edge: (edge - minute - 1) % DAY)
        return now, next((edge for edge in following if self._rate(edge) != now), None)

    def _rate(self, minute: int) -> int | None:
        return next((window.rate for window in self.windows if window.holds(minute)), self.default)

    def record(self) -> object:
        """For programs: bytes a second, null for no limit."""
        if not self.windows:
            return self.default
        return {str(window): window.rate for window in self.windows} | {"default": self.default}

    def toml(self) -> str:
        if not self.windows:
            return f'"{shown_rate(self.default)}"'
        pairs = [(f'"{window}"', window.rate) for window in self.windows] + [("default", self.default)]
        return "{ " + ", ".join(f'{key} = "{shown_rate(rate)}"' for key, rate in pairs) + " }"


class Rates:
    """Marks a setting as a bandwidth."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(parse, handler(source))


def clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def shown_rate(rate: int | None) -> str:
    return "none" if rate is None else f"{shown_size(rate)}/s"


def parse(value: object) -> Bandwidth:
    """Raises ValueError with what to write instead; of a table see :func:`problems` for all that is wrong."""
    if isinstance(value, Bandwidth):
        return value
    if not isinstance(value, dict):
        return Bandwidth(_rate(value))
    for _, text in problems(value):
        raise ValueError(text)
    windows = tuple(_window(key, rate) for key, rate in value.items() if key != "default")
    return Bandwidth(_rate(value.get("default", "none")), tuple(sorted(windows, key=lambda window: window.begin)))


def problems(table: dict[Any, object]) -> Iterator[tuple[str, str]]:
    """What is wrong with a table: key, and text."""
    good: list[Window] = []
    for key, value in table.items():
        try:
            if key == "default":
                _rate(value)
                continue
            window = _window(key, value)
        except ValueError as error:
            yield key, str(error)
            continue
        for other in good:
            if any(a < d and c < b for a, b in window.spans for c, d in other.spans):
                yield key, f'overlaps "{other}"; let one end where the other begins'
                break
        good.append(window)


def _window(key: str, value: object) -> Window:
    match = _WINDOW.fullmatch(key)
    if match is None:
        raise ValueError(f'{quoted(key)} is not a time of day; write it like "08:00-18:00", or default')
    hours, minutes, end_hours, end_minutes = match.groups()
    begin = int(hours) * 60 + int(minutes)
    end = int(end_hours) * 60 + int(end_minutes) if end_hours else DAY
    if begin == end:
        raise ValueError(f'{quoted(key)} is empty; for the whole day write "00:00-24:00"')
    return Window(begin, end, _rate(value))


def _rate(value: object) -> int | None:
    if value == "none":
        return None
    if not isinstance(value, str) or not value.endswith("/s"):
        raise ValueError(f"is not a bandwidth; write {_EXAMPLE}")
    number = size(value.removesuffix("/s").rstrip())
    if not _SLOWEST <= number <= LARGEST_SIZE:
        raise ValueError(f'is too small; write at least "{shown_rate(_SLOWEST)}", or "none" for no limit')
    return number
