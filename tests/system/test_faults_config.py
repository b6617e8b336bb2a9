"""A wrong configuration: every problem on a line with file, line, key and what to do, for ``check`` and ``run`` alike
(PRODUCT S5)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from system.conftest import Home
from system.mishaps import is_calm
from system.service import COMMAND

WRONG = {
    "syntax": ('[watch.landing\npath = "/x"', ":1: "),
    "unknown key": ('[watch.landing]\npaht = "/x"', ":2: [watch.landing] paht: "),
    "wrong type": ('[limits]\nfiles = "many"', ":2: [limits] files: "),
    "no unit": ('[service]\nstop_timeout = "soon"', ":2: [service] stop_timeout: "),
    "relative path": ('[watch.landing]\npath = "x"', ":2: [watch.landing] path: "),
    "unknown destination": (
        '[watch.landing]\npath = "/x"\ndestinations = ["lost"]',
        ":3: [watch.landing] destinations",
    ),
    "no bucket": ('[destination.far]\ntype = "s3"', ":1: [destination.far] bucket: "),
    "unknown type": ('[destination.far]\ntype = "ftp"', ":2: [destination.far] type: "),
    "secret in it": ('[destination.far]\ntype = "s3"\nbucket = "b"\nsecret_key = "hunter2"', ":4: [destination.far]"),
    "bad key": ('[watch.landing]\npath = "/x"\nkey = "{nothing}"', ":3: [watch.landing] key: "),
    "level": (
        '[watch.landing]\npath = "/x"\ncompress = { format = "zstd", level = 99 }',
        ":3: [watch.landing] compress.level: ",
    ),
    "nothing in it": ("", ": "),
}


def asked(command: Sequence[str], file: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *command, "--config", str(file)], capture_output=True, encoding="utf-8", timeout=30
    )


@pytest.mark.parametrize("problem", WRONG)
def test_each_problem_names_file_line_and_key(tmp_path: Path, problem: str) -> None:
    text, place = WRONG[problem]
    file = tmp_path / "quaymaster.toml"
    file.write_text(text)
    done = asked(["check"], file)
    assert (done.returncode, done.stdout) == (2, "")
    *lines, count = done.stderr.splitlines()
    assert any(line.startswith(f"{file}{place}") for line in lines), done.stderr
    assert all(line.startswith(f"{file}:") for line in lines)
    assert count == f"{len(lines)} problem{'s' * (len(lines) > 1)} in {file}"
    assert "hunter2" not in done.stderr
    is_calm(done.stderr)


@pytest.mark.parametrize("command", ["run", "check", "sync", "report", "config"])
def test_every_command_says_the_same_and_starts_nothing(home: Home, command: str) -> None:
    file = home.folder / "quaymaster.toml"
    file.write_text(home.config().replace("settle =", "setle ="))
    done = asked([command], file)
    assert (done.returncode, done.stdout) == (2, "")
    line, count = done.stderr.splitlines()
    assert line.startswith(f"{file}:")
    assert "setle" in line
    assert "settle" in line.replace("setle", "")  # what was meant
    assert count == f"1 problem in {file}"
    assert not (home.folder / "state").exists()


def test_a_configuration_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    for file, says in ((tmp_path / "lost.toml", "does not exist"), (tmp_path, "is a directory")):
        done = asked(["run"], file)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"{file}: {says}")
        is_calm(done.stderr)


def test_what_the_machine_lacks_is_a_warning_with_its_place(home: Home) -> None:
    home.landing.rmdir()
    home.archive.rmdir()
    file = home.folder / "quaymaster.toml"
    file.write_text(home.config())
    done = asked(["check"], file)
    assert done.returncode == 0
    for table, path in (("destination.archive", home.archive), ("watch.landing", home.landing)):
        assert any(
            line.startswith(f"warning: {file}:") and f"[{table}] path: {path} does not exist" in line
            for line in done.stdout.splitlines()
        )
    tried = asked(["check", "--destinations"], file)
    assert tried.returncode == 1
    assert f"destination archive: The directory {home.archive} does not exist" in tried.stderr
    assert not os.path.exists(home.archive)
