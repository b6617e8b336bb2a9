"""Runs quaymaster and kills it with SIGKILL at one step of its work.

    python -m system.killed_at LOG STEP WHEN run --config FILE

A step is a thing that lasts: a commit, a sync, a link, a rename, a removal, a request to S3. It is named by what it is
and where in the code, e.g. "link in publish_name". The steps come from the code itself, so that none is forgotten: each
one that is passed is written to LOG. WHEN is "before" or "after"; with an empty STEP nothing is killed. With
KILLED_AT_OCCURRENCE=N in the environment it is killed the Nth time that it comes there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

SYSTEM_CALLS = ("fsync", "fdatasync", "link", "rename", "replace", "unlink", "mkdir", "rmdir", "utime", "ftruncate")


class Trap:
    def __init__(self, log: str, step: str, when: str) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._step, self._when = step, when
        self._left = int(os.environ.get("KILLED_AT_OCCURRENCE", "1"))
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def around(self, names: list[str], act: Callable[[], Any]) -> Any:
        for name in names:
            with self._lock:
                new = name not in self._seen
                self._seen.add(name)
            if new:
                os.write(self._log, f"{name}\n".encode())
        with self._lock:
            self._left -= self._step in names
            now = self._step in names and self._left <= 0
        if now and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return act()
        finally:  # also when it failed: that is a step too
            if now and self._when == "after":
                os.kill(os.getpid(), signal.SIGKILL)


def set_trap(trap: Trap) -> None:
    def wrapped(call: str) -> Callable[..., Any]:
        original = getattr(os, call)

        def step(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            if not str(caller.f_globals.get("__name__", "")).startswith("quaymaster."):
                return original(*args, **kwargs)
            return trap.around([f"{call} in {caller.f_code.co_qualname}"], lambda: original(*args, **kwargs))

        return step

    for call in SYSTEM_CALLS:
        setattr(os, call, wrapped(call))

    from quaymaster.destinations import disk, s3_line, s3_wire
    from quaymaster.store import db

    renameat2, request, commit = disk._renameat2, s3_wire.Wire.call, db.Database._commit
    sent, answer = s3_line.Line.send, s3_line.Line.answer

    def stepwise_rename(*args: Any) -> Any:
        return trap.around([f"renameat2 in {sys._getframe(1).f_code.co_qualname}"], lambda: renameat2(*args))

    def stepwise_request(self: Any, operation: str, key: str = "", *args: Any, **kwargs: Any) -> Any:
        own = " of our own" if ".quaymaster-" in key else ""
        return trap.around([f"{operation}{own}"], lambda: request(self, operation, key, *args, **kwargs))

    def stepwise_commit(self: Any, batch: list[Any]) -> None:
        names = [f"commit of {entry.act.__qualname__.replace('.<locals>', '')}" for entry in batch]
        trap.around(names, lambda: commit(self, batch))

    def stepwise_sending(self: Any, head: bytes, body: bytes) -> None:
        trap.around(["put_object among others"], lambda: sent(self, head, body))

    def stepwise_answer(self: Any) -> Any:
        return trap.around(["answer to put_object among others"], lambda: answer(self))

    disk._renameat2 = stepwise_rename
    s3_wire.Wire.call = stepwise_request  # type: ignore[method-assign]
    s3_line.Line.send = stepwise_sending  # type: ignore[method-assign]
    s3_line.Line.answer = stepwise_answer  # type: ignore[method-assign]
    db.Database._commit = stepwise_commit  # type: ignore[method-assign]


if __name__ == "__main__":
    log, step, when, *arguments = sys.argv[1:]
    set_trap(Trap(log, step, when))
    from quaymaster.cli import main

    raise SystemExit(main(arguments))
