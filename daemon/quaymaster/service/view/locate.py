"""Which watch a path belongs to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quaymaster.errors import QuaymasterError, UsageError
from quaymaster.model import shown

if TYPE_CHECKING:
    from quaymaster.config import Config, Watch

PATIENCE = 5.0
"""Seconds that a filesystem may take to answer; a hung hard NFS mount never does (nfs(5))."""


@dataclass(frozen=True, slots=True)
class Place:
    watch: Watch
    path: bytes
    """Relative to the watch's path; b"" is the watched directory itself."""

    @property
    def full(self) -> bytes:
        return os.path.join(os.fsencode(self.watch.path), self.path) if self.path else os.fsencode(self.watch.path)

    @property
    def shown(self) -> str:
        return shown(self.full)


def locate(config: Config, path: bytes, patience: float = PATIENCE) -> Place:
    """The place of ``path`` (absolute, or relative to the working directory), which may be gone.

    By its text first: that asks no filesystem, so it also answers for a mount that hangs. Only a path that is nowhere
    by its text is looked up, with the links in its directory and in the watches' paths resolved. Raises
    QuaymasterError when it is under no watch.
    """
    from quaymaster.config.disk import within  # not above: it would load pydantic for --help

    if not path or b"\0" in path:
        raise UsageError("PATH holds a NUL; no path can" if path else "PATH is empty")
    absolute = normal(os.path.join(os.getcwdb(), path))
    roots = {name: os.fsencode(watch.path) for name, watch in config.watches.items()}
    try:
        place = _below(config, roots, absolute) or within(patience, lambda: _resolved(config, roots, absolute))
    except TimeoutError:
        raise QuaymasterError(
            f"Where {shown(absolute)} leads cannot be told, because a filesystem does not answer",
            "Name the file by its watch's own path",
        ) from None
    if place is None:
        mirrored = below({name: os.fsencode(mirror.path) for name, mirror in config.mirrors.items()}, absolute)
        if mirrored is not None:
            raise QuaymasterError(
                f"{shown(absolute)} is under no watch: it is in the mirror {mirrored[0]}",
                "quaymaster prove PATH tells what it came from, and quaymaster mirror what is still missing",
            )
        known = ", ".join(f"{watch.name} ({watch.path})" for watch in config.watches.values())
        raise QuaymasterError(f"{shown(absolute)} is under no watch", f"The watches are: {known}")
    return place


def _resolved(config: Config, roots: Mapping[str, bytes], absolute: bytes) -> Place | None:
    folder, name = os.path.split(absolute)
    real = {watch: os.path.realpath(root) for watch, root in roots.items()}
    return _below(config, real, normal(os.path.join(os.path.realpath(folder), name)))


def _below(config: Config, roots: Mapping[str, bytes], path: bytes) -> Place | None:
    found = below(roots, path)
    return Place(config.watches[found[0]], found[1]) if found else None


def below(roots: Mapping[str, bytes], path: bytes) -> tuple[str, bytes] | None:
    """Which root a path is in, and where in it."""
    for name, root in roots.items():
        inside = root.rstrip(b"/") + b"/"
        if path == root:
            return name, b""
        if path.startswith(inside):
            return name, path[len(inside) :]
    return None


def normal(path: bytes) -> bytes:
    return b"/" + os.path.normpath(path).lstrip(b"/")
