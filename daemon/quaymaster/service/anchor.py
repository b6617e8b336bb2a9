"""That nothing is written where a share is not mounted (PRODUCT W6, P8).

What each watched directory, and each directory that files are delivered or moved to, stands on is kept in the store.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from quaymaster.errors import SourceUnavailable, StoreError, Unreachable
from quaymaster.intake.footing import ACCEPTED, Memory
from quaymaster.intake.mounts import Ground, filesystem_of, is_empty, mark_of, read_mountinfo

if TYPE_CHECKING:
    from quaymaster.store import Store

Anchor = Callable[[int | None], None]
"""Given a descriptor of a destination's directory, or None when it cannot be opened. Raises Unreachable when it is not
on the filesystem that it should be on."""

_SURE_FOR = 5.0
"""Seconds for which a directory counts as looked at."""


def anywhere(descriptor: int | None) -> None:
    """For a directory that may stand on anything."""


def of_watch(name: str) -> str:
    """Where the store keeps what a watch stands on."""
    return f"mount:watch:{name}"


def of_move(name: str) -> str:
    """The same for the directory that a watch moves its files to."""
    return f"mount:after:{name}"


def of_destination(name: str) -> str:
    return f"mount:destination:{name}"


def memory(store: Store, kept_as: str, name: str, path: str) -> Memory:
    """The memory of one directory; ``name`` is what an operator calls it by."""

    def recall() -> Mapping[str, Any]:
        return store.reports().get(kept_as, (0.0, {}))[1]

    return Memory(name, path, recall, lambda body: store.report(kept_as, body))


def accept(store: Store, kept_as: str, now: float) -> Mapping[str, Any] | None:
    """Forget what a directory stands on: whatever the service finds next is right. Returns what was remembered, None
    when that was nothing."""
    was = store.reports().get(kept_as, (0.0, {}))[1]
    if not was or ACCEPTED in was:
        return None
    store.report(kept_as, {ACCEPTED: now})
    return was


class Remembered:
    """An anchor of a directory that is not watched. Thread-safe."""

    def __init__(self, path: str, memory: Memory, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path, self._memory, self._monotonic = path, memory, monotonic
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._until = 0.0

    def __call__(self, descriptor: int | None) -> None:
        with self._lock:
            if descriptor is not None and self._is_sure(descriptor):
                return
            try:
                self._look(descriptor)
            except SourceUnavailable as error:
                raise Unreachable(error.message, error.advice) from None
            except StoreError as error:
                raise Unreachable(f"What {self._path} stands on is not known now: {error}") from None

    def _is_sure(self, descriptor: int) -> bool:
        status = os.fstat(descriptor)
        return self._seen == (status.st_dev, status.st_ino) and self._monotonic() < self._until

    def _look(self, descriptor: int | None) -> None:
        if self._seen is None:
            self._memory.recall()
        self._seen, table = None, read_mountinfo()
        self._memory.require_mount(table)
        if descriptor is None:
            return
        real = os.readlink(f"/proc/self/fd/{descriptor}")
        filesystem, status = filesystem_of(real, table), os.fstat(descriptor)
        mark = mark_of(filesystem, descriptor)
        self._memory.require_same(mark)
        populated = self._memory.populated or not is_empty(descriptor)
        self._memory.note(real, filesystem, mark, populated=populated)
        self._seen, self._until = (status.st_dev, status.st_ino), self._monotonic() + _SURE_FOR


def beside(ground_of: Callable[[], Ground | None]) -> Anchor:
    """Of the destination that is a watch's own directory: it must be the one that is watched."""

    def check(descriptor: int | None) -> None:
        ground = ground_of()
        status = os.fstat(descriptor) if descriptor is not None else None
        if ground is None or (status and (status.st_dev, status.st_ino) != (ground.device, ground.inode)):
            raise Unreachable("The watched directory is away", "It goes on when it is back: quaymaster status")

    return check
