"""``packaging/setup.sh``: fast when there is nothing to do, and clear about what it cannot do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SYSTEM_TOOLS = ("bash", "dirname", "sha256sum", "cat", "flock", "mktemp", "rm", "mkdir")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing but what the set-up reads."""
    for name in ("pyproject.toml", "packaging/setup.sh", "packaging/constraints.txt"):
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, tmp_path / "checkout" / name)
    return tmp_path / "checkout"


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A directory for PATH with the tools that every system has, and a recent Python; the rest is missing."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for tool in SYSTEM_TOOLS:
        found = shutil.which(tool)
        assert found is not None, tool
        (directory / tool).symlink_to(found)
    program(directory / "python3", f'exec {sys.executable} "$@"')
    return directory


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def set_up(checkout: Path, path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(checkout / "packaging/setup.sh"), *arguments],
        env={"PATH": str(path), "HOME": str(checkout), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_without_root_it_names_the_command_to_run(checkout: Path, bare_path: Path) -> None:
    program(bare_path / "id", "echo 1000")
    program(bare_path / "apt-get", "echo must not be called >&2; exit 1")
    done = set_up(checkout, bare_path, "dev")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "Run this as root" in line
    for package in ("gcc", "pkg-config", "libsystemd-dev", "zstd", "openssl", "sshfs", "fuse3", "procps"):
        assert re.search(rf"apt-get install -y .*\b{package}\b", line), package


def test_the_demonstration_does_not_ask_for_what_only_tests_need(checkout: Path, bare_path: Path) -> None:
    program(bare_path / "id", "echo 1000")
    program(bare_path / "apt-get", "exit 1")
    assert "sshfs" not in set_up(checkout, bare_path, "runtime").stderr


def test_on_rpm_systems_it_names_their_packages(checkout: Path, bare_path: Path) -> None:
    program(bare_path / "id", "echo 1000")
    program(bare_path / "dnf", "exit 1")
    (line,) = set_up(checkout, bare_path, "dev").stderr.splitlines()
    for package in ("gcc", "systemd-devel", "pkgconf-pkg-config", "fuse-sshfs"):
        assert re.search(rf"dnf install -y .*\b{package}\b", line), package


def test_as_root_it_installs_only_what_is_missing(checkout: Path, bare_path: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    program(bare_path / "id", "echo 0")
    program(bare_path / "apt-cache", "exit 0")
    program(bare_path / "apt-get", f'echo "$DEBIAN_FRONTEND $@" >>{asked}; echo no such mirror; exit 100')
    program(bare_path / "cc", "exit 0")
    done = set_up(checkout, bare_path, "runtime")
    assert done.returncode == 1
    assert "no such mirror" in done.stderr  # what apt-get said is shown when it fails, and only then
    first = asked.read_text().splitlines()[0]
    assert first.startswith("noninteractive install -y")
    assert "libsystemd-dev" in first
    assert " gcc" not in first


def test_absent_package_lists_are_fetched_before_installing(checkout: Path, bare_path: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    program(bare_path / "id", "echo 0")
    program(bare_path / "apt-cache", "exit 100")
    program(bare_path / "apt-get", f'echo "$1" >>{asked}; [ "$1" = update ]')
    set_up(checkout, bare_path, "runtime")
    assert asked.read_text().splitlines()[:2] == ["update", "install"]


def test_an_old_python_is_refused_with_what_to_do(checkout: Path, bare_path: Path) -> None:
    program(bare_path / "python3", "exit 1")  # what `sys.version_info < (3, 11)` makes an older one do
    program(bare_path / "id", "echo 1000")
    done = set_up(checkout, bare_path, "runtime", PYTHON="python3")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Python 3.11 or newer is needed" in line
    assert "PYTHON=" in line


def test_a_finished_set_up_costs_nothing_and_a_changed_one_is_noticed(checkout: Path, bare_path: Path) -> None:
    program(bare_path / "id", "echo 1000")
    program(bare_path / "apt-get", "exit 1")
    (checkout / ".venv/bin").mkdir(parents=True)
    program(checkout / ".venv/bin/python", f'exec {sys.executable} "$@"')
    state = (
        "{ cat pyproject.toml packaging/constraints.txt packaging/setup.sh; .venv/bin/python -VV; pwd; } | sha256sum"
    )
    stamp = subprocess.run(["bash", "-c", state], cwd=checkout, capture_output=True, check=True).stdout
    (checkout / ".venv/.setup-dev").write_bytes(stamp)
    for level in ("runtime", "dev"):  # what the tests need includes what the service needs
        done = set_up(checkout, bare_path, level)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with (checkout / "packaging/constraints.txt").open("a") as constraints:
        constraints.write("newer==1\n")
    assert set_up(checkout, bare_path, "dev").returncode == 1


def test_an_unknown_level_is_refused(checkout: Path, bare_path: Path) -> None:
    assert "use runtime or dev" in set_up(checkout, bare_path, "everything").stderr


def test_every_direct_dependency_is_pinned() -> None:
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],
    ]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (CHECKOUT / "packaging/constraints.txt").read_text().splitlines()
        if "==" in line
    }
    names = {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in wanted}
    assert names <= pinned


def test_ci_runs_what_a_developer_runs() -> None:
    script = CHECKOUT / ".ci/run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "exec make test </dev/null"
