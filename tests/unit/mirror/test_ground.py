"""M4, P12: what nobody goes on with does not stay in the hidden directory."""

from __future__ import annotations

import os
from pathlib import Path

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
