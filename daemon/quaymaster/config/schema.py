"""The configuration as frozen models. Each field is a key of the TOML file; its docstring says what the unit is.

What is wrong with one value is said here, as a ValueError "what is wrong; what to do"; load.py puts file, line and key
before it. The tables of destinations and watches have files of their own; what two tables have to do with each other is
in rules.py.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from quaymaster.config import show, values
from quaymaster.config.bandwidth import Bandwidth, Rates
from quaymaster.config.destination import Destination, S3Destination
from quaymaster.config.machine import Machine
from quaymaster.config.table import HOST, AbsolutePath, Bytes, Duration, Globs, Table, Texts, credential_name
from quaymaster.config.units import GIB, MIB, SHORTEST_WAIT
from quaymaster.config.values import quoted
from quaymaster.config.watch import Watch

Places = dict[tuple[str, ...], str]
"""Dotted key -> "FILE:LINE"."""


class Service(Table):
    state_dir: AbsolutePath = "/var/lib/quaymaster"
    staging_dir: AbsolutePath = "/var/cache/quaymaster"
    host: str = Field(default_factory=values.host_name)
    """What ``{host}`` in a key, and the metadata of objects, call this machine."""
    stop_timeout: Annotated[float, Duration(most=3600)] = 30.0

    @field_validator("host")
    @classmethod
    def _plain_host(cls, host: str) -> str:
        if not HOST.fullmatch(host):
            raise ValueError(f"{quoted(host)} is not a host name; use letters, digits, dots and hyphens")
        return host


class Limits(Table):
    memory: Annotated[int, Bytes(least=16 * MIB)] = Field(default_factory=lambda: Machine.here().memory // 4)
    """Bytes for all buffers together. In the file also a percentage of the memory that this process may use."""
    files: int = Field(values.FILES, ge=1, le=1000)
    """In flight at once."""
    parts: int = Field(values.PARTS, ge=1, le=100)
    """In flight at once per file."""
    parallel: bool = True
    """False: one file, one part and one compressing thread at a time, whatever the others say."""
    compress_threads: int = Field(default_factory=lambda: Machine.here().compress_threads, ge=1, le=256)
    bandwidth: Annotated[Bandwidth, Rates()] = Bandwidth()
    """Of all files to all destinations together."""
    staging: Annotated[int | None, Bytes(word="none")] = None
    """Ceiling of the staging directory in bytes."""
    staging_free: Annotated[int, Bytes()] = GIB
    """Bytes that must stay free on the file system of the staging directory."""


class Verify(Table):
    """The copies at the destinations are compared with the ledger on a schedule (PRODUCT I7)."""

    interval: Annotated[float | None, Duration(SHORTEST_WAIT, word="none")] = None
    """Seconds from the beginning of one run to that of the next; None: only ``quaymaster verify`` does it."""
    level: Literal["listing", "checksum", "readback"] = "checksum"
    budget: Annotated[int | None, Bytes(word="none")] = 10 * GIB
    """Bytes that one run may read back."""


class Api(Table):
    """HTTP: the page, figures and control (PRODUCT O2, X5)."""

    socket: AbsolutePath = "/run/quaymaster/api.sock"
    """The Unix socket; who may open it may read and act."""
    listen: str | None = None
    """ADDRESS:PORT to listen on with TCP as well."""
    hosts: Texts = ()
    """Names in Host that are served beside the loopback's and the address of ``listen``."""
    read_token: str | None = None
    """A name for :func:`read_token`; None: on a loopback address everybody may read."""
    act_token: str | None = None
    """The same; None: nothing can be changed over TCP."""

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        """As "127.0.0.1:8440" or "[::1]:8440"."""
        if value is None or value == "none":
            return None
        host, _, port = value.rpartition(":")
        host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f'{quoted(value)} is not an address and port; write one like "127.0.0.1:8440"') from None
        if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
            raise ValueError(f'{quoted(value)} has no port from 1 to 65535; write one like "127.0.0.1:8440"')
        return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"

    @field_validator("hosts")
    @classmethod
    def _host_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not HOST.fullmatch(name):
                raise ValueError(f"{quoted(name)} is not a host name; write it without a scheme, port or path")
        return tuple(name.lower().rstrip(".") for name in names)

    @field_validator("read_token", "act_token")
    @classmethod
    def _token_name(cls, name: str | None) -> str | None:
        return credential_name(name)

    @property
    def address(self) -> tuple[str, int] | None:
        """Of ``listen``."""
        if self.listen is None:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)


HookEvent = Literal["delivered", "parked", "unit-complete", "outage", "recovered", "integrity-failure", "released"]


class Hook(Table):
    """Who is told what (PRODUCT O4): exactly one of ``command`` and ``url``."""

    name: str
    on: Annotated[tuple[HookEvent, ...], Field(strict=False)]
    watches: Texts = ()
    """Only what these watches do; empty: all, and the destinations."""
    command: Texts = ()
    """A program, by its absolute path, and its arguments."""
    url: str | None = None
    """Where the event is sent by POST. "credential:NAME": it stands in a file of its own, for it is a secret itself."""
    secret: str | None = None
    """A name for :func:`read_token`: what the requests are signed with."""
    ca_file: AbsolutePath | None = None
    timeout: Annotated[float, Duration(SHORTEST_WAIT, 3600)] = 30.0
    """Seconds that a command may run, or a request may take."""
    connect_timeout: Annotated[float, Duration(SHORTEST_WAIT, 3600)] = 10.0
    parallel: int = Field(4, ge=1, le=64)
    """Events told at once; never two of the same file, unit, watch or destination."""
    give_up: Annotated[float | None, Duration(SHORTEST_WAIT, word="never")] = None
    """Seconds after the event from which on a failure parks it; None: it is tried for ever."""

    @field_validator("on")
    @classmethod
    def _something(cls, on: tuple[HookEvent, ...]) -> tuple[HookEvent, ...]:
        if not on:
            raise ValueError("is empty; list at least one")
        return on

    @field_validator("command")
    @classmethod
    def _whole_command(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if command and not command[0].startswith("/"):
            raise ValueError(
                f"{quoted(command[0])} is not an absolute path; no shell looks for it: write the whole path"
            )
        if any("\0" in word for word in command):
            raise ValueError("holds a NUL; no argument can")
        return command

    @field_validator("url")
    @classmethod
    def _hook_url(cls, url: str | None) -> str | None:
        return values.hook_url(url)

    @field_validator("secret")
    @classmethod
    def _secret_name(cls, name: str | None) -> str | None:
        return credential_name(name)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.command) == bool(self.url):
            both = "has both command and url; remove one" if self.url else "has neither command nor url; write one"
            raise ValueError(both)
        if self.command and (self.secret or self.ca_file):
            raise ValueError("has secret or ca_file, which are for url; remove them")
        return self


class Mirror(Table):
    """A directory that is kept in step with a prefix of a bucket (PRODUCT M)."""

    name: str
    source: str
    """The name of a destination of type "s3": its bucket, endpoint and credentials."""
    prefix: str = ""
    """What is mirrored, below the prefix of the source."""
    path: AbsolutePath
    interval: Annotated[float, Duration(SHORTEST_WAIT)] = values.MIRROR_INTERVAL
    """Seconds between two listings."""
    include: Globs = ()
    exclude: Globs = ()
    layout: Literal["name/version", "name"] = "name/version"
    """What is released as one: each version's directory, or each directory at the top."""
    marker: str | None = None
    """Name of the object that says "all of this is there"; a manifest is verified too."""
    require_proof: bool = False
    """Refuse objects of whose content nothing tells a digest."""
    trust_etag: bool = True
    """Whether an ETag without parts is the MD5 of its object; not so with SSE-KMS and SSE-C."""
    downloads: int = Field(4, ge=1, le=64)
    """Objects at once."""
    keep_old: Annotated[float, Duration()] = values.MIRROR_KEEP_OLD
    """Seconds for which what was replaced or removed stays on the disk, hidden: for a server that has it open."""
    keep_versions: int | None = Field(None, ge=1)
    """Of each model, the newest numeric versions; None: all."""
    on_delete: Literal["keep", "remove"] = "keep"
    """What becomes of what the bucket does not list any more."""
    delete_grace: Annotated[float, Duration()] = values.MIRROR_DELETE_GRACE
    """Seconds for which it must have been missing before it is removed."""
    disk_free: Annotated[int, Bytes()] = GIB
    """Bytes that must stay free on the file system of ``path``."""
    ovms_config: AbsolutePath | None = None
    """config.json of an OpenVINO Model Server; its model_config_list is kept in step."""
    ovms_base_path: AbsolutePath | None = None
    """``path`` as the model server sees it; None: the same."""
    ovms_url: str | None = None
    """The server's REST address: each release is confirmed there."""
    ovms_timeout: Annotated[float, Duration(SHORTEST_WAIT, 3600)] = 60.0
    """Seconds that a version may take until it is AVAILABLE."""
    on_release: Texts = ()
    """A command and its arguments, run after each release with JSON on its standard input."""
    on_release_timeout: Annotated[float, Duration(SHORTEST_WAIT, 3600)] = 60.0

    @field_validator("prefix")
    @classmethod
    def _clean_prefix(cls, prefix: str) -> str:
        return values.clean_prefix(prefix)

    @field_validator("marker")
    @classmethod
    def _marker_name(cls, name: str | None) -> str | None:
        return values.plain_name(name, "quaymaster-manifest.json")

    @field_validator("ovms_url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        return values.plain_endpoint(url)

    @field_validator("on_release")
    @classmethod
    def _command(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if command and (not command[0].startswith("/") or any("\0" in word for word in command)):
            raise ValueError(f'{quoted(command[0])} is no absolute path; write ["/usr/bin/program", "argument"]')
        return command

    @model_validator(mode="after")
    def _server_needs_layout(self) -> Self:
        if self.ovms_config and self.layout != "name/version":
            raise ValueError('of OpenVINO Model Server is versioned; write layout = "name/version"')
        if self.ovms_url and not self.ovms_config:
            raise ValueError("is used only with a config.json; write ovms_config too")
        return self


class Config(Table):
    """All that the operator decided. Two configs mean the same if their ``digest`` is the same."""

    service: Service = Field(default_factory=Service)
    limits: Limits = Field(default_factory=Limits)
    verify: Verify = Field(default_factory=Verify)
    api: Api = Field(default_factory=Api)
    destinations: dict[str, Destination] = Field(default_factory=dict)
    watches: dict[str, Watch] = Field(default_factory=dict)
    hooks: dict[str, Hook] = Field(default_factory=dict)
    mirrors: dict[str, Mirror] = Field(default_factory=dict)
    compression_disabled: bool = False
    """QUAYMASTER_DISABLE_COMPRESSION was set: no file is compressed, whatever its watch says."""
    sources: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """The files read, in order."""
    digest: str = ""
    """SHA-256, in hex, of what is in effect (not of the files' text); no secret is in it."""

    _places: Places = PrivateAttr(default_factory=dict)

    def where(self, *keys: str) -> str:
        """ "FILE:LINE" of a key such as ``("watch", "sequencer", "path")``, or "default"."""
        return self._places.get(keys, "default")

    @property
    def only_read(self) -> frozenset[str]:
        """Destinations that nothing is delivered to: mirrors take from them, and may have no permission to write."""
        delivered = {name for watch in self.watches.values() for name in watch.destinations}
        return frozenset(mirror.source for mirror in self.mirrors.values()) - delivered

    @property
    def secrets(self) -> list[str]:
        """Names or paths of every file with a key pair, token or URL that nobody else may read, each once."""
        found = [d.credentials for d in self.destinations.values() if isinstance(d, S3Destination)]
        found += [self.api.read_token, self.api.act_token, *(hook.secret for hook in self.hooks.values())]
        urls = [hook.url or "" for hook in self.hooks.values()]
        found += [url.removeprefix("credential:") for url in urls if url.startswith("credential:")]
        return list(dict.fromkeys(name for name in found if name))

    def effective(self) -> list[tuple[str, object, str]]:
        """Every setting in effect: dotted key, value (bytes, seconds; None where nothing is set), and from where."""
        return [(".".join(keys), value, self.where(*keys)) for keys, value, _ in show.settings(self)]
