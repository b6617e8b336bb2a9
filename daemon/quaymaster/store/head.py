"""The head of the custody log in a file beside the database: one that was replaced by an older copy contradicts it."""

from __future__ import annotations

import os
from contextlib import suppress

from quaymaster.store.custody import Head

HEAD_FILE = "custody-head"


class HeadFile:
    """Of one state directory."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, HEAD_FILE)
        self._kept: Head | None = None

    def noted(self) -> Head | None:
        """None when there is none, or what is there is not one."""
        try:
            with open(self._path, encoding="ascii", errors="replace") as file:
                return Head.parsed(file.read(200))
        except OSError:
            return None

    def keep(self, head: Head | None) -> None:
        """Durably, if it is another one than before."""
        if head is None or head == self._kept:
            return
        with suppress(OSError):  # one that is behind does no harm, and a full disk is told by the database
            new = self._path + ".new"
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(f"{head}\n")
                file.flush()
                os.fsync(descriptor)
            os.replace(new, self._path)
            self._kept = head
