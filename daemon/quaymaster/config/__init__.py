"""The configuration: TOML files in, one frozen :class:`Config` or every problem at once out (PRODUCT S5).

documents   the files, read and merged, and on which line each key stands (lines)
values      rules and defaults that a command needs before all of this is there
schema      what may stand in them (table: what all tables are made of; destination and watch: the largest ones;
            units: sizes and durations; machine: what the defaults of [limits] depend on)
rules       what tables have to do with each other
load        all of it, in this order; problems are one line each
disk        what is configured and is missing on this machine
credentials the secrets, which stand elsewhere
show        the effective configuration as TOML and JSON

Each is imported when a name of it is first asked for: checking a configuration takes longer than some commands.
"""

from __future__ import annotations

import signal
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quaymaster.config.credentials import Credentials, read_credentials, read_token, read_url
    from quaymaster.config.destination import (
        BesideDestination,
        Destination,
        DirectoryDestination,
        S3Destination,
    )
    from quaymaster.config.disk import problems_on_disk
    from quaymaster.config.load import DEFAULT_PATH, load, load_sound
    from quaymaster.config.schema import Api, Config, Hook, Limits, Mirror, Service, Verify
    from quaymaster.config.show import to_json, to_toml
    from quaymaster.config.watch import Compress, Watch

__all__ = [
    "DEFAULT_PATH",
    "Api",
    "BesideDestination",
    "Compress",
    "Config",
    "Credentials",
    "Destination",
    "DirectoryDestination",
    "Hook",
    "Limits",
    "Mirror",
    "S3Destination",
    "Service",
    "Verify",
    "Watch",
    "load",
    "load_sound",
    "problems_on_disk",
    "read_credentials",
    "read_token",
    "read_url",
    "to_json",
    "to_toml",
]

_ELSEWHERE = {
    "load": ("DEFAULT_PATH", "load", "load_sound"),
    "credentials": ("Credentials", "read_credentials", "read_token", "read_url"),
    "destination": ("BesideDestination", "Destination", "DirectoryDestination", "S3Destination"),
    "watch": ("Compress", "Watch"),
    "disk": ("problems_on_disk",),
    "show": ("to_json", "to_toml"),
}
"""Which names are not of ``schema``."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = next((room for room, names in _ELSEWHERE.items() if name in names), "schema")
    # Ctrl-C while models are built would come out of pydantic as an error of its own: it waits until they are.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        module = import_module(f"{__name__}.{room}")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # All of them at once: the import has put the module "load" where its function is to be.
    globals().update({each: getattr(module, each) for each in _ELSEWHERE.get(room, (name,))})
    return globals()[name]
