"""Tab in a real bash, in a real terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quaymaster.model import FileVersion, Identity
from quaymaster.store import Store
from servers.tmux import reason_to_skip, terminal
from system.conftest import Home
from system.service import COMMAND

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip() or "-")


def test_bash_completes_commands_names_and_numbers(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    config = tmp_path / "quaymaster.toml"
    config.write_text(home.config() + '[hook.mail]\non = ["parked"]\ncommand = ["/bin/true"]\n')
    store = Store(str(home.folder / "state"), create=True)
    store.enqueue([FileVersion("landing", b"caf\xe9", Identity(1, 1, 1))])
    store.close()
    script = subprocess.run(
        COMMAND, env={**os.environ, "_QUAYMASTER_COMPLETE": "bash_source"}, capture_output=True, check=True
    ).stdout
    (tmp_path / "completion").write_bytes(script)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/quaymaster"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m quaymaster "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    with terminal(tmp_path, 100, 24, PATH=path, QUAYMASTER_CONFIG=str(config)) as on:
        on.run(["bash", "--norc", "--noprofile"], PS1="$ ")
        on.press("Enter")
        on.says("$")
        on.press(f". {tmp_path}/completion", "Enter")
        for typed, completed in (("quaymaster pau", "quaymaster pause"), ("lan", "pause landing")):
            on.press(typed, "Tab")
            on.says(completed)
        on.press("C-u", "quaymaster jobs drop ", "Tab")
        on.says("quaymaster jobs drop 1")
        on.press("C-u", "quaymaster hooks retry m", "Tab")
        on.says("quaymaster hooks retry mail")
        on.press("C-u", "quaymaster report lan", "Tab")
        on.says("quaymaster report landing")
        on.press("C-u", "quaymaster why /etc/hostn", "Tab")
        on.says("/etc/hostname")
