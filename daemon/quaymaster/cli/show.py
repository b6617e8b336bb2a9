"""Text for people: the one place that formats bytes, durations, times and tables.

Whatever comes from outside (names, servers' messages) goes through ``plain``, so that no name can move a
terminal's cursor or fake a line.
"""

from __future__ import annotations

import json
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime

from quaymaster.model import plain as plain

CUT = "..."  # not the one-character ellipsis: terminals without UTF-8 have none

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(number: int) -> str:
    """Bytes in three digits: ``999 B``, ``1.50 KiB``, ``12.3 MiB``, ``700 GiB``."""
    if number < 1024:
        return f"{number} B"
    value = number / 1024
    units = iter(_UNITS)
    unit = next(units)
    while value >= 999.5:
        value, unit = value / 1024, next(units)
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def exact(number: int) -> str:
    return f"{number:,} byte{'s' if number != 1 else ''}"


def count(number: int, noun: str = "", plural: str = "") -> str:
    if not noun:
        return f"{number:,}"
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Two units at most: ``4 s``, ``12 min``, ``3 h 20 min``, ``5 d 2 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        hours, minutes = divmod(whole // 60, 60)
        return f"{hours} h" + (f" {minutes} min" if minutes else "")
    days, hours = divmod(whole // 3600, 24)
    return f"{days} d" + (f" {hours} h" if hours else "")


def when(epoch: float | None) -> str:
    """Seconds since the epoch as local time, ISO 8601 with its offset; empty for None."""
    if epoch is None:
        return ""
    try:
        return datetime.fromtimestamp(epoch).astimezone().isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # a file may carry any 64-bit time
        return f"{epoch:.0f} s after 1970-01-01T00:00:00+00:00"


def when_ns(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    text = when(seconds)
    return f"{text[:19]}.{rest:09d}{text[19:]}" if text[10:11] == "T" else text


def width(text: str) -> int:
    """Columns that a terminal gives to ``text``."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def cut(text: str, columns: int) -> str:
    """At most ``columns`` wide; what is left out was at the end."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - len(CUT):
        text = text[:-1]
    return (text + CUT)[: max(columns, 0)]


def cut_path(text: str, columns: int) -> str:
    """At most ``columns`` wide; what is left out was at the front, since the name is what people know."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - len(CUT):
        text = text[1:]
    return (CUT + text)[: max(columns, 0)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]], columns: int = 0) -> list[str]:
    """Lines, the header first. A header that begins with ``>`` is of a right-aligned column; the last column is cut
    (in front) so that lines are at most ``columns`` wide, unless that is 0."""
    right = [title.startswith(">") for title in header]
    cells = [[title.lstrip(">") for title in header], *(list(row) for row in rows)]
    widths = [max(width(row[i]) for row in cells) for i in range(len(header))]
    left = max(columns - sum(widths[:-1]) - 2 * (len(header) - 1), 12) if columns else 0
    lines = []
    for row in cells:
        if left:
            row[-1] = cut_path(row[-1], left)
        padded = []
        for cell, columns_of_it, is_right in zip(row, widths, right, strict=True):
            pad = " " * (columns_of_it - width(cell))
            padded.append(pad + cell if is_right else cell + pad)
        lines.append("  ".join(padded).rstrip())
    return lines


def facts(pairs: Iterable[tuple[str, str]], indent: int = 2) -> list[str]:
    """``name  value`` lines with the values in one column; those without a value are left out."""
    kept = [(name, value) for name, value in pairs if value]
    longest = max((len(name) for name, _ in kept), default=0)
    return [f"{' ' * indent}{name:<{longest}}  {value}" for name, value in kept]


def wrapped(text: str, columns: int, indent: int = 0, most: int = 0) -> list[str]:
    """Lines of a paragraph, each indented; at most ``most`` of them, the last one cut."""
    lines = textwrap.wrap(plain(text), max(columns - indent, 20), break_on_hyphens=False) or [""]
    if most and len(lines) > most:
        lines = [*lines[: most - 1], cut(" ".join(lines[most - 1 :]), max(columns - indent, 20))]
    return [" " * indent + line for line in lines]


def as_json(value: object) -> str:
    """Printable ASCII: safe on every terminal and in every locale."""
    # json leaves DEL as it is; it can only stand inside a string.
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")
