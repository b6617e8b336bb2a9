"""The service as a user runs it: the real process, its log, its commands, and what it remembers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from quaymaster.model import Job, State
from quaymaster.store import Delivery, Filter, Store

COMMAND = [sys.executable, "-m", "quaymaster"]
_T = TypeVar("_T")


def until(condition: Callable[[], _T], timeout: float = 30, what: str = "") -> _T:
    """The first true answer of ``condition``; AssertionError when there is none in ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what or condition}"
        time.sleep(0.02)
    return answer


class Service:
    """``quaymaster run`` on a configuration of its own. Everything is below ``folder``; the state directory is
    ``folder``/state, and must be so in ``config``. May be started again after :meth:`stop` or :meth:`kill`.

    ``wrapper`` is a command that runs the service, e.g. as another user."""

    def __init__(
        self,
        config: str,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.config_file = folder / "quaymaster.toml"
        self.config_file.write_text(config)
        self.log_file = folder / "service.log"
        self.environment = {**os.environ, "RUNTIME_DIRECTORY": str(folder / "run"), **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.seconds_to_ready = 0.0
        self._wrapper = tuple(wrapper)

    # -- its life --

    def start(self, timeout: float = 120) -> Service:
        """Returns when the service has told that it is ready (sd_notify(3))."""
        assert self.process is None, "it runs already"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, self.log_file.open("ab") as log:
            told.bind("")  # a free abstract address: unix(7), autobind
            told.settimeout(0.2)
            address = "@" + told.getsockname().decode().removeprefix("\0")
            began = time.monotonic()
            self.process = subprocess.Popen(
                [*self._wrapper, *COMMAND, "run", "--config", str(self.config_file)],
                env={**self.environment, "NOTIFY_SOCKET": address},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            while True:
                try:
                    if b"READY=1" in told.recv(4096).splitlines():
                        break
                except TimeoutError:
                    pass
                assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log}"
                assert time.monotonic() - began < timeout, f"not ready within {timeout:g} s:\n{self.log}"
            self.seconds_to_ready = time.monotonic() - began
        return self

    def stop(self, timeout: float = 120) -> float:
        """SIGTERM; the seconds until it had ended, which must be with exit status 0."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout)
        self.process = None
        assert status == 0, f"exit status {status}:\n{self.log}"
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def is_killed_at(
        self, step: str, when: str, occurrence: int = 1, timeout: float = 120, *, word: str = "run"
    ) -> bool:
        """Run it, or another command, until it comes to a step for the ``occurrence``-th time, where it is killed
        (system.killed_at); False when it ended otherwise. Raises TimeoutExpired when it does not come there."""
        paths = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent.parent)]
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "KILLED_AT_OCCURRENCE": str(occurrence)}
        command = [sys.executable, "-m", "system.killed_at", str(self.folder / "steps"), step, when]
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                [*command, word, "--config", str(self.config_file)],
                env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            return process.wait(timeout) == -signal.SIGKILL
        finally:
            process.kill()
            process.wait()

    def __enter__(self) -> Service:
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.stop()
        self.kill()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    # -- what it says --

    @property
    def log(self) -> str:
        """Everything that it has printed since it was first started."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def lines(self, *texts: str) -> list[str]:
        """The lines of the log that hold all of ``texts``."""
        return [line for line in self.log.splitlines() if all(text in line for text in texts)]

    def cli(self, *arguments: str | bytes, timeout: float = 120) -> tuple[int, Any]:
        """Run a command with --json: its exit status and what it printed (None if that was nothing)."""
        done = self.command(*arguments, "--json", timeout=timeout)
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None

    def begin(self, *arguments: str | bytes) -> subprocess.Popen[str]:
        """A command whose lines are read while it runs."""
        return subprocess.Popen(
            [*COMMAND, *arguments, "--config", str(self.config_file)], env=self.environment, encoding="utf-8",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def command(self, *arguments: str | bytes, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command as a person does. AssertionError when it has not ended in time, with what it was doing."""
        whole = [*COMMAND, *arguments, "--config", str(self.config_file)]
        with subprocess.Popen(
            whole, env={**self.environment, "PYTHONFAULTHANDLER": "1"}, encoding="utf-8",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # faulthandler writes where each thread is
                _, err = process.communicate()
                raise AssertionError(f"no end within {timeout:g} s of {arguments}:\n{err}") from None
        return subprocess.CompletedProcess(whole, process.returncode, out, err)

    # -- what it remembers --

    @contextmanager
    def store(self) -> Iterator[Store]:
        with closing(Store(str(self.folder / "state"))) as store:
            yield store

    def watch(self, name: str = "landing") -> dict[str, Any]:
        """What ``status`` says of a watch."""
        code, found = self.cli("status")
        assert code == 0
        watch: dict[str, Any] = next(watch for watch in found["watches"] if watch["name"] == name)
        return watch

    def jobs(self, **which: Any) -> list[Job]:
        with self.store() as store:
            return store.jobs(Filter(**which))

    def states(self) -> Counter[State]:
        """How many jobs are in each state."""
        with self.store() as store:
            counts = store.counts()
        return Counter({s: sum(states.get(s, (0, 0))[0] for states in counts.values()) for s in State})

    def deliveries(self, path: str | bytes, watch: str = "landing") -> list[Delivery]:
        """Every delivery of a file, oldest first."""
        with self.store() as store:
            return store.deliveries(watch, os.fsencode(path))

    def progress(self) -> dict[str, dict[str, Any]]:
        """What the running jobs are doing, by job number, as of the last second."""
        with self.store() as store:
            found: dict[str, dict[str, Any]] = store.reports().get("progress", (0.0, {"jobs": {}}))[1]["jobs"]
        return found

    def until_done(self, count: int, timeout: float = 60) -> None:
        """Wait until ``count`` jobs are done and none is open; fails at once when one is parked."""

        def look() -> bool:
            states = self.states()
            if states[State.PARKED]:
                errors = [f"{job.version.path!r}: {job.error}" for job in self.jobs(states=(State.PARKED,))]
                raise AssertionError("parked: " + "\n".join(errors))
            still = sum(number for state, number in states.items() if not state.final)
            return states[State.DONE] >= count and not still

        until(look, timeout, f"{count} jobs done")
