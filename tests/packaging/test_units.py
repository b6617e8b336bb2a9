"""S4: the unit says what systemd understands, and leaves the service little to do harm with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "units/quaymaster.service"

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed here")


def test_systemd_knows_every_setting(tmp_path: Path) -> None:
    # verify also looks for the program, which a checkout has not installed.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("ExecStart=/usr/bin/quaymaster ", "ExecStart=/bin/true "))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert ours == [], "it exits 0 also for settings that it does not know"


def test_the_exposure_is_at_most_1_5() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", UNIT],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-200:]
