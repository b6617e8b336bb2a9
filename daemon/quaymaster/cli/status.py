"""``quaymaster status``: what the service does at this moment, on one screen."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Sequence

import click

from quaymaster.cli import show
from quaymaster.cli.records import Record
from quaymaster.cli.session import Session, in_session
from quaymaster.model import State
from quaymaster.service.view.snapshot import snapshot
from quaymaster.service.view.units import overdue_text

_CAUSES = 5
_NARROW = 76
"""Columns below which tables keep to what matters most."""


@click.command("status")
@click.option("--all", "everything", is_flag=True, help="Every row, even if the screen is too small.")
@in_session
def command(session: Session, everything: bool) -> int:
    """Show what the service does: totals, each watch and destination, running jobs, parked ones and what to do.

    Works while the service is stopped too. Fits the terminal; where rows are left out it says so.

    \b
    Examples:
      quaymaster status
      watch -n 2 quaymaster status
      quaymaster status --json | jq .totals.parked.jobs
    """
    config = session.sound_config()
    from quaymaster.service.lock import holder

    with session.store(config) as store:
        found = snapshot(config, store, holder(config.service.state_dir), time.time())
    if session.json:
        print(show.as_json(found))
    else:
        screen = shutil.get_terminal_size((80, 24))
        lines = render(found, screen.columns, 0 if everything else screen.lines - 1, time.time())
        print("\n".join(lines))
    return 0


# -- the same for people --

_Rows = list[list[str]]
"""A section: its header and its rows, each of one or more lines."""


def render(found: Record, columns: int, lines: int, now: float) -> list[str]:
    """At most ``lines`` lines of ``columns``; 0: as many as there are."""
    sections = [
        [_head(found, columns, now)],
        _watch_rows(found["watches"], columns, now),
        _mirror_rows(found["mirrors"], columns, now),
        _destination_rows(found["destinations"], columns),
        _hook_rows(found["hooks"], columns, now),
        _running_rows(found, columns, now),
        _parked_rows(found["parked"], found["totals"]["parked"]["jobs"], columns),
    ]
    return _fit([rows for rows in sections if rows], lines)


def _head(found: Record, columns: int, now: float) -> list[str]:
    service, totals = found["service"], found["totals"]
    life = f"quaymaster {service['version'] or found['version']}: {service['state']}"
    if service["started_at"]:
        lasted = show.duration(now - service["started_at"])
        life += f" since {show.when(service['started_at'])} ({lasted})" if columns >= _NARROW else f" for {lasted}"
    process = f"pid {service['pid']}" if service["pid"] is not None else "start it with: systemctl start quaymaster"
    parts = []
    for state in State:
        jobs, size = totals[state.value]["jobs"], totals[state.value]["bytes"]
        if not jobs and state in (State.SUPERSEDED, State.DROPPED):
            continue
        part = f"{state.value} {show.count(jobs)}" + (f" ({show.size(size)})" if jobs else "")
        if state is State.WAITING and found["next_retry"] is not None:
            part += f", next try in {show.duration(found['next_retry'] - now)}"
        parts.append(part)
    moving = [_moving(found)] if found["running"] and found["service"]["pid"] is not None else []
    oldest = found["oldest_open"]
    age = f"oldest undelivered file: {show.duration(now - oldest)} in the queue" if oldest else "nothing undelivered"
    verified = [_verified(found["verify"]["last"], now)] if found["verify"]["last"] else []
    waits = _waits(found["ceilings"], totals["queued"]["jobs"])
    told = [part for text in (*moving, age, *waits, *verified) for part in show.wrapped(text, columns)]
    return [*_flow([life, process], columns), *_flow(parts, columns), *told]


def _waits(ceilings: Record, queued: int) -> list[str]:
    """On what work waits now, a line each; and how much of its bandwidth is in use."""
    lines = [_bandwidth(flow) for flow in ceilings.get("bandwidth", [])]
    if (files := ceilings.get("files")) and queued and files["used"] >= files["ceiling"]:
        lines.append(f"files: all {show.count(files['ceiling'])} are in flight (limits.files); the others wait")
    for name, setting in (("memory", "memory"), ("compressing", "compress_threads")):
        if (pool := ceilings.get(name)) and pool["waiting"]:
            figure = show.size if name == "memory" else show.count
            used = f"{figure(pool['used'])} of {figure(pool['ceiling'])} in use"
            lines.append(f"{name}: {show.count(pool['waiting'], 'file')} waiting, {used} (limits.{setting})")
    if (staging := ceilings.get("staging")) and staging["ceiling"] is not None and staging["used"]:
        lines.append(f"staging: {show.size(staging['used'])} of {show.size(staging['ceiling'])} in use")
    return lines


def _bandwidth(flow: Record) -> str:
    rate, limit = flow["rate"] / 2**20, flow["limit"] / 2**20
    figures = f"{rate:.0f} of {limit:.0f} MiB/s" if limit >= 10 else f"{rate:.2f} of {limit:.2f} MiB/s"
    to = f" to {show.plain(flow['destination'])}" if flow["destination"] else ""
    until = f" until {flow['until']}" if flow["until"] else ""
    waiting = f", {show.count(flow['waiting'], 'file')} waiting" if flow["waiting"] else ""
    return f"bandwidth{to}: {figures}{until}{waiting}"


def _moving(found: Record) -> str:
    rates = found["rates"]["source_bytes_per_second"]
    text = f"reading {show.size(int(rates['1m']))}/s, in the last 15 min {show.size(int(rates['15m']))}/s"
    return text + (f"; empty in {show.duration(found['eta_seconds'])}" if found["eta_seconds"] else "")


def _verified(last: Record, now: float) -> str:
    faults = {name: last[name] for name in ("missing", "changed", "damaged") if last[name]}
    said = ", ".join(f"{show.count(number)} {name.upper()}" for name, number in faults.items()) or "no fault"
    if last["unreachable"] or not last["complete"]:
        said += "; not all could be looked at"
    age = show.duration(now - last["started_at"])
    return f"copies verified {age} ago ({last['level']}): {show.count(last['good'])} good, {said}"


def _flow(parts: list[str], columns: int) -> list[str]:
    """Parts side by side, on as many lines as they need, and broken inside only where a line is too short for one."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= columns:
            lines[-1] += "   " + part
        else:
            lines += show.wrapped(part, columns)
    return lines


def _watch_rows(watches: list[Record], columns: int, now: float) -> _Rows:
    if not watches:
        return []
    shown = sorted(
        watches, key=lambda w: not (w["paused"] or w["reason"] or _not_taken(w["seen"]) or w["jobs"]["parked"]["jobs"])
    )  # troubles first
    header: tuple[str, ...] = ("WATCH", "MODE", "STATE", ">SETTLING", ">QUEUED", ">WAITING", ">PARKED", ">DONE")
    cells: list[tuple[str, ...]] = [
        (
            show.cut(show.plain(watch["name"]), 20),
            watch["mode"] or "-",
            watch["state"],
            show.count(watch["seen"].get("pending") or 0),
            *(show.count(watch["jobs"][state]["jobs"]) for state in ("queued", "waiting", "parked", "done")),
        )
        for watch in shown
    ]
    if columns < _NARROW:
        header, cells = _without((1, 3), header), [_without((1, 3), row) for row in cells]
    title, *lines = show.table(header, cells)
    rows = [[title]]
    for watch, line in zip(shown, lines, strict=True):
        told = [_paused(watch, now), _reason(watch, now), _not_taken(watch["seen"]), _units(watch)]
        rows.append([line, *(part for text in told if text for part in show.wrapped(text, columns, 2, 4))])
    return rows


def _without(columns: Collection[int], cells: Sequence[str]) -> tuple[str, ...]:
    return tuple(cell for column, cell in enumerate(cells) if column not in columns)


def _paused(watch: Record, now: float) -> str:
    if not watch["paused"]:
        return ""
    since, by = watch["paused"]["since"], watch["paused"]["by"]
    resume = f"quaymaster resume {watch['name']}"
    return f"paused for {show.duration(now - since)}, since {show.when(since)}, by {by}; go on with: {resume}"


def _units(watch: Record) -> str:
    """How many of its directories are not published, and which are overdue."""
    units = watch["units"]
    if not units or not (units["open"] or units["complete"]):
        return ""
    parts = [f"{units[state]:,} {state}" for state in ("open", "complete", "published") if units[state]]
    late = overdue_text(watch["name"], units)
    return f"units: {', '.join(parts)}" + (f"; {late}" if late else "; see quaymaster units")


def _reason(watch: Record, now: float) -> str:
    if not watch["reason"] or not watch["since"]:
        return str(watch["reason"])
    lasted = show.duration(now - watch["since"])
    return f"for {lasted}, since {show.when(watch['since'])}: {watch['reason']}"


def _not_taken(seen: Record) -> str:
    """What is not in the queue although it might belong there."""
    files, directories = seen.get("refused") or 0, seen.get("unreadable_directories") or 0
    parts = [show.count(files, "file")] if files else []
    parts += [show.count(directories, "unreadable directory", "unreadable directories")] if directories else []
    return f"not taken: {', '.join(parts)}; see the log, or quaymaster why PATH" if parts else ""


def _mirror_rows(mirrors: list[Record], columns: int, now: float) -> _Rows:
    if not mirrors:
        return []
    cells = [
        (
            show.cut(show.plain(mirror["name"]), 20),
            mirror["state"],
            show.duration(now - mirror["last_good"]) if mirror["last_good"] else "-",
            show.count(mirror["released"]),
            show.count(len(mirror["waiting"])),
            show.count(len(mirror["quarantined"])),
        )
        for mirror in mirrors
    ]
    title, *lines = show.table(("MIRROR", "STATE", ">LISTED", ">RELEASED", ">WAITING", ">QUARANTINED"), cells)
    rows = [[title]]
    for mirror, line in zip(mirrors, lines, strict=True):
        told = [text for text in (_paused(mirror, now), mirror["reason"], mirror["server"]) if text]
        told += [f"{word}: {what}: {why}" for word in ("waiting", "quarantined") for what, why in mirror[word].items()]
        rows.append([line, *(part for text in told for part in show.wrapped(show.plain(text), columns, 2, 4))])
    return rows


def _destination_rows(destinations: list[Record], columns: int) -> _Rows:
    if not destinations:
        return []
    shown = sorted(destinations, key=lambda d: not d["error"])
    cells: list[tuple[str, ...]] = [
        (show.cut(show.plain(d["name"]), 20), d["type"], d["state"], show.when(d["since"])) for d in shown
    ]
    header: tuple[str, ...] = ("DESTINATION", "TYPE", "STATE", "SINCE")
    if columns < _NARROW:
        header, cells = _without((3,), header), [_without((3,), row) for row in cells]
    title, *lines = show.table(header, cells)
    rows = [[title]]
    for destination, line in zip(shown, lines, strict=True):
        rows.append([line, *(show.wrapped(destination["error"], columns, 2, 4) if destination["error"] else [])])
    return rows


def _hook_rows(hooks: list[Record], columns: int, now: float) -> _Rows:
    """Those that are in trouble, or all in one line."""
    if not hooks:
        return []
    from quaymaster.cli.hooks import table

    troubled = [hook for hook in hooks if hook["state"] != "ok"]
    if not troubled:
        waiting = sum(hook["waiting"] + hook["behind"] for hook in hooks)
        return [[f"{show.count(len(hooks), 'hook')} told; {show.count(waiting, 'event')} on the way"]]
    return [[line] for line in table(troubled, columns, now)]


def _running_rows(found: Record, columns: int, now: float) -> _Rows:
    jobs = found["running"]
    if not jobs:
        return []
    if found["service"]["pid"] is None:
        many = show.count(len(jobs), "job")
        told = f"{many} interrupted by the stop; the service goes on with them when it starts"
        return [show.wrapped(told, columns)]
    cells: list[tuple[str, ...]] = []
    for job in jobs:
        done, total = job["source_bytes"], job["size"]
        percent = f"{100 * done // total if total else 100} %" if done is not None else "-"
        pace = job["rate"]
        if pace is None and done and job["since"] and now > job["since"]:
            pace = done / (now - job["since"])
        rate = f"{show.size(int(pace))}/s" if pace is not None else "-"
        of = f"{show.size(done or 0)} of {show.size(total)}"
        cells.append((str(job["id"]), job["stage"] or "-", percent, of, rate, show.plain(job["path"])))
    header: tuple[str, ...] = (">JOB", "STAGE", ">DONE", ">BYTES", ">RATE", "FILE")
    if columns < _NARROW:
        header, cells = _without((3,), header), [_without((3,), row) for row in cells]
    lines = show.table(header, cells, columns)
    return [[line] for line in lines]


def _parked_rows(causes: list[Record], total: int, columns: int) -> _Rows:
    if not causes:
        return []
    rows = [
        show.wrapped(
            f"PARKED: {show.count(total, 'file')} waiting for you; mend the cause, then retry or drop", columns
        )
    ]
    for cause in causes[:_CAUSES]:
        text = f"{show.count(cause['jobs'])} x {cause['error_code'] or 'unknown'}: {cause['error']}"
        rows.append([*show.wrapped(text, columns, 2, 2), show.cut(show.plain(f"    then: {cause['retry']}"), columns)])
    if len(causes) > _CAUSES:
        rows.append([f"  ... and {len(causes) - _CAUSES} more causes: quaymaster jobs --state parked"])
    return rows


def _fit(sections: list[_Rows], most: int) -> list[str]:
    """The sections with an empty line between them. While they are more than ``most`` lines, the longest loses its
    last row."""
    left_out = [0] * len(sections)

    def length(index: int) -> int:
        return sum(len(row) for row in sections[index]) + (left_out[index] > 0)

    while most and sum(map(length, range(len(sections)))) + len(sections) - 1 > most:
        longest = max((i for i in range(len(sections)) if len(sections[i]) > 1), key=length, default=None)
        if longest is None:
            break
        sections[longest].pop()
        left_out[longest] += 1
    lines: list[str] = []
    for rows, missing in zip(sections, left_out, strict=True):
        lines += [""] if lines else []
        lines += [line for row in rows for line in row]
        lines += [f"  ... and {missing} more: quaymaster status --all"] if missing else []
    return lines
