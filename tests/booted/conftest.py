"""Packages of this checkout, and a fresh system with one of them installed for every test."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servers.booted import Booted, booted, reason_to_skip, until
from servers.seaweed import Seaweed

CHECKOUT = Path(__file__).parents[2]
NEWER = "99.0.0"


@pytest.fixture(scope="session")
def bootable(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Skips the test when no system of a release can be booted here, and says why."""
    known: dict[str, str] = {}

    def require(release: str) -> None:
        if release not in known:
            known[release] = reason_to_skip(release) or _trial(release, tmp_path_factory.mktemp("trial"))
        if known[release]:
            pytest.skip(known[release])

    return require


def _trial(release: str, scratch: Path) -> str:
    try:
        with booted(f"qm-trial-{os.getpid()}", scratch, release):
            return ""
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        return f"{release} cannot be booted on this machine: {error}"


@pytest.fixture(scope="session")
def package() -> Callable[..., Path]:
    """The package of this checkout for a target (bookworm, trixie, rpm), built unless one of the same content is
    cached; ``version`` is another one than the checkout's own."""
    known: dict[tuple[str, str], Path] = {}

    def build(target: str = "bookworm", version: str = "") -> Path:
        if (target, version) not in known:
            command = [str(CHECKOUT / "packaging/build.sh"), "--cached", target]
            done = subprocess.run(
                command + (["--version", version] if version else []), stdin=subprocess.DEVNULL, capture_output=True,
                encoding="utf-8", errors="replace",
            )  # fmt: skip
            if done.returncode:
                why = f"no package could be built: {' '.join(done.stderr.strip().splitlines()[-3:])}"
                pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
            known[target, version] = Path(done.stdout.split()[-1])
        return known[target, version]

    return build


class Machine:
    """A booted system with quaymaster, a landing and an archive below /srv."""

    def __init__(self, system: Booted) -> None:
        self.system = system
        for name in ("landing", "archive"):
            self.folder(name)

    # -- setting up --

    def folder(self, name: str) -> Path:
        """A directory below /srv that everybody may write to, as the host sees it."""
        path = self.system.srv / name
        path.mkdir(exist_ok=True)
        path.chmod(0o777)
        return path

    def install(self, package: Path) -> str:
        target = f"/root/{package.name}"
        shutil.copy(package, self.system.path(target))
        # As unattended upgrades do: a changed configuration is kept, and nobody is asked.
        return self.system.run("dpkg", "--force-confdef", "--force-confold", "--install", target, timeout=120).out

    def configure(
        self, watch: str = "", destinations: str = "", name: str = "quaymaster", landing: str = "/srv/landing"
    ) -> None:
        """The configuration ``name``.toml: a watch on ``landing`` that settles at once; arguments are TOML."""
        if not destinations:
            destinations = '[destination.archive]\ntype = "directory"\npath = "/srv/archive"\n'
        lines = {"destinations": '["archive"]', "settle": '"0.4s"', "settle_closed": '"0.1s"', "key": '"{path}"'}
        own = [line for line in watch.splitlines() if line.strip()]
        lines = {k: v for k, v in lines.items() if k not in {line.partition("=")[0].strip() for line in own}}
        text = ["[limits]", 'staging_free = "1MiB"', destinations, "[watch.landing]", f'path = "{landing}"']
        text += [*own, *(f"{key} = {value}" for key, value in lines.items()), ""]
        self.system.put(f"/etc/quaymaster/{name}.toml", "\n".join(text))

    def drop_in(self, *lines: str, unit: str = "quaymaster.service", name: str = "test") -> None:
        """Settings of ``[Service]``."""
        self.system.put(f"/etc/systemd/system/{unit}.d/{name}.conf", "\n".join(["[Service]", *lines, ""]))
        self.system.run("systemctl", "daemon-reload")

    def start(self, unit: str = "quaymaster.service") -> None:
        self.system.run("systemctl", "start", "--no-block", unit)

        def active() -> bool:
            shown = self.system.show(unit, "ActiveState", "NRestarts")
            failed = shown["ActiveState"] == "failed" or int(shown["NRestarts"]) > 0
            assert not failed, f"{unit} did not start: {shown}\n" + "\n".join(self.log())
            return shown["ActiveState"] == "active"

        until(active, 45, f"{unit} is active")

    # -- working --

    def land(self, name: str, content: bytes, folder: str = "landing") -> None:
        (self.system.srv / folder / name).write_bytes(content)

    def arrived(self, name: str, content: bytes, folder: str = "archive") -> bool:
        path = self.system.srv / folder / name
        return path.exists() and path.read_bytes() == content

    def until_arrived(self, name: str, content: bytes, folder: str = "archive", timeout: float = 30) -> None:
        try:
            until(lambda: self.arrived(name, content, folder), timeout, f"{name} arrives")
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(self.log())) from None

    def quaymaster(self, *arguments: str, check: bool = True, timeout: float = 60) -> Any:
        return self.system.run("quaymaster", *arguments, check=check, timeout=timeout)

    def pid(self, unit: str = "quaymaster.service") -> int:
        return int(self.system.show(unit, "MainPID")["MainPID"])

    def host_pid(self) -> int:
        """The service's process as the host numbers it."""
        inside = self.pid()
        for name in os.listdir("/proc"):
            try:
                lines = Path(f"/proc/{name}/status").read_text().splitlines() if name.isdigit() else []
            except OSError:
                continue
            numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
            same = os.path.exists(f"/proc/{name}/ns/pid") and len(numbers) > 1 and numbers[-1] == str(inside)
            if same and os.readlink(f"/proc/{name}/ns/pid") == os.readlink(f"/proc/{self.system.leader}/ns/pid"):
                return int(name)
        raise AssertionError("the service does not run")

    def restarts(self) -> int:
        return int(self.system.show("quaymaster.service", "NRestarts")["NRestarts"])

    def events(self, kind: str, *matches: str) -> list[dict[str, Any]]:
        return self.system.journal(f"QUAYMASTER_EVENT={kind}", *matches)

    def log(self) -> list[str]:
        return [str(entry.get("MESSAGE")) for entry in self.system.journal("-u", "quaymaster*")][-60:]


@pytest.fixture
def bare(
    bootable: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Machine]:
    """A booted system without quaymaster."""
    release = getattr(request, "param", "bookworm")
    bootable(release)
    folder = tmp_path_factory.mktemp("booted")
    name = f"qm-{os.getpid()}-{time.monotonic_ns() // 1_000_000}"
    with booted(name, folder, release) as system:
        yield Machine(system)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def machine(bare: Machine, package: Callable[..., Path]) -> Machine:
    """A booted system with the deb of this checkout, configured, allowed to write to /srv/archive, not started."""
    bare.install(package())
    bare.configure()
    bare.drop_in("ReadWritePaths=/srv/archive")
    return bare


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    directory = tmp_path_factory.mktemp("seaweed")
    with Seaweed(directory) as server:
        yield server
    shutil.rmtree(directory, ignore_errors=True)
