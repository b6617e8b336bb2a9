"""A file server and its clients: kernels of their own (:mod:`servers.uml`), a true NFS in between."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from servers.uml import ENVIRONMENT, PYTHON, SHARE, Machine
from system.service import until

EXPORT = "/srv"
_LEASE = 10  # seconds; the shortest that nfsd takes. A server that comes back waits so long for its old clients.
_names = itertools.count(1)  # names on the share are never used again: a guest keeps what it saw of this host's files

_SERVE = f"""set -e
modprobe -d /run/modules nfsd
mount -t nfsd nfsd /proc/fs/nfsd
echo {_LEASE} >/proc/fs/nfsd/nfsv4leasetime
echo {_LEASE} >/proc/fs/nfsd/nfsv4gracetime
mkdir -p /var/lib/nfs/v4recovery /run/rpcbind
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
rpcbind -w
exportfs -o rw,no_root_squash,no_subtree_check,insecure,fsid=0 '*:{EXPORT}'
rpc.mountd 2>/dev/null
rpc.nfsd 4
"""


class FileServer:
    """Exports a filesystem on a disk of its own, which survives a cut of its power."""

    def __init__(self, folder: Path, ends: list[socket.socket]) -> None:
        disk = folder / "export.img"
        with open(disk, "wb") as file:
            file.truncate(512 << 20)
        wires = [(end, f"10.0.{number}.1/24") for number, end in enumerate(ends)]
        self.machine = Machine("server", folder, disks=[disk], wires=wires)

    def start(self, *, before: str = "true") -> None:
        """``before`` is a line of shell that runs when the filesystem is there and nobody is served yet."""
        self.machine.start()
        self.machine.check("blkid /dev/ubda || mkfs.ext4 -q /dev/ubda")
        self.machine.check(f"mount /dev/ubda {EXPORT} && {before}")
        self.machine.check(_SERVE)

    def folder(self) -> str:
        """A new directory below the export; its name is what clients mount."""
        name = f"folder-{next(_names)}"
        self.machine.check(f"mkdir {EXPORT}/{name}")
        return name

    def land(self, path: str, content: bytes) -> None:
        """Write a file of the export directly on the server, in one go."""
        held = self.machine.share / f"landing-{next(_names)}"
        held.write_bytes(content)
        self.machine.check(f"cp {SHARE}/{held.name} {EXPORT}/{shlex.quote(path)}")
        held.unlink()

    def files(self, folder: str) -> dict[str, bytes]:
        """Every file below a directory of the export, hidden ones too."""
        return fetched(self.machine, f"{EXPORT}/{folder}")


class Client:
    """A machine that mounts what the server exports, and runs the service."""

    def __init__(self, name: str, folder: Path, end: socket.socket, number: int) -> None:
        self.machine = Machine(name, folder, memory="512M", wires=[(end, f"10.0.{number}.2/24")])
        self._server = f"10.0.{number}.1"

    def start(self) -> None:
        self.machine.start()
        self.machine.check("for m in nfs nfsv3 nfsv4; do modprobe -d /run/modules $m; done")

    def mount(self, folder: str, where: str, version: str, options: str = "hard") -> str:
        """Mount a directory of the export; returns where."""
        if version == "3":
            source, options = f"{self._server}:{EXPORT}/{folder}", f"{options},nolock"
        else:
            source = f"{self._server}:/{folder}"
        self.machine.check(f"mkdir -p {where} && mount.nfs -o vers={version},{options} {source} {where}")
        return where

    def serve(self, config: str) -> GuestService:
        return GuestService(self.machine, config)


class GuestService:
    """``quaymaster run`` in a guest. Its state is in the guest's memory and ends with this object's :meth:`kill`."""

    def __init__(self, machine: Machine, config: str) -> None:
        self._machine = machine
        name = f"service-{next(_names)}"
        self._folder = f"/tmp/{name}"
        text = f'[service]\nstate_dir = "{self._folder}/state"\nstaging_dir = "{self._folder}/staging"\n'
        (machine.share / f"{name}.toml").write_text(text + '[limits]\nstaging_free = "1MiB"\n' + config)
        machine.check(f"mkdir -p {self._folder}/staging && cp {SHARE}/{name}.toml {self._folder}/config.toml")
        run = f"exec {PYTHON} -m quaymaster run --config {self._folder}/config.toml >{self._folder}/log 2>&1"
        self._running = machine.begin(f"echo $$ >{self._folder}/pid; {run}", environment=ENVIRONMENT)
        try:
            until(lambda: "watches" in self.log, 60, "the service is up")
        except AssertionError:
            self.kill()
            raise

    @property
    def log(self) -> str:
        return self._machine.run(f"cat {self._folder}/log").out

    def cli(self, *arguments: str) -> Any:
        """What a command prints with --json, whatever its exit status."""
        done = self._machine.run(
            [PYTHON, "-m", "quaymaster", *arguments, "--json", "--config", f"{self._folder}/config.toml"],
            environment=ENVIRONMENT,
        )
        assert done.out.strip(), f"{arguments}: status {done.status}: {done.err}\n{self.log}"
        return json.loads(done.out)

    def watch(self, name: str) -> dict[str, Any]:
        """One watch, as ``status`` tells it."""
        found: dict[str, Any] = next(watch for watch in self.cli("status")["watches"] if watch["name"] == name)
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """Every job, the oldest first."""
        return sorted(self.cli("jobs")["jobs"], key=lambda job: int(job["id"]))

    def kill(self) -> None:
        with suppress(AssertionError):
            print("the service said:", *self.log.splitlines()[-60:], sep="\n  ")
            self._machine.run(f"kill -9 $(cat {self._folder}/pid); rm -rf {self._folder}", timeout=20)


def fetched(machine: Machine, folder: str) -> dict[str, bytes]:
    """The contents of a directory in a guest."""
    held = machine.share / f"fetched-{next(_names)}"
    machine.check(f"cp -r {folder} {SHARE}/{held.name} || test -d {SHARE}/{held.name}")  # what vanishes meanwhile may
    found = contents(held)
    shutil.rmtree(held)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a directory, by its path below it: hidden ones too, but not the service's notes on its log."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".quaymaster-custody/")}
