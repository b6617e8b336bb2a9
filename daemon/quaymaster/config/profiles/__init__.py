"""Settings for watches on instruments: one TOML file each, with the keys of [watch.NAME] and their sources."""

from __future__ import annotations

import importlib.resources
import tomllib
from typing import Any


def names() -> list[str]:
    """Of the profiles that come with quaymaster."""
    files = importlib.resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def built_in(name: str) -> dict[str, Any] | None:
    """The settings of a profile that comes with quaymaster; None when there is none of that name."""
    if name not in names():
        return None
    return tomllib.loads(importlib.resources.files(__name__).joinpath(f"{name}.toml").read_text("utf-8"))
