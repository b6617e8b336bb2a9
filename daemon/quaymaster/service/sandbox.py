"""What the unit lets the service do, and the drop-in that it lacks (systemd.exec(5)).

The unit shows the service a read-only machine without /home; what its configuration writes besides its own
directories has to be named.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

from quaymaster.config import Config
from quaymaster.config.credentials import DIRECTORY as CREDENTIALS
from quaymaster.config.disk import within
from quaymaster.intake.mounts import is_within

MAIN = "quaymaster.service"
_CONFIGS = "/etc/quaymaster"
_BASES = {"StateDirectory": "/var/lib", "CacheDirectory": "/var/cache", "LogsDirectory": "/var/log"}
_ASKED = ("LoadState", "User", "ProtectSystem", "ProtectHome", "ReadWritePaths", *_BASES)
_PATIENCE = 15.0  # seconds for systemctl
_RESOLVING = 2.0  # seconds for finding where symbolic links lead
_HOMES = ("/home", "/root", "/run/user")

Ask = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Unit:
    """What systemd knows of the unit that serves a configuration."""

    name: str
    user: str = ""
    read_only: bool = False
    """ProtectSystem=strict."""
    homes: str = "no"
    """ProtectHome."""
    writable: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    """Directories that systemd makes for it at its start."""
    credentials: Mapping[str, str] = field(default_factory=dict)
    """Name -> file, or directory, of LoadCredential."""


def unit_name(config_path: str) -> str:
    """The unit whose configuration that is: quaymaster@lab.service for /etc/quaymaster/lab.toml."""
    folder, name = os.path.split(os.path.abspath(config_path))
    stem = name.removesuffix(".toml")
    return f"quaymaster@{stem}.service" if folder == _CONFIGS and stem not in ("quaymaster", name) else MAIN


def _systemctl(unit: str) -> str:
    shown = _output("systemctl", "show", "--no-pager", unit, *(f"--property={name}" for name in _ASKED))
    # Which credentials it loads, ``show`` calls unprintable: that stands in the unit's files alone.
    files = _output("systemctl", "cat", "--no-pager", unit).splitlines() if "LoadState=loaded" in shown else []
    instance = unit.partition("@")[2].removesuffix(".service")
    loads = [line.replace("%i", instance) for line in files if line.startswith("LoadCredential=")]
    return "\n".join([shown, *loads])


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE).stdout  # noqa: S603


def read_unit(name: str, ask: Ask = _systemctl) -> Unit | None:
    """None: systemd does not run here, or does not know the unit."""
    if ask is _systemctl and not shutil.which("systemctl"):
        return None
    try:
        text = ask(name)
    except (OSError, subprocess.SubprocessError):
        return None
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        found.setdefault(key, []).append(value)
    if found.get("LoadState") != ["loaded"]:
        return None
    one = {key: values[-1] for key, values in found.items()}
    loaded = [value.partition(":") for values in found.get("LoadCredential", []) for value in values.split() if value]
    made = [os.path.join(_BASES[key], d) for key in _BASES for d in one.get(key, "").split()]
    return Unit(
        name=name,
        user=one.get("User", ""),
        read_only=one.get("ProtectSystem") == "strict",
        homes=one.get("ProtectHome", "no"),
        writable=tuple(path.lstrip("-+") for path in shlex.split(one.get("ReadWritePaths", ""))),
        made=tuple(made),
        credentials={key: path or key for key, _, path in loaded},
    )


def drop_in(config: Config, unit: Unit, exists: Callable[[str], bool] = os.path.exists) -> list[str]:
    """The lines of ``[Service]`` that the configuration needs and the unit does not have; none if all is well."""
    writes, reads = _places(config)
    missing = [path for path in writes if not _is_writable(path, unit)] if unit.read_only else []
    lines = [f"ReadWritePaths={' '.join(map(_quoted, missing))}"] if missing else []
    at_home = [path for path in (*writes, *reads) if any(is_within(path, home) for home in _HOMES)]
    if at_home and unit.homes in ("yes", "tmpfs"):
        lines.append("ProtectHome=no" if set(at_home) & set(writes) else "ProtectHome=read-only")
    # An older unit, or one of the site's own, that does not hand the directory over.
    for name in config.secrets:
        if not name.startswith("/") and name not in unit.credentials:
            file = os.path.join(CREDENTIALS, name)
            if CREDENTIALS not in unit.credentials.values() and exists(file):
                lines.append(f"LoadCredential={name}:{file}")
    return lines


def _places(config: Config) -> tuple[list[str], list[str]]:
    """Directories that the service writes to besides those of systemd, and those that it only reads."""
    writes: list[str] = [config.service.state_dir, config.service.staging_dir]
    reads: list[str] = []
    for destination in config.destinations.values():
        if destination.type == "directory":
            writes.append(destination.path)
    for watch in config.watches.values():
        beside = any(config.destinations[name].type == "beside" for name in watch.destinations)
        (writes if beside or watch.after != "keep" else reads).append(watch.path)
        if watch.after_dir:
            writes.append(watch.after_dir)
    for mirror in config.mirrors.values():
        writes.append(mirror.path)
        if mirror.ovms_config:
            writes.append(os.path.dirname(mirror.ovms_config))
    return list(dict.fromkeys(map(_real, writes))), list(dict.fromkeys(map(_real, reads)))


def _real(path: str) -> str:
    try:
        return within(_RESOLVING, lambda: os.path.realpath(path))
    except (TimeoutError, OSError):
        return path  # its mount hangs: as it is written


def _is_writable(path: str, unit: Unit) -> bool:
    return any(is_within(path, allowed) for allowed in (*unit.writable, *unit.made))


def _quoted(path: str) -> str:
    # systemd.syntax(7); the dash lets the service start while a mount is away.
    text = f"-{path}".replace("%", "%%")
    return f'"{text}"' if any(c.isspace() or c in "\"'\\" for c in text) else text


@contextmanager
def credentials_for(unit: Unit | None, uid: int) -> Iterator[dict[str, str]]:
    """The environment by which the service finds its credentials: copies that only user ``uid`` reads, as systemd makes
    them, gone at the end. Only root can; for others, and for a unit without any, there is nothing to do."""
    if unit is None or not unit.credentials or os.geteuid() != 0:
        yield {}
        return
    with TemporaryDirectory(prefix="quaymaster-", dir="/run") as folder:
        os.chmod(folder, 0o500)
        for name, path in _files(unit.credentials):
            try:
                with open(path, "rb") as file:
                    secret = file.read(1 << 20)
            except OSError:
                continue  # what misses it says so
            descriptor = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
            with open(descriptor, "wb") as copy:
                copy.write(secret)
                os.fchown(descriptor, uid, -1)
        os.chown(folder, uid, -1)
        yield {"CREDENTIALS_DIRECTORY": folder}


def _files(credentials: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name and path of each; of a directory, each file in it by NAME_FILE (systemd.exec(5))."""
    for name, source in credentials.items():
        path = source if source.startswith("/") else os.path.join("/etc/credstore", source)
        try:
            inside = os.listdir(path)
        except OSError:
            yield name, path
        else:
            yield from ((f"{name}_{file}", os.path.join(path, file)) for file in inside)
