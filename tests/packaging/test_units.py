"""S4: the units say what systemd understands, and leave the service little to do harm with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "units"
SERVICES = ["quaymaster.service", "quaymaster@.service"]

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed here")


def settings(name: str) -> list[str]:
    """The unit without its comments."""
    lines = (UNITS / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_systemd_knows_every_setting(tmp_path: Path, name: str) -> None:
    # verify also looks for the program, which a checkout has not installed.
    unit = tmp_path / name.replace("@", "@lab")
    text = (UNITS / name).read_text()
    unit.write_text(text.replace("=/usr/bin/quaymaster ", "=/bin/true "))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if unit.name in line]
    assert ours == [], "it exits 0 also for settings that it does not know"


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_the_exposure_is_at_most_1_5(name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", UNITS / name],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-200:]


def test_an_instance_differs_from_the_main_service_in_its_names_alone() -> None:
    expected = []
    for line in settings("quaymaster.service"):
        line = line.replace("/etc/quaymaster/quaymaster.toml", "/etc/quaymaster/%i.toml")
        if line.startswith("Description="):
            line += " (%i)"
        if line.endswith("Directory=quaymaster"):
            line += "/%i"
        expected.append(line)
    assert settings("quaymaster@.service") == expected


def test_it_works_with_the_systemd_of_debian_12() -> None:
    assert "Type=notify" in settings("quaymaster.service"), "notify-reload needs systemd 253"


def test_the_host_comes_first_and_a_hang_is_noticed() -> None:
    found = dict(line.split("=", 1) for line in settings("quaymaster.service") if "=" in line)
    assert int(found["CPUWeight"]) < 100
    assert int(found["IOWeight"]) < 100
    assert found["WatchdogSec"]


@pytest.mark.skipif(not shutil.which("journalctl"), reason="journalctl is not installed here")
def test_journalctl_compiles_the_catalog(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    catalog = UNITS / "catalog/quaymaster.catalog"
    shutil.copy(catalog, folder)
    subprocess.run(["journalctl", "--update-catalog", f"--root={tmp_path}"], check=True, capture_output=True)
    listed = subprocess.run(
        ["journalctl", "--list-catalog", "--no-pager", f"--root={tmp_path}"], check=True, capture_output=True, text=True
    )
    entries = catalog.read_text().count("\n-- ")
    assert len([line for line in listed.stdout.splitlines() if " quaymaster: " in line]) == entries
