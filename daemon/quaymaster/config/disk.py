"""What a configuration names and this machine does not have. Never an error of the text: mounts come and go."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from quaymaster.config.credentials import read_credentials, read_token, read_url
from quaymaster.config.problems import label
from quaymaster.errors import ConfigError

if TYPE_CHECKING:
    from quaymaster.config.schema import Config

PATIENCE = 5.0
"""Seconds that one path may take to answer; a hung hard NFS mount never does (nfs(5))."""

_Result = TypeVar("_Result")


def within(seconds: float, ask: Callable[[], _Result]) -> _Result:
    """The answer, or TimeoutError. The thread that hangs is left behind: the kernel lets nobody stop it."""
    answers: list[_Result] = []
    failures: list[OSError] = []

    def run() -> None:
        try:
            answers.append(ask())
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True, name="config-disk")
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not answers:
        raise TimeoutError
    return answers[0]


def problems_on_disk(config: Config, environ: Mapping[str, str] = os.environ, patience: float = PATIENCE) -> list[str]:
    """One line each, like those of ConfigError: a path that is missing or of the wrong kind, or without permission.

    Warnings: the service starts all the same, and tries again.
    """
    found: list[str] = []

    def look(keys: tuple[str, ...], path: str, check: Callable[[str], str]) -> None:
        try:
            text = within(patience, lambda: check(path))
        except TimeoutError:
            text = f"{path} does not answer within {patience:g} s; is its mount hung?"
        except OSError as error:
            text = f"{path} cannot be examined ({error.strerror}); check the mount"
        if text:
            found.append(f"{config.where(*keys)}: {label(keys)}: {text}")

    look(("service", "state_dir"), config.service.state_dir, _creatable)
    look(("service", "staging_dir"), config.service.staging_dir, _creatable)
    for key in ("read_token", "act_token"):
        if named := getattr(config.api, key):
            look(("api", key), named, lambda token: _secret(read_token, token, environ))
    for name, destination in config.destinations.items():
        keys = ("destination", name)
        if destination.type == "directory":
            look((*keys, "path"), destination.path, _writable)
        if destination.type == "s3" and destination.ca_bundle is not None:
            look((*keys, "ca_bundle"), destination.ca_bundle, _readable_file)
        if destination.type == "s3" and destination.credentials is not None:
            look(
                (*keys, "credentials"),
                destination.credentials,
                lambda credential: _secret(read_credentials, credential, environ),
            )
    for name, watch in config.watches.items():
        beside = any(config.destinations[to].type == "beside" for to in watch.destinations)
        changes = beside or watch.after != "keep"
        look(("watch", name, "path"), watch.path, _writable if changes else _readable)
        if watch.after_dir is not None:
            look(("watch", name, "after"), watch.after_dir, _creatable)
    for name, hook in config.hooks.items():
        keys = ("hook", name)
        if hook.command:
            look((*keys, "command"), hook.command[0], _program)
        if hook.ca_file is not None:
            look((*keys, "ca_file"), hook.ca_file, _readable_file)
        if hook.secret is not None:
            look((*keys, "secret"), hook.secret, lambda secret: _secret(read_token, secret, environ))
        if hook.url is not None and hook.url.startswith("credential:"):
            look((*keys, "url"), hook.url, lambda url: _secret(read_url, url, environ))
    for name, mirror in config.mirrors.items():
        look(("mirror", name, "path"), mirror.path, _writable)
        if mirror.ovms_config is not None:
            look(("mirror", name, "ovms_config"), mirror.ovms_config, _replaceable)
        if mirror.on_release:
            look(("mirror", name, "on_release"), mirror.on_release[0], _program)
    return found


_USER = "the service's user (quaymaster, as installed)"


def _program(path: str) -> str:
    if not os.path.isfile(path):
        return f"{path} does not exist; install it, or correct the path"
    return "" if os.access(path, os.X_OK) else f"{path} cannot be run; give {_USER} permission"


def _replaceable(path: str) -> str:
    """For a file that is written anew beside itself."""
    if os.path.lexists(path) and not os.access(path, os.R_OK):
        return f"{path} cannot be read; give {_USER} permission"
    return _writable(os.path.dirname(path))


def _readable(path: str) -> str:
    if not os.path.lexists(path):
        return f"{path} does not exist; create it, or mount what it is on"
    if not os.path.isdir(path):
        return f"{path} is not a directory; name the directory"
    if not os.access(path, os.R_OK | os.X_OK):
        return f"{path} cannot be read; give {_USER} permission to read and enter it"
    return ""


def _writable(path: str) -> str:
    if problem := _readable(path):
        return problem
    if not os.access(path, os.W_OK):
        return f"{path} cannot be written to; give {_USER} permission: setfacl or chown"
    return ""


def _creatable(path: str) -> str:
    """For directories that the service makes itself."""
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if above == path:
        return _writable(path)
    if not os.path.isdir(above):
        return f"{path} cannot be created, because {above} is not a directory; choose another"
    if not os.access(above, os.W_OK | os.X_OK):
        return f"{path} cannot be created in {above}; create it and make {_USER} its owner"
    return ""


def _readable_file(path: str) -> str:
    if not os.path.isfile(path):
        return f"{path} is not a file; name the file of the certificate authority, in PEM"
    return "" if os.access(path, os.R_OK) else f"{path} cannot be read; run chmod 0644 on it"


def _secret(read: Callable[[str, Mapping[str, str]], object], name: str, environ: Mapping[str, str]) -> str:
    try:
        read(name, environ)
    except ConfigError as error:
        return str(error)
    return ""
