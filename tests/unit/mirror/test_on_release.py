"""M3: the command that is told of releases gets JSON, and what is wrong with it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quaymaster.errors import TemporaryError
from quaymaster.mirror.server import run_command

SAID = {"event": "released", "mirror": "models", "unit": "resnet/1"}


def test_it_gets_a_line_of_json_and_a_small_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    run_command(["/bin/sh", "-c", f"cat > {tmp_path}/said; env > {tmp_path}/env"], SAID, 60)
    assert json.loads((tmp_path / "said").read_text()) == SAID
    environment = (tmp_path / "env").read_text()
    assert "QUAYMASTER_MIRROR=models" in environment
    assert "hunter2" not in environment


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (
            ["/bin/sh", "-c", "echo no such model; exit 3"],
            "/bin/sh: the command ended with exit status 3: no such model",
        ),
        (["/nowhere/program"], "/nowhere/program: the command ended with exit status 127"),
        (["/bin/sh", "-c", "while :; do echo spam; done"], "/bin/sh: the command did not end within 1 s: "),
    ],
)
def test_what_is_wrong_is_said(command: list[str], error: str) -> None:
    with pytest.raises(TemporaryError) as caught:
        run_command(command, SAID, 1)
    assert caught.value.message.startswith(error)
    assert len(caught.value.message) < 6000
