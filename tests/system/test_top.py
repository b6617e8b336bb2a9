"""``quaymaster top`` and ``status`` in a real terminal, driven by real keys (PRODUCT O1)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from quaymaster.cli import show
from quaymaster.model import State
from servers.tmux import Terminal, reason_to_skip, terminal
from system.conftest import Home
from system.service import COMMAND, Service, until

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip() or "-")
LARGE = 192 << 20
COLOUR = re.compile(r"\x1b\[[0-9;]*\b[34][0-7]m")
ODD = b"caf\xe9 \x1b[31m.bin"
ODD_SHOWN = r"caf\xe9 \x1b[31m.bin"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One file delivered, two parked, and one on its way for as long as the tests take."""
    home = Home(tmp_path_factory.mktemp("top"))
    for name in (ODD, b"in-the-way"):
        with open(os.path.join(os.fsencode(home.archive), name), "wb") as file:
            file.write(b"not ours")
    made = Service(home.config(limits='bandwidth = "512KiB/s"'), home.folder).start()
    try:
        for name in (b"arrives", ODD, b"in-the-way"):
            home.land(name, b"x" * 1000)
        until(lambda: (now := made.states())[State.PARKED] == 2 and now[State.DONE] == 1, 60)
        home.land(b"large.bin", os.urandom(LARGE))
        until(lambda: made.states()[State.RUNNING] == 1, 60)
        yield made
    finally:
        made.kill()


def start(service: Service, on: Terminal, command: str = "top", **environment: str) -> None:
    on.run([*COMMAND, command, "--config", str(service.config_file)], **environment)


def fits(screen: str, columns: int) -> bool:
    return all(show.width(line) <= columns for line in screen.splitlines())


def test_it_shows_what_moves_what_failed_and_where_it_goes(service: Service, tmp_path: Path) -> None:
    with terminal(tmp_path) as on:
        start(service, on)
        on.says("% transfer")
        first = on.screen()
        for text in (
            "IN FLIGHT", "landing/large.bin", "FAILED", "landing/in-the-way", ODD_SHOWN, "parked",
            "Something else is already at", "WATCHES", "2 parked, 1 done", "DESTINATIONS", "reading",
        ):  # fmt: skip
            assert text in first, text
        percent = int(re.findall(r"(\d+) % transfer", first)[0])
        until(lambda: int(re.findall(r"(\d+) % transfer", on.screen())[0]) > percent, 60)
        assert fits(first, 80)
        assert COLOUR.search(on.screen(styled=True))
        on.resize(60, 20)
        narrow = on.says("parked 2  done 1\n")
        assert "landing/large.bin" in narrow
        assert fits(narrow, 60)
        on.resize(120, 40)
        on.says("running 1 (192 MiB)")
        on.press("q")
        on.says("ended 0")


def test_its_keys(service: Service, tmp_path: Path) -> None:
    with terminal(tmp_path) as on:
        start(service, on)
        on.says("large.bin")
        on.press("?")
        on.says("try the chosen file again")
        on.press("q", "p")
        on.says("landing is paused")
        assert service.cli("status")[1]["watches"][0]["paused"]
        on.press("p")
        on.says("landing goes on")
        on.press("f", "w", "a", "y", "Enter")
        filtered = on.says("filter: way")
        assert "in-the-way" in filtered
        assert "large.bin" not in filtered
        assert ODD_SHOWN not in filtered
        on.press("Enter")
        for text in ("state     parked", "conflict: Something else", "when the cause is mended"):
            on.says(text)
        on.press("End")
        on.says('"kind":"parked"')
        on.press("Escape")
        on.says("filter: way")
        os.unlink(service.folder / "archive/in-the-way")
        on.press("r")
        until(lambda: service.jobs(path=b"in-the-way")[-1].state is State.DONE, 60)
        on.says("none matches")
        on.press("/", "BSpace", "BSpace", "BSpace", "Enter", "Home", "Tab", "d")
        on.says(ODD_SHOWN)
        on.says("parked after 1 failure")
        on.press("q", "q")
        on.says("ended 0")


@pytest.mark.parametrize(
    "environment",
    [{"NO_COLOR": "1"}, {"TERM": "vt100"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
)
def test_terminals_that_can_do_little(service: Service, tmp_path: Path, environment: dict[str, str]) -> None:
    with terminal(tmp_path, 60, 24) as on:
        start(service, on, **environment)
        shown = on.says("large.bin")
        assert fits(shown, 60)
        assert ODD_SHOWN in shown
        styled = on.screen(styled=True)
        assert bool(COLOUR.search(styled)) == ("LC_ALL" in environment), "colours where they are wanted alone"
        if "LC_ALL" in environment:
            assert shown.isascii()
            assert re.search(r"[#-]{8} +\d+ %", shown)
        on.press("q")
        on.says("ended 0")


@pytest.mark.parametrize(
    ("how", "status"), [("q", 0), ("C-c", 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_however_it_ends_the_terminal_is_as_before(
    service: Service, tmp_path: Path, how: str | signal.Signals, status: int
) -> None:
    with terminal(tmp_path) as on:
        start(service, on)
        on.says("large.bin")
        assert (on.asked("alternate_on"), on.asked("cursor_flag")) == ("1", "0")
        if isinstance(how, str):
            on.press(how)
        else:
            shell = on.asked("pane_pid")
            (child,) = subprocess.run(["pgrep", "-P", shell], capture_output=True, text=True).stdout.split()
            os.kill(int(child), how)
        on.says(f"ended {status}")
        assert (on.asked("alternate_on"), on.asked("cursor_flag")) == ("0", "1")
        on.run(["stty", "-a"], then="told")
        assert {"icanon", "echo", "isig", "opost"} <= set(on.says("told 0").replace(";", " ").split())


def test_without_a_terminal_it_says_what_to_use(service: Service, tmp_path: Path) -> None:
    done = service.command("top")
    assert (done.returncode, "quaymaster status" in done.stderr) == (2, True)
    assert service.command("top", "--json").returncode == 2
    with terminal(tmp_path) as on:
        start(service, on, TERM="dumb")
        assert "cannot draw on a terminal of the type" in on.says("ended 2")


def test_status_fits_and_reads_without_colour(service: Service, tmp_path: Path) -> None:
    for columns, rows in ((80, 24), (60, 24)):
        with terminal(tmp_path, columns, rows) as on:
            start(service, on, "status")
            on.says("ended 0")
            shown = on.screen(above=10).partition("\nended 0")[0]
            shown = shown[shown.index("quaymaster 0.") :]
            assert len(shown.splitlines()) < rows
            for text in ("running", "WATCH", "DESTINATION", "large.bin", "PARKED"):
                assert text in shown, f"{text} is not in:\n{shown}"
            assert fits(shown, columns)
            assert not COLOUR.search(on.screen(styled=True))


def test_a_service_that_is_stopped_is_told(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with Service(home.config(), home.folder) as service, terminal(tmp_path) as on:
        start(service, on)
        on.says("nothing; what lands is taken")
        service.stop()
        on.says("the service is stopped; start it with")
        service.start()
        on.says("quaymaster 0.1.0  running")
        on.press("q")
        on.says("ended 0")
