"""What the guest does in the tests of power cuts, with the checkout's own interpreter; prints JSON.

record           lands files and marks in the log what is safely there, while the service runs
examine NAMES    after a cut: what is there, and once the service has run again, what is there then
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from typing import Any

from quaymaster.cli import main
from quaymaster.errors import StoreError
from quaymaster.model import State
from quaymaster.store import Filter, Store
from system.power import FILESYSTEM_SIZE, FILESYSTEMS, HOST, SECTOR, content

SOURCE, STATE, ARCHIVE = (f"/mnt/{name}" for name in FILESYSTEMS)
WATCHES = {
    "kept": {},
    "deleted": {"after": "delete"},
    "moved": {"after": f"move:{SOURCE}/done"},
    # Its files can change between proof and disposal, before that is noticed.
    "graced": {"after": "delete", "after_grace": "1s", "settle": "1s", "settle_closed": "1s"},
}
CONFIG = f"""
[service]
state_dir = "{STATE}/quaymaster"
staging_dir = "/tmp/staging"
[limits]
staging_free = "1MiB"
files = 4
[destination.archive]
type = "directory"
path = "{ARCHIVE}"
""" + "".join(
    f"""
[watch.{name}]
path = "{SOURCE}/{name}"
destinations = ["archive"]
"""
    + "".join(f'{key} = "{value}"\n' for key, value in ({"settle": "0.3s", "settle_closed": "0.1s"} | settings).items())
    for name, settings in WATCHES.items()
)
CONFIG_FILE = "/tmp/quaymaster.toml"
DATABASE = f"{STATE}/quaymaster/quaymaster.db"
COMMAND = [sys.executable, "-m", "quaymaster"]


def shell(line: str) -> None:
    subprocess.run(line, shell=True, check=True, stdout=sys.stderr)


def mount(devices: dict[str, str], options: str) -> None:
    for name, device in devices.items():
        os.makedirs(f"/mnt/{name}", exist_ok=True)
        shell(f"mount -t ext4 -o {options} {device} /mnt/{name}")


# -- recording --


def record(count: int) -> None:
    sectors = FILESYSTEM_SIZE // SECTOR
    shell("modprobe -d /run/modules dm-log-writes")
    shell(f"dmsetup create logged --table '0 {sectors * len(FILESYSTEMS)} log-writes /dev/ubda /dev/ubdb'")
    devices = {name: f"/dev/dm-{number}" for number, name in enumerate(FILESYSTEMS, 1)}
    for number, (name, device) in enumerate(devices.items()):
        shell(f"dmsetup create {name} --table '0 {sectors} linear /dev/dm-0 {number * sectors}'")
        shell(f"mkfs.ext4 -q -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 {device}")
    # Nothing is written by itself for the time of the test: what is not synced is lost.
    shell("cd /proc/sys/vm; echo 60000 >dirty_expire_centisecs; echo 60000 >dirty_writeback_centisecs")
    mount(devices, "commit=600")
    for name in (*WATCHES, "done"):
        os.makedirs(f"{SOURCE}/{name}")
    shell("sync")
    with Running():
        mark("begin")
        for number in range(count):
            watch = ("kept", "deleted", "moved")[number % 3]
            land(f"{watch}/file-{number}", 1)
            if watch == "kept" and number >= 9:
                land(f"{watch}/file-{number - 9}", 2)
            if number == count // 3:
                wait(is_open, 30)
                mark("open")
            time.sleep(0.05)
        wait(is_idle, 60)
        for number in range(3):
            name = f"graced/file-{number}"
            land(name, 1)
            wait(lambda name=name: name in delivered(), 30)  # type: ignore[misc]
            land(name, 2)  # while its first version waits to be deleted
        wait(is_idle, 60)
        mark("end")
    shell(" && ".join(f"umount /mnt/{name} && dmsetup remove {name}" for name in FILESYSTEMS))
    shell("dmsetup remove logged")


def land(name: str, version: int) -> None:
    """As a careful producer does it; the mark says that the file outlives a cut from here on."""
    path = f"{SOURCE}/{name}"
    with open(f"{path}.part", "wb") as file:
        file.write(content(name, version))
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.part", path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    mark(f"{name}:{version}")


def mark(text: str) -> None:
    shell(f"dmsetup message logged 0 mark '{text}'")


# -- after a cut --


def examine(images: str, expected: list[str]) -> None:
    socket.sethostname(HOST)  # it is this host that comes up again: nobody else removes what it left unfinished
    mount({name: f"{images}/{name}.img" for name in FILESYSTEMS}, "loop")
    try:
        before = facts()
        with Running(), suppress(AssertionError):
            wait(lambda: is_idle() and set(expected) <= set(delivered()), 60)
        print(json.dumps([before, facts()]))
    finally:
        shell(" && ".join(f"umount /mnt/{name}" for name in FILESYSTEMS))


class Running:
    """The service, while the block runs; stopped as systemd does it."""

    def __enter__(self) -> None:
        os.makedirs("/tmp/staging", exist_ok=True)
        with open(CONFIG_FILE, "w") as file:
            file.write(CONFIG)
        self._log = open("/share/service.log", "ab")  # as long as the service
        self._process = subprocess.Popen([*COMMAND, "run", "--config", CONFIG_FILE], stdout=self._log, stderr=self._log)

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(300)  # else the next cut would be examined beside it
        self._log.close()


def wait(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.1)


def store() -> Any:
    return closing(Store(f"{STATE}/quaymaster"))


def is_open() -> bool:
    with suppress(StoreError), store() as opened:
        return len(opened.jobs(Filter())) > 0
    return False


def is_idle() -> bool:
    """Every source has a job of its present version, and every job has ended."""
    try:
        with store() as opened:
            jobs = opened.jobs(Filter())
            known = {(job.version.watch, job.version.path, job.version.identity.inode) for job in jobs}
            done = all(job.state.final or job.state is State.PARKED for job in jobs)
    except StoreError:  # it is just being made
        return False
    here = {
        (watch, os.fsencode(entry.name), entry.inode())
        for watch in WATCHES
        for entry in os.scandir(f"{SOURCE}/{watch}")
        if not entry.name.endswith(".part")
    }
    return done and here <= known


def delivered() -> dict[str, str]:
    """name -> SHA-256 of what the ledger says is at the archive now."""
    with store() as opened:
        found = [d for job in opened.jobs(Filter()) for d in opened.deliveries_of(job)]
    found.sort(key=lambda d: d.proof.job)
    return {f"{d.proof.version.watch}/{os.fsdecode(d.proof.version.path)}": d.proof.source.sha256 for d in found}


def facts() -> dict[str, Any]:
    found: dict[str, Any] = {"source": digests(SOURCE), "archive": digests(ARCHIVE)}
    if not os.path.exists(DATABASE):
        return found | {"intact": "missing", "audit": [0, ""], "jobs": [], "delivered": {}}
    with closing(sqlite3.connect(DATABASE)) as database:
        found["intact"] = database.execute("PRAGMA integrity_check").fetchone()[0]
        if not database.execute("PRAGMA user_version").fetchone()[0]:
            return found | {"intact": "empty", "audit": [0, ""], "jobs": [], "delivered": {}}
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = main(["audit", "verify", "--config", CONFIG_FILE])
    with store() as opened:
        jobs = opened.jobs(Filter())
    return found | {
        "audit": [status, said.getvalue()],
        "jobs": [(job.version.watch, os.fsdecode(job.version.path), job.state, job.error) for job in jobs],
        "delivered": delivered(),
    }


def digests(root: str) -> dict[str, str]:
    found = {}
    for folder, folders, names in os.walk(root):
        if "lost+found" in folders:
            folders.remove("lost+found")
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, root)] = hashlib.file_digest(file, "sha256").hexdigest()
            if folder.startswith(f"{ARCHIVE}/.quaymaster-custody") and not name.startswith(".qm-"):
                with open(path, "rb") as file:
                    json.load(file)  # the service's own; raises if it is torn
                del found[os.path.relpath(path, root)]
    return found


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record(int(sys.argv[2]))
    else:
        with open(CONFIG_FILE, "w") as config:
            config.write(CONFIG)
        examine(sys.argv[2], sys.argv[3:])
