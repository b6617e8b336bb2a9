"""What a long command shows of how far it is (PRODUCT I1)."""

from __future__ import annotations

import io
import re

import pytest

from quaymaster.cli import progress as module
from quaymaster.cli.progress import Amount, Progress, Rate, View
from quaymaster.cli.show import width

ANSI = {"TERM": "xterm"}
NAMES = ("reads-1.fastq", "\N{SNOWMAN}" * 90, "\u6587\u4ef6" * 40, "evil\x1b[2Jname\n", "\udcff.bin", "sixth")
VIEW = View(
    ("sending: 1 of 10 files, 20.0 MiB of 100 MiB (20 %), 10.0 MiB/s, 8 s left", "sending: 1 of 10 files"),
    tuple((name, number, 5) for number, name in enumerate(NAMES)),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[(60, 24), (20, 24), (200, 24), (80, 3), (80, 1)])
def screen(request: pytest.FixtureRequest) -> tuple[int, int]:
    columns, rows = request.param
    return columns, rows


def test_the_display_fits_the_terminal_and_leaves_nothing(screen: tuple[int, int]) -> None:
    stream, (columns, rows) = Terminal(), screen
    progress = Progress(stream, lambda: VIEW, quiet=False, environ=ANSI, screen=lambda: screen)
    progress.draw()
    first = stream.getvalue()
    lines = [line.removesuffix("\r").removesuffix("\x1b[J").removesuffix("\x1b[K") for line in first.split("\n")]
    lines[0] = lines[0].removeprefix("\r")
    assert len(lines) == max(1, min(6, rows - 1)), "one for the whole, five for files, as far as there is room"
    assert all(width(line) < columns and "\x1b" not in line for line in lines)
    assert lines[0].startswith("sending: 1")
    progress.draw()
    up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
    assert stream.getvalue().removeprefix(first).startswith(f"\r{up}sending"), "drawn over the first"
    with progress.aside():
        assert stream.getvalue().endswith(f"\r{up}\x1b[J")
    told = stream.getvalue()
    with progress.aside():
        assert stream.getvalue() == told, "what is erased is not erased again"


def test_what_a_narrower_terminal_broke_is_drawn_over() -> None:
    stream, screen = Terminal(), [80, 24]
    view = View(("x" * 70,), (("a", 1, 2),))
    progress = Progress(stream, lambda: view, quiet=False, environ=ANSI, screen=lambda: (screen[0], screen[1]))
    progress.draw()
    screen[0] = 40
    progress.draw()
    assert "\x1b[2A" in stream.getvalue(), "70 columns are two rows of 40"


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_a_terminal_that_wants_no_escape_codes_gets_none(environ: dict[str, str]) -> None:
    stream = Terminal()
    progress = Progress(stream, lambda: VIEW, quiet=False, environ=environ)
    progress.draw()
    with progress.aside():
        pass
    assert stream.getvalue().startswith(f"{VIEW.whole[0]}; reads-1.fastq 0 %; ")
    assert re.fullmatch(r"[^\r\x1b\n]*\n", stream.getvalue())


def test_elsewhere_there_is_a_line_now_and_then_and_nothing_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ELSEWHERE", 0.01)
    for quiet in (False, True):
        stream, asked = io.StringIO(), []
        with Progress(stream, lambda asked=asked: asked.append(1) or VIEW, quiet=quiet, environ=ANSI) as progress:
            while not quiet and len(asked) < 3:
                progress._end.wait(0.01)
        assert bool(asked) is not quiet
        assert stream.getvalue().count("\n") == len(asked)
        assert "\x1b" not in stream.getvalue()


def test_a_terminal_that_went_away_does_not_end_the_command() -> None:
    class Gone(Terminal):
        def write(self, _: str) -> int:
            raise OSError(5, "Input/output error")

    progress = Progress(Gone(), lambda: VIEW, quiet=False, environ=ANSI)
    progress.draw()
    with progress.aside():
        pass


def test_the_whole_tells_files_bytes_rate_and_time_left_and_shrinks() -> None:
    now = [10.0]
    rate, nouns = Rate(lambda: now[0]), ("file", "files")
    assert (
        rate.whole("sending", nouns, Amount(1, 10, 0, 100 << 20))[0] == "sending: 1 of 10 files, 0 B of 100 MiB (0 %)"
    )
    now[0] = 12.0
    assert rate.whole("sending", nouns, Amount(1, 10, 20 << 20, 100 << 20)) == [
        "sending: 1 of 10 files, 20.0 MiB of 100 MiB (20 %), 10.0 MiB/s, 8 s left",
        "sending: 1 of 10 files, 20 %, 10.0 MiB/s, 8 s left",
        "sending: 1 of 10 files, 20 %, 8 s left",
        "sending: 1 of 10 files",
    ]
    assert Rate().whole("scanning", nouns, Amount(1, 0, 0, 0))[0] == "scanning: 1 file"


def test_many_small_files_are_not_said_to_be_done_in_no_time() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    rate.whole("sending", ("file", "files"), Amount(0, 1_000, 99 << 20, 100 << 20))
    now[0] = 2.0
    said = rate.whole("sending", ("file", "files"), Amount(20, 1_000, 100 << 20, 100 << 20))[0]
    assert said.endswith("1 min left"), "980 files at 10 a second"


def test_a_stall_shows_after_some_seconds() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    for second in range(30):
        now[0] = float(second)
        said = rate.whole("restoring", ("file", "files"), Amount(0, 1, min(second, 10) << 20, 100 << 20))[0]
        assert ("iB/s" in said) == (1 <= second < 20)
