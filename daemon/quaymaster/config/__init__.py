"""The configuration: TOML files in, one frozen :class:`Config` or every problem at once out (PRODUCT S5).

documents   the files, read and merged, and on which line each key stands (lines)
schema      what may stand in them (units: sizes and durations; machine: what the defaults of [limits] depend on)
rules       what tables have to do with each other
load        all of it, in this order; problems are one line each
disk        what is configured and is missing on this machine
credentials the secrets, which stand elsewhere
show        the effective configuration as TOML and JSON
"""

from quaymaster.config.credentials import Credentials, read_credentials, read_token
from quaymaster.config.disk import problems_on_disk
from quaymaster.config.load import DEFAULT_PATH, load
from quaymaster.config.schema import (
    Api,
    BesideDestination,
    Compress,
    Config,
    Destination,
    DirectoryDestination,
    Limits,
    S3Destination,
    Service,
    Verify,
    Watch,
)
from quaymaster.config.show import to_json, to_toml

__all__ = [
    "DEFAULT_PATH",
    "Api",
    "BesideDestination",
    "Compress",
    "Config",
    "Credentials",
    "Destination",
    "DirectoryDestination",
    "Limits",
    "S3Destination",
    "Service",
    "Verify",
    "Watch",
    "load",
    "problems_on_disk",
    "read_credentials",
    "read_token",
    "to_json",
    "to_toml",
]
