"""What ``top`` draws fits every terminal, keeps the chosen row in sight, and leaves nothing out silently."""

from __future__ import annotations

import pytest

from quaymaster.cli import panel, show

TALLY = {state: {"jobs": 3, "bytes": 5 << 30} for state in ("running", "queued", "waiting", "parked", "done")}


def found(running: int, watches: int = 2, wide: str = "") -> dict:
    rates = {f"{name}_per_second": {"1m": 1e7, "15m": 1e6} for name in ("files", "source_bytes", "stored_bytes")}
    minutes = [{"at": n, "files": 0, "source_bytes": n * n, "stored_bytes": 0} for n in range(60)]
    seen = {"pending": 2}
    return {
        "version": "1.2.3", "at": 1_700_000_000.0, "totals": TALLY, "eta_seconds": 4000.0, "stalled": [],
        "service": {"state": "running", "pid": 7, "version": "1.2.3", "started_at": 1_600_000_000.0},
        "rates": {**rates, "minutes": minutes},
        "running": [
            {"id": 10_000 + n, "watch": "sequencer", "path": f"{wide}run7/{n}.fastq", "size": 10**9,
             "stage": "transfer", "source_bytes": 10**7 * n, "rate": 1.5e7, "eta_seconds": 7200.0}
            for n in range(running)
        ],
        "watches": [
            {"name": f"watch-{n}-{wide}", "state": "outage", "paused": None, "since": 1.0, "jobs": TALLY, "seen": seen,
             "reason": "its filesystem is not mounted " * 9} for n in range(watches)
        ],
        "destinations": [
            {"name": "archive", "type": "s3", "state": "failing", "error": "nobody answers " * 20, "since": 2.0,
             "delivered": [{"watch": "w", "files": 12345, "source_bytes": 1, "stored_bytes": 10**13}]}
        ],
    }  # fmt: skip


def failed(number: int, wide: str = "") -> list[dict]:
    return [
        {
            "id": n,
            "watch": "w",
            "path": f"{wide}f{n}",
            "state": "waiting",
            "retry_at": 1_700_003_600.0,
            "error": "why " * 90,
        }
        for n in range(number)
    ]


def test_mirrors_and_hooks_are_there_where_a_service_has_them() -> None:
    now = found(1)
    assert [section.title for section in panel.sections(now, [], "", 79, panel.ASCII)][-2:] == [
        "WATCHES",
        "DESTINATIONS",
    ]
    now["mirrors"] = [{"name": "models", "paused": None, "state": "outage", "since": now["at"] - 60, "listed": 12,
                       "reason": "nobody answers", "server": "", "released": 1}]  # fmt: skip
    now["hooks"] = [
        {"name": "mail", "type": "command", "state": "failing", "confirmed": 3, "waiting": 2, "last_error": "status 1"}
    ]
    body = panel.sections(now, [], "", 79, panel.ASCII)
    lines = "\n".join(text(line) for section in body for row in section.rows for line in (row.line, *row.more))
    for wanted in (
        "models",
        "outage",
        "12 objects, 1 version in place",
        "for 1 min: nobody answers",
        "mail",
        "status 1",
    ):
        assert wanted in lines, wanted
    (mirror,) = next(section for section in body if section.title == "MIRRORS").rows
    assert mirror.watch == "models", "it can be paused"


def test_a_watch_tells_of_its_units_and_of_one_that_takes_too_long() -> None:
    now = found(1, 1)
    watch = now["watches"][0] | {"since": None, "reason": ""}
    late = {"path": "run7", "why": "CopyComplete.txt is missing"}
    watch["units"] = {"open": 1, "complete": 0, "published": 12, "abandoned": 0, "overdue": 1, "examples": [late]}
    now["watches"] = [watch]
    body = panel.sections(now, [], "", 150, panel.ASCII)
    lines = "\n".join(text(line) for section in body for row in section.rows for line in (row.line, *row.more))
    assert "units: 1 open, 12 published" in lines
    assert "run7" in lines
    assert "CopyComplete.txt is missing" in lines


def text(line: panel.Line) -> str:
    return "".join(part for part, _ in line)


@pytest.mark.parametrize("wide", ["", "長い名前/" * 30, "ein-sehr-langer-name-" * 10])
@pytest.mark.parametrize("columns", [40, 59, 79, 130])
@pytest.mark.parametrize("rows", [6, 23, 60])
def test_it_fits_whatever_there_is(columns: int, rows: int, wide: str) -> None:
    now = found(20, 5, wide)
    body = panel.sections(now, failed(9, wide), "", columns, panel.UNICODE)
    heading = panel.head(now, columns, panel.UNICODE)
    below = panel.foot("", "a filter", None, columns)
    total = sum(len(section.rows) for section in body)
    for selected in (0, 7, 20, 25, total - 1):
        lines = panel.screen(heading, body, below, selected, rows)
        assert len(lines) == rows
        assert all(show.width(text(line)) <= columns for line in lines)
        if rows > 20:
            assert sum(style == "selected" for line in lines for _, style in line) == 1, "the chosen row is in sight"


def test_a_section_that_does_not_fit_says_so() -> None:
    body = panel.sections(found(20), [], "", 79, panel.ASCII)
    lines = [text(line) for line in panel.screen([], body, [], 12, 24)]
    title = next(line for line in lines if line.startswith("IN FLIGHT"))
    assert "of 20)" in title
    assert "10012" in "".join(lines)
    assert any(line.startswith("DESTINATIONS") for line in lines), "no section is pushed out by another"


def test_the_filter_looks_at_watch_and_path() -> None:
    for wanted, number in (("RUN7/3", 1), ("sequencer", 20), ("nothing", 0)):
        assert len(panel.sections(found(20), [], wanted, 79, panel.ASCII)[0].rows) == number
    assert panel.sections(found(20), [], "nothing", 79, panel.ASCII)[0].empty == "none matches"


def test_a_long_text_loses_no_character() -> None:
    line = "  stored sha256  " + "0123456789abcdef" * 4 + " and then some words that end here"
    shown, offset = panel.pages([line], 0, 30, 40)
    assert offset == 0
    joined = "".join(text(part).strip() for part in shown[:-1])
    assert joined.replace(" ", "") == line.replace(" ", "")
    shown, offset = panel.pages(["x"] * 100, 10**6, 30, 11)
    assert (offset, text(shown[-1])[:16]) == (90, "91 to 100 of 100")


def test_a_sparkline_is_empty_only_where_nothing_moved() -> None:
    assert panel.sparkline([0, 1, 500, 1000], panel.ASCII) == "_.=#"
    assert panel.sparkline([0, 0], panel.UNICODE) == "▁▁"
