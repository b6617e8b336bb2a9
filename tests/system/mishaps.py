"""What an operator is told when something goes wrong, and the means to make it go wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quaymaster.model import Job, State
from system.service import COMMAND, Service, until

NOBODY = 65534


def is_calm(text: str) -> None:
    """Whatever happens, an operator never sees a traceback, nor our own mistakes in place of a reason."""
    for word in ("Traceback", "internal error", "Internal error", "Exception in thread", 'File "'):
        assert word not in text, text


def told(service: Service, *texts: str, timeout: float = 30) -> str:
    """The one line of the log that holds all of ``texts``, once it is there."""
    until(lambda: service.lines(*texts), timeout, f"a line with {texts} in:\n{service.log}")
    lines = service.lines(*texts)
    assert len(lines) == 1, "\n".join(lines)
    is_calm(service.log)
    return lines[0]


def parked(service: Service, code: str, *texts: str, path: str = "a") -> Job:
    """The job of ``path`` once it is parked; the log says why, and what next."""
    until(lambda: service.jobs(states=(State.PARKED,), path=os.fsencode(path)), what=f"parked:\n{service.log}")
    (job,) = service.jobs(states=(State.PARKED,), path=os.fsencode(path))
    assert job.error_code == code, job.error
    for text in texts:
        assert text in job.error
    assert job.error in told(service, path, f"Parked: quaymaster jobs retry {job.id}")
    return job


def waiting(service: Service, code: str, *texts: str, path: str = "a") -> Job:
    """The job of ``path`` once it has failed and is to be tried again; the log and ``why`` say why."""
    find = {"states": (State.WAITING,), "path": os.fsencode(path), "error_code": code}
    (job,) = until(lambda: service.jobs(**find), what=f"waiting:\n{service.log}")
    for text in texts:
        assert text in job.error
    until(lambda: service.lines(path, job.error, "Next try in"), what=f"told:\n{service.log}")
    is_calm(service.log)
    return job


def retried(service: Service, job: Job, *how: str) -> None:
    """An operator's ``jobs retry``."""
    code, found = service.cli("jobs", "retry", *(how or (str(job.id),)))
    assert (code, found["retried"]) == (0, [job.id])


def refused(config: str, folder: Path, *wrapper: str) -> str:
    """What ``quaymaster run`` says when it cannot start: one line, exit status 1, no traceback."""
    file = folder / "quaymaster.toml"
    file.write_text(config)
    done = subprocess.run(
        [*wrapper, *COMMAND, "run", "--config", str(file)], capture_output=True, encoding="utf-8", timeout=60
    )
    is_calm(done.stderr)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if "warning:" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("quaymaster: ")
    return lines[0]


@contextmanager
def small_disk(at: Path, options: str) -> Iterator[None]:
    """A tmpfs on ``at``; for root."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def remount(at: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(at)], check=True)


def no_mounts() -> str:
    """Why this process cannot mount, or an empty string."""
    if os.geteuid() != 0:
        return "only root may mount"
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        return "this machine does not let root mount"
    return ""


def no_nobody() -> str:
    """Why the service cannot be run as another user, or an empty string."""
    if os.geteuid() != 0:
        return "only root may become another user"
    if not shutil.which("setpriv"):
        return "setpriv is not installed"
    if subprocess.run([*AS_NOBODY, *COMMAND, "--version"], capture_output=True, cwd="/").returncode:
        return "another user may not read this Python environment"
    return ""


AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
