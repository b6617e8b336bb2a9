"""What ``quaymaster top`` shows, as lines of styled text: no terminal is needed to tell what it draws.

A line is a list of pieces, each with one of the words of STYLES. What fits is shown; a section that does not fit shows
the rows around the selected one, and says which of how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from quaymaster.cli import show
from quaymaster.service.view.records import Record
from quaymaster.service.view.units import overdue_text

Style = Literal["", "bold", "quiet", "accent", "good", "note", "bad", "selected"]
Piece = tuple[str, Style]
Line = list[Piece]

NARROW = 76
"""Columns below which a file's stage and the time left are not shown."""
HELP = (
    "Up, Down, j, k     choose a file, a watch or a destination",
    "Tab                the next section",
    "Enter, d           everything about the chosen one: why, where, and the proof",
    "p                  pause the chosen watch, or the watch of the chosen file; or go on with it",
    "r                  try the chosen file again (waiting or parked)",
    "f, /               show only what has this in its name; empty: everything",
    "?                  this help",
    "q, Esc             back, or out",
    "",
    "The service is not touched by looking. What is paused stays so over restarts.",
    "The same once: quaymaster status. For programs: quaymaster status --json.",
)
_KEYS = "q quit  p pause  r retry  f filter  Enter details  ? help"


@dataclass(frozen=True, slots=True)
class Glyphs:
    """``full`` and ``empty`` of a bar; ``levels`` of a sparkline, the lowest first."""

    full: str
    empty: str
    levels: str


UNICODE = Glyphs("━", "─", "▁▂▃▄▅▆▇█")
ASCII = Glyphs("#", "-", "_.:-=+*#")


@dataclass(slots=True)
class Row:
    """One that can be chosen. ``key`` stays its own from one second to the next."""

    key: tuple[str, str]
    line: Line
    more: list[Line] = field(default_factory=list)
    """Lines below it that explain."""
    watch: str = ""
    job: int = 0

    @property
    def height(self) -> int:
        return 1 + len(self.more)


@dataclass(slots=True)
class Section:
    title: str
    rows: list[Row]
    empty: str = ""


# -- sections --


def sections(found: Record, failed: Sequence[Record], wanted: str, columns: int, glyphs: Glyphs) -> list[Section]:
    """``failed`` are jobs that wait or are parked, ``wanted`` is the filter."""
    now = found["at"]

    def fits(record: Record) -> bool:
        return wanted.lower() in f"{record['watch']}/{record['path']}".lower()

    running = [record for record in found["running"] if fits(record)]
    stopped = found["service"]["pid"] is None
    nothing = "none matches" if wanted else "nothing; what lands is taken as soon as it is whole"
    flight = [_stopped_row(r, columns) if stopped else _flight_row(r, columns, glyphs) for r in running]
    made = [
        Section("INTERRUPTED BY THE STOP" if stopped else "IN FLIGHT", flight, "none" if stopped else nothing),
        Section("FAILED", [_failed_row(record, columns, now) for record in failed if fits(record)]),
        Section("WATCHES", [_watch_row(watch, columns, now) for watch in found["watches"]]),
        Section("MIRRORS", [_mirror_row(mirror, columns, now) for mirror in found.get("mirrors", ())]),
        Section("DESTINATIONS", [_destination_row(to, columns, now) for to in found["destinations"]]),
        Section("HOOKS", [_hook_row(hook, columns) for hook in found.get("hooks", ())]),
    ]
    return [section for section in made if section.rows or section.empty]


def _file(record: Record, columns: int) -> str:
    return show.cut_path(show.plain(f"{record['watch']}/{record['path']}"), columns)


def _flight_row(record: Record, columns: int, glyphs: Glyphs) -> Row:
    done, size = record["source_bytes"], record["size"]
    part = None if done is None else min(1.0, done / size) if size else 1.0
    percent = "-" if part is None else f"{int(100 * part)} %"
    rate = f"{show.size(int(record['rate']))}/s" if record["rate"] else "-"
    length = 10 if columns >= NARROW else 8
    full = round(length * (part or 0.0))
    line: Line = [(f"{record['id']:>4} ", "quiet"), (glyphs.full * full, "accent")]
    text = f"{glyphs.empty * (length - full)} {percent:>5} "
    if columns >= NARROW:
        left = " ".join(show.duration(record["eta_seconds"]).split()[:2]) if record["eta_seconds"] else "-"
        text += f"{record['stage'] or '-':<8} {rate:>10} {left:>6} "
    else:
        text += f"{rate:>10} "
    line.append((text, ""))
    line.append((_file(record, columns - _width(line)), "bold"))
    return Row(("job", str(record["id"])), line, watch=record["watch"], job=record["id"])


def _stopped_row(record: Record, columns: int) -> Row:
    head = f"{record['id']:>4} "
    line: Line = [(head, "quiet"), (_file(record, columns - len(head)), "bold")]
    return Row(("job", str(record["id"])), line, watch=record["watch"], job=record["id"])


def _failed_row(record: Record, columns: int, now: float) -> Row:
    wait = f" {show.duration(record['retry_at'] - now)}" if record["retry_at"] is not None else ""
    text = f"{record['state']}{wait}"
    line: Line = [(f"{record['id']:>4} ", "quiet"), (f"{text:<15}", "bad" if record["state"] == "parked" else "note")]
    line.append((_file(record, columns - _width(line)), "bold"))
    reason = show.wrapped(record["error"] or "waits before its source is disposed of", columns - 1, 5, 2)
    more: list[Line] = [[(part, "")] for part in reason]
    return Row(("job", str(record["id"])), line, more, watch=record["watch"], job=record["id"])


_LOOKS: dict[str, Style] = {
    "watching": "good", "polling": "good", "ok": "good", "outage": "bad", "failing": "bad", "parked": "bad",
    "paused": "note", "degraded": "note",
}  # fmt: skip


def _thing_row(key: tuple[str, str], state: str, said: str, told: str, columns: int, watch: str = "") -> Row:
    """A thing with a name, which is the second of ``key``; ``told`` is what is wrong with it."""
    name = show.cut(show.plain(key[1]), 18)
    line: Line = [("  " + name + " " * (19 - show.width(name)), "bold"), (f"{state:<10} ", _LOOKS.get(state, ""))]
    line.append((show.cut(said, columns - _width(line)), ""))
    more: list[Line] = [[(part, "")] for part in show.wrapped(told, columns - 1, 4, 2)] if told else []
    return Row(key, line, more, watch=watch)


def _lasted(since: float | None, told: str, now: float) -> str:
    return f"for {show.duration(now - since)}: {told}" if since and told else told


def _watch_row(watch: Record, columns: int, now: float) -> Row:
    jobs = watch["jobs"]
    numbers = ("queued", "waiting", "parked", "done")
    said = [f"{show.count(jobs[state]['jobs'])} {state}" for state in numbers if jobs[state]["jobs"]]
    if watch["seen"].get("pending"):
        said.insert(0, f"{show.count(watch['seen']['pending'])} settling")
    if units := watch.get("units"):
        named = [f"{show.count(units[state])} {state}" for state in ("open", "complete", "published") if units[state]]
        said += [f"units: {', '.join(named)}"] if named else []
    state = "paused" if watch["paused"] else watch["state"]
    told = _lasted(watch["since"], watch["reason"], now) or (overdue_text(watch["name"], units) if units else "")
    return _thing_row(("watch", watch["name"]), state, ", ".join(said) or "nothing yet", told, columns, watch["name"])


def _mirror_row(mirror: Record, columns: int, now: float) -> Row:
    said = f"{show.count(mirror['listed'], 'object')}, {show.count(mirror['released'], 'version')} in place"
    state = "paused" if mirror["paused"] else mirror["state"]
    told = _lasted(mirror["since"], mirror["reason"], now) or mirror["server"]
    return _thing_row(("mirror", mirror["name"]), state, said, told, columns, mirror["name"])


def _destination_row(to: Record, columns: int, now: float) -> Row:
    stored = sum(pair["stored_bytes"] for pair in to["delivered"])
    files = sum(pair["files"] for pair in to["delivered"])
    said = f"{to['type']}, {show.count(files, 'file')}, {show.size(stored)} since the start" if files else to["type"]
    told = _lasted(to["since"], to["error"], now)
    return _thing_row(("destination", to["name"]), to["state"], said, told, columns)


def _hook_row(hook: Record, columns: int) -> Row:
    said = f"{hook['type']}, {show.count(hook['confirmed'])} told, {show.count(hook['waiting'])} waiting"
    told = hook["last_error"] if hook["state"] in ("failing", "parked") else ""
    return _thing_row(("hook", hook["name"]), hook["state"], said, told, columns)


# -- the head --


def head(found: Record, columns: int, glyphs: Glyphs) -> list[Line]:
    """Three lines: the service, the queue, and how fast it goes."""
    service, totals, rates = found["service"], found["totals"], found["rates"]
    now = found["at"]
    life = f"{service['state']}" + (f" {show.duration(now - service['started_at'])}" if service["started_at"] else "")
    if service["pid"] is None:
        life = "the service is stopped; start it with: systemctl start quaymaster"
    style: Style = "bad" if service["pid"] is None else "good"
    clock = show.when(now)[11:19]
    first: Line = [("quaymaster ", "bold"), (f"{service['version'] or found['version']}  ", "quiet")]
    first.append((show.cut(life, columns - _width(first) - 10), style))
    first.append((" " * (columns - _width(first) - len(clock)) + clock, "quiet"))
    counts: Line = []
    styles: dict[str, Style] = {"parked": "bad", "waiting": "note"}
    for state in ("running", "queued", "waiting", "parked", "done"):
        jobs, size = totals[state]["jobs"], totals[state]["bytes"]
        sized = jobs and columns >= NARROW and state in ("running", "queued")
        text = f"{state} {show.count(jobs)}" + (f" ({show.size(size)})" if sized else "")
        counts += [(text, styles.get(state, "") if jobs else ""), ("  ", "")]
    return [first, _clip(counts, columns), _pace(rates, found["eta_seconds"], columns, glyphs)]


def _pace(rates: Record, eta: float | None, columns: int, glyphs: Glyphs) -> Line:
    per_second = rates["source_bytes_per_second"]
    text = f"reading {show.size(int(per_second['1m']))}/s"
    if columns >= NARROW:
        text += f", 15 min {show.size(int(per_second['15m']))}/s"
    text += f", empty in {show.duration(eta)}" if eta else ""
    room = columns - len(text) - 12
    line: Line = [(text, "")]
    if room >= 10:
        minutes = [minute["source_bytes"] for minute in rates["minutes"]][-min(60, room) :]
        line += [("  last hour " if len(minutes) == 60 else f"  {len(minutes):>2} min    ", "quiet")]
        line.append((sparkline(minutes, glyphs), "accent"))
    return _clip(line, columns)


def sparkline(amounts: Sequence[int], glyphs: Glyphs) -> str:
    most, top = max(amounts, default=0), len(glyphs.levels) - 1
    return "".join(glyphs.levels[-(-amount * top // most) if most else 0] for amount in amounts)


def foot(message: str, wanted: str, typing: str | None, columns: int) -> Line:
    if typing is not None:
        return [(show.cut(f"filter: {typing}_   Enter takes it, Esc leaves it", columns), "bold")]
    if message:
        return [(show.cut(message, columns), "note")]
    return [(show.cut((f"filter: {wanted}  " if wanted else "") + _KEYS, columns), "quiet")]


# -- all together --


def screen(heading: list[Line], body: list[Section], below: Line, selected: int, rows: int) -> list[Line]:
    """At most ``rows`` lines; ``selected`` counts over the rows of all sections."""
    room = max(0, rows - len(heading) - 1)
    needs = [1 + max(1, sum(row.height for row in section.rows)) for section in body]
    apart: list[Line] = [[]] if sum(needs) + len(needs) < room else []
    heights = _allot(needs, room)
    for _ in range(2):  # a row that does not fit leaves lines to others
        first, drawn = 0, []
        spare = room - sum(heights)
        for index, section in enumerate(body):
            drawn.append(_window(section, heights[index] + spare, selected - first))
            spare = max(0, heights[index] + spare - len(drawn[-1]))
            first += len(section.rows)
            heights[index] = len(drawn[-1])
    lines = [*heading, *(line for part in drawn for line in (*apart, *part))][: rows - 1]
    lines += [[] for _ in range(rows - 1 - len(lines))]
    return [*lines, below]


def _allot(needs: Sequence[int], room: int) -> list[int]:
    """Nobody gets more than it needs; what is left is shared equally."""
    given = [0] * len(needs)
    while room > 0 and (open_ := [i for i, need in enumerate(needs) if given[i] < need]):
        share = max(1, room // len(open_))
        for index in open_[: room if share == 1 else None]:
            more = min(share, needs[index] - given[index], room)
            given[index] += more
            room -= more
    return given


def _window(section: Section, height: int, selected: int) -> list[Line]:
    if height <= 0:
        return []
    rows, within = section.rows, 0 <= selected < len(section.rows)
    first = last = selected if within else 0
    room = height - 1 - (rows[first].height if rows else 0)
    while rows:
        if last + 1 < len(rows) and rows[last + 1].height <= room:
            last += 1
            room -= rows[last].height
        elif first > 0 and rows[first - 1].height <= room:
            first -= 1
            room -= rows[first].height
        else:
            break
    some = f" ({first + 1} to {last + 1} of {len(rows)})" if rows and last - first + 1 < len(rows) else ""
    lines: list[Line] = [[(section.title, "bold"), (some, "quiet")]]
    if not rows:
        lines.append([(f"  {section.empty}", "quiet")])
    for index in range(first, last + 1) if rows else ():
        line = rows[index].line
        if within and index == selected:
            line = [("".join(text for text, _ in line), "selected")]
        lines.append(line)
        lines += rows[index].more
    return lines[:height]


def pages(lines: Sequence[str], offset: int, columns: int, rows: int) -> tuple[list[Line], int]:
    """A part of a long text and how far down it is: at most so far that its end is seen."""
    wrapped = [part for line in lines for part in _broken(line, columns)]
    offset = max(0, min(offset, len(wrapped) - (rows - 1)))
    some: list[Line] = [[(text, "")] for text in wrapped[offset : offset + rows - 1]]
    some += [[] for _ in range(rows - 1 - len(some))]
    below = f"{offset + 1} to {min(len(wrapped), offset + rows - 1)} of {len(wrapped)} lines   arrows move, q goes back"
    return [*some, [(show.cut(below, columns), "quiet")]], offset


def _broken(line: str, columns: int) -> list[str]:
    """At a space if there is one, else anywhere: no character of a digest or key is left out."""
    indent = " " * min(len(line) - len(line.lstrip()) + 2, columns // 2)
    parts = [""]
    for character in line:
        if show.width(parts[-1] + character) > columns:
            kept, space, rest = parts[-1].rpartition(" ")
            whole = not space or show.width(kept) < columns // 2
            parts[-1:] = [parts[-1], indent] if whole else [kept + space, indent + rest]
        parts[-1] += character
    return parts


def _width(line: Line) -> int:
    return sum(show.width(text) for text, _ in line)


def _clip(line: Line, columns: int) -> Line:
    kept: Line = []
    for text, style in line:
        kept.append((show.cut(text, columns - _width(kept)), style))
    return kept
