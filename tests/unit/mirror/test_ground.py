"""M2, M4, P12: one process works in the hidden directory, and what nobody goes on with does not stay there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quaymaster.errors import Unreachable
from quaymaster.mirror.release import Ground


def test_downloads_of_jobs_that_are_no_more_are_removed(tmp_path: Path) -> None:
    ground, asked = Ground(str(tmp_path), "models", lambda: "token", lambda: 1e9), list[int]()

    def wanted() -> set[int]:
        asked.append(1)
        return {7, 8}

    ground.sweep(wanted)
    assert asked == [], "nothing is asked while there is nothing"
    with ground.objects() as directory:
        for name in ("7.boot.part", "8.file", "9.boot.part", "9.file", "70.out", "stray"):
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=directory))
        ground.sweep(wanted)
        assert sorted(os.listdir(directory)) == ["7.boot.part", "8.file"]


ANOTHER = """
import sys
from quaymaster.mirror.release import Ground
with Ground(sys.argv[1], "models", str, float).alone():
    print("in", flush=True)
sys.stdin.read()
"""


def test_two_processes_never_mirror_into_one_directory(tmp_path: Path) -> None:
    """Their downloads are numbered alike: each would write into the other's file."""
    command = [sys.executable, "-c", ANOTHER, str(tmp_path)]
    ground = Ground(str(tmp_path), "models", lambda: "token", lambda: 1e9)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as another:
        assert another.stdin is not None
        assert another.stdout is not None
        assert another.stdout.readline() == b"in\n"
        with pytest.raises(Unreachable, match="Another quaymaster mirrors into"), ground.alone():
            pass
        another.stdin.close()
    with ground.alone():
        pass
    with Ground(str(tmp_path), "models", lambda: "token", lambda: 1e9).alone():
        pass  # after the configuration was read anew
