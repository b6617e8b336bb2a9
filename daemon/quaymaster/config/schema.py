"""The configuration as frozen models. Each field is a key of the TOML file; its docstring says what the unit is.

What is wrong with one value is said here, as a ValueError "what is wrong; what to do"; load.py puts file, line and key
before it. What two tables have to do with each other is in rules.py.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator
from pydantic_core import PydanticCustomError, core_schema

from quaymaster.config import show, values
from quaymaster.config.bandwidth import Bandwidth, Rates
from quaymaster.config.machine import Machine
from quaymaster.config.runs import DEEPEST, Layout, Whole, glob_problem, path_matches
from quaymaster.config.units import GIB, MIB, SHORTEST_WAIT, Seconds, Size
from quaymaster.config.values import quoted
from quaymaster.keys import template_problem
from quaymaster.model import MANIFEST

Places = dict[tuple[str, ...], str]
"""Dotted key -> "FILE:LINE"."""


class Bytes(Size):
    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))


class Duration(Seconds):
    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))


def _absolute(path: str) -> str:
    if path.startswith("~"):
        raise ValueError(f'{quoted(path)} begins with "~", which no service has; write the absolute path')
    if not path.startswith("/"):
        raise ValueError(f'{quoted(path)} is relative; write the absolute path, beginning with "/"')
    if "\0" in path:
        raise ValueError(f"{quoted(path)} holds a NUL; no path can")
    if ".." in path.split("/"):
        raise ValueError(f'{quoted(path)} holds ".."; write the path without it')
    return "/" + os.path.normpath(path).lstrip("/")


def _globs(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The gitignore patterns that cannot be compiled, or that can never match anything (gitignore(5))."""
    for pattern in patterns:
        problem = ""
        if not pattern.strip() or pattern.strip("!/ ") == "" or pattern.startswith("#"):
            problem = "matches nothing; remove it"
        elif "\n" in pattern or "\0" in pattern:
            problem = 'holds a line break or NUL; write "?" in its place'
        elif (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            problem = 'ends in a lone "\\"; remove it'
        elif any(low > high for low, high in re.findall(r"(?s)(?<=[\[!^])([^\]])-([^\]])", pattern)):
            problem = "has a range that runs backwards; write the lower character first"
        if problem:
            raise ValueError(f"{quoted(pattern)} {problem}")
    return patterns


_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")

AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]  # TOML arrays arrive as lists
Globs = Annotated[Texts, AfterValidator(_globs)]


def _unit_files(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        if problem := glob_problem(pattern):
            raise ValueError(problem)
    return patterns


UnitFiles = Annotated[Texts, AfterValidator(_unit_files)]


def _credential_name(name: str | None) -> str | None:
    if name is None:
        return None
    return _absolute(name) if name.startswith("/") else values.credential_name(name)


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class Service(_Table):
    state_dir: AbsolutePath = "/var/lib/quaymaster"
    staging_dir: AbsolutePath = "/var/cache/quaymaster"
    host: str = Field(default_factory=values.host_name)
    """What ``{host}`` in a key, and the metadata of objects, call this machine."""
    stop_timeout: Annotated[float, Duration(most=3600)] = 30.0

    @field_validator("host")
    @classmethod
    def _plain_host(cls, host: str) -> str:
        if not _HOST.fullmatch(host):
            raise ValueError(f"{quoted(host)} is not a host name; use letters, digits, dots and hyphens")
        return host


class Limits(_Table):
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


class Verify(_Table):
    """The copies at the destinations are compared with the ledger on a schedule (PRODUCT I7)."""

    interval: Annotated[float | None, Duration(SHORTEST_WAIT, word="none")] = None
    """Seconds from the beginning of one run to that of the next; None: only ``quaymaster verify`` does it."""
    level: Literal["listing", "checksum", "readback"] = "checksum"
    budget: Annotated[int | None, Bytes(word="none")] = 10 * GIB
    """Bytes that one run may read back."""


class Api(_Table):
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
            if not _HOST.fullmatch(name):
                raise ValueError(f"{quoted(name)} is not a host name; write it without a scheme, port or path")
        return tuple(name.lower().rstrip(".") for name in names)

    @field_validator("read_token", "act_token")
    @classmethod
    def _token_name(cls, name: str | None) -> str | None:
        return _credential_name(name)

    @property
    def address(self) -> tuple[str, int] | None:
        """Of ``listen``."""
        if self.listen is None:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)


class S3Destination(_Table):
    name: str
    type: Literal["s3"] = "s3"
    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    """None: AWS."""
    region: str | None = None
    credentials: str | None = None
    """A name for :func:`read_credentials`; None: the AWS chain."""
    ca_bundle: AbsolutePath | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    part_size: Annotated[int, Bytes(5 * MIB, 5 * GIB)] = values.PART_SIZE  # S3 user guide, multipart upload limits
    checksum: Literal["sha256", "crc64nvme"] = "sha256"
    """The digest that the server checks on arrival and keeps, where it honours it; else the next best."""
    storage_class: str | None = None
    sse: Literal["AES256", "aws:kms"] | None = None
    sse_kms_key: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)
    connect_timeout: Annotated[float, Duration(SHORTEST_WAIT, 3600)] = values.CONNECT_TIMEOUT
    read_timeout: Annotated[float, Duration(SHORTEST_WAIT, 3600)] = values.READ_TIMEOUT
    bandwidth: Annotated[Bandwidth, Rates()] = Bandwidth()
    """Of all files to this destination, within ``limits.bandwidth``."""

    @field_validator("bucket")
    @classmethod
    def _bucket_name(cls, bucket: str) -> str:
        return values.bucket_name(bucket)

    @field_validator("prefix")
    @classmethod
    def _clean_prefix(cls, prefix: str) -> str:
        return values.clean_prefix(prefix)

    @field_validator("endpoint_url")
    @classmethod
    def _plain_endpoint(cls, url: str | None) -> str | None:
        return values.plain_endpoint(url)

    @field_validator("region", "storage_class", "sse_kms_key")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9._:/+=@-]{1,2048}", value):
            raise ValueError("is empty or holds spaces or unusual characters; write it as the S3 server names it")
        return value

    @field_validator("credentials")
    @classmethod
    def _named_credential(cls, name: str | None) -> str | None:
        return _credential_name(name)

    @field_validator("sse_kms_key")
    @classmethod
    def _key_needs_kms(cls, key: str | None, info: Any) -> str | None:
        if key is not None and info.data.get("sse", "aws:kms") != "aws:kms":
            raise ValueError('is used only with KMS; write sse = "aws:kms" too')
        return key

    @field_validator("tags")
    @classmethod
    def _tag_rules(cls, tags: dict[str, str]) -> dict[str, str]:
        """S3 user guide, "Categorizing your storage using tags"."""
        if len(tags) > 10:
            raise ValueError(f"has {len(tags)} tags; S3 takes at most 10")
        for key, value in tags.items():
            if not 1 <= len(key) <= 128 or len(value) > 256:
                raise ValueError(f"{quoted(key)} is too long; S3 takes names of 1 to 128 and values of 256 characters")
            if key.lower().startswith("aws:"):
                raise ValueError(f'{quoted(key)} begins with "aws:", which is reserved; choose another name')
            if not re.fullmatch(r"[\w .:/=+@-]*", key + value):
                raise ValueError(
                    f"{quoted(key)} holds a character S3 refuses; use letters, digits, spaces and . : / = + - _ @"
                )
        return tags


class DirectoryDestination(_Table):
    name: str
    type: Literal["directory"] = "directory"
    path: AbsolutePath
    hang_after: Annotated[float, Duration(SHORTEST_WAIT, 3600)] = 30.0
    """Seconds without an answer from a network file system, after which it counts as unreachable."""
    bandwidth: Annotated[Bandwidth, Rates()] = Bandwidth()


class BesideDestination(_Table):
    """Next to the source (PRODUCT P9)."""

    name: str
    type: Literal["beside"] = "beside"
    bandwidth: Annotated[Bandwidth, Rates()] = Bandwidth()


Destination = S3Destination | DirectoryDestination | BesideDestination

HookEvent = Literal["delivered", "parked", "unit-complete", "outage", "recovered", "integrity-failure", "released"]


class Hook(_Table):
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
        return _credential_name(name)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.command) == bool(self.url):
            both = "has both command and url; remove one" if self.url else "has neither command nor url; write one"
            raise ValueError(both)
        if self.command and (self.secret or self.ca_file):
            raise ValueError("has secret or ca_file, which are for url; remove them")
        return self


class Compress(_Table):
    format: Literal["zstd", "gzip"]
    level: int = Field(6, ge=1, le=22)
    min_size: Annotated[int, Bytes()] = values.MIN_SIZE
    """Bytes. Files of at most this size go as they are."""
    timeout: Annotated[float, Duration(SHORTEST_WAIT)] = 300.0
    """Seconds without progress."""

    @field_validator("level")
    @classmethod
    def _level_of_format(cls, level: int, info: Any) -> int:
        if info.data.get("format") == "gzip" and level > 9:
            raise ValueError(f"{level} is out of range; gzip has levels 1 to 9")
        return level


class Watch(_Table):
    name: str
    path: AbsolutePath
    destinations: Texts = Field(min_length=1)
    include: Globs = ()
    exclude: Globs = ()
    ignore: Globs = ()
    """Added to the temporary names that are always ignored."""
    mode: Literal["auto", "inotify", "poll"] = "auto"
    poll_interval: Annotated[float, Duration(SHORTEST_WAIT)] = 10.0
    rescan_interval: Annotated[float, Duration(SHORTEST_WAIT)] = 900.0
    settle: Annotated[float | None, Duration(word="auto")] = None
    """Seconds without change. None: 5 on local, 90 on network file systems."""
    settle_closed: Annotated[float, Duration()] = values.SETTLE_CLOSED
    """Seconds without change, when the file is known to be closed."""
    settle_per_gib: Annotated[float, Duration()] = values.SETTLE_PER_GIB
    """Seconds more for each GiB of the file."""
    marker: str | None = None
    """Name of the file that says "this directory is complete"."""
    sentinel: str | None = None
    """Name of a file that is there as long as the right file system is; a relative path."""
    hang_after: Annotated[float, Duration(SHORTEST_WAIT, 3600)] = values.HANG_AFTER
    """Seconds without an answer from the file system, after which the watch counts as away."""
    fetchers: int = Field(1, ge=1, le=64)
    """Files at once that are copied to local staging, or read where nothing is staged, from a network file system."""
    uploaders: int = Field(1, ge=1, le=64)
    """Files at once that are compressed and written beside their sources on a network file system."""
    priority: int = Field(0, ge=-1000, le=1000)
    """Of watches that have files waiting the highest goes first; one file in eight is of a lower one (PRODUCT Q4)."""
    order: Literal["oldest", "smallest"] = "oldest"
    """Which of its waiting files goes first."""
    compress: Compress | None = None
    never_compress: Texts = ()
    """Patterns of names of files that go as they are, such as ``*.bam``."""
    profile: str | None = None
    """Whose settings it has where it says nothing itself."""
    unit: Literal["directory"] | None = None
    """A directory of it counts as delivered when it is whole, as a manifest then tells (PRODUCT W5)."""
    unit_depth: int = Field(1, ge=1, le=DEEPEST)
    """Levels below ``path`` on which the units are."""
    unit_pattern: str | None = None
    """The paths that units have, level by level, instead of a depth: ``*/run_*``."""
    unit_complete: UnitFiles = ()
    """Files that a whole unit has: all of them."""
    unit_complete_any: UnitFiles = ()
    """Files of which a whole unit has one."""
    unit_idle: Annotated[float | None, Duration(SHORTEST_WAIT, word="none")] = None
    """Seconds without anything new after which a unit is whole."""
    unit_open_max: Annotated[float | None, Duration(SHORTEST_WAIT, word="none")] = 3 * 86400.0
    """Seconds after which a unit that is not published is an alarm."""
    upload: Literal["file", "unit"] = "file"
    """When files of a unit travel: each as it settles, or all when the unit is whole."""
    after_unit: bool = True
    """``delete`` and ``move`` wait until the manifest of the source's unit is published."""
    key: str = "{watch}/{path}"
    verify: Literal["checksum", "readback"] = "checksum"
    digests: Annotated[tuple[Literal["blake2b", "sha1", "md5"], ...], Field(strict=False)] = ()
    """Recorded beside SHA-256, which always is."""
    after: Literal["keep", "delete", "move"] = "keep"
    after_dir: AbsolutePath | None = None
    """Where ``move`` puts sources; in the file: ``after = "move:DIRECTORY"``."""
    after_grace: Annotated[float, Duration()] = 0.0
    """Seconds between proof and ``delete`` or ``move``."""
    after_hooks: Texts = ()
    """Hooks that must have confirmed what they are told of a file before its source is deleted or moved."""
    on_change: Literal["replace", "keep-both", "refuse"] = "replace"
    stage: bool | None = None
    """Copy to local staging first. None: when the source is on a network file system."""
    hard_links: bool = False

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, table: Any) -> Any:
        """``after = "move:DIR"`` is two fields; ``stage = "auto"`` and ``digests = ["sha256"]`` are the defaults."""
        if not isinstance(table, dict):
            return table
        table = dict(table)
        after = table.get("after")
        if isinstance(after, str) and after.startswith("move:"):
            table |= {"after": "move", "after_dir": after.removeprefix("move:")}
        if table.get("stage") == "auto":
            table["stage"] = None
        if isinstance(table.get("digests"), list | tuple):
            table["digests"] = [name for name in table["digests"] if name != "sha256"]
        return table

    @field_validator("compress", mode="before")
    @classmethod
    def _compress_word(cls, value: Any) -> Any:
        if value is False or value == "none":
            return None
        if value is True or (isinstance(value, str) and value not in ("zstd", "gzip")):
            raise ValueError('is not a compression; write "zstd", "gzip" or "none"')
        return {"format": value} if isinstance(value, str) else value

    @field_validator("marker")
    @classmethod
    def _marker_name(cls, name: str | None) -> str | None:
        return values.plain_name(name, "CopyComplete.txt")

    @field_validator("sentinel")
    @classmethod
    def _sentinel_name(cls, name: str | None) -> str | None:
        # Plain enough to be a pattern too: the sentinel itself is never taken.
        if name is not None and not re.fullmatch(r"(?!.*(^|/)\.{1,2}(/|$))[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", name):
            raise ValueError(f'{quoted(name)} is not such a name; write one like ".quaymaster-sentinel"')
        return name

    @property
    def ignored(self) -> tuple[str, ...]:
        """The patterns of ``ignore``, the sentinel, and a manifest that came back with its unit."""
        own: tuple[str, ...] = (f"/{self.sentinel}",) if self.sentinel else ()
        if self.unit:
            own += ("/" + (self.unit_pattern or "/".join("*" * self.unit_depth)) + f"/{MANIFEST}",)
        return (*self.ignore, *own)

    @field_validator("unit", mode="before")
    @classmethod
    def _unit_word(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("unit_pattern")
    @classmethod
    def _unit_pattern_levels(cls, pattern: str | None) -> str | None:
        if pattern is not None and (problem := glob_problem(pattern)):
            raise ValueError(problem)
        return pattern

    @field_validator("profile")
    @classmethod
    def _profile_word(cls, name: str | None) -> str | None:
        return None if name == "none" else name

    @property
    def layout(self) -> Layout:
        """Where its units are."""
        return Layout.of(self.unit_depth, self.unit_pattern)

    def unit_of(self, path: bytes) -> bytes | None:
        """The unit that a file is in; None when it is in none."""
        return self.layout.unit_of(path) if self.unit else None

    @property
    def whole(self) -> Whole:
        """What says that a unit is whole; the marker of the watch does where nothing else is said."""
        marker = (self.marker,) if self.marker else ()
        said = bool(self.unit_complete or self.unit_complete_any or self.unit_idle is not None)
        return Whole(self.unit_complete if said else marker, self.unit_complete_any, self.unit_idle)

    def compresses(self, name: bytes) -> bool:
        """Whether no pattern of ``never_compress`` fits a file's name."""
        return not any(path_matches(name, pattern) for pattern in self.never_compress)

    @field_validator("key")
    @classmethod
    def _key_template(cls, template: str) -> str:
        if problem := template_problem(template):
            raise ValueError(f'{quoted(template)} cannot name files: {problem}; write one like "{{watch}}/{{path}}"')
        return template

    @model_validator(mode="after")
    def _move_needs_directory(self) -> Self:
        if self.after == "move" and self.after_dir is None:
            raise ValueError('"move" has no directory; write after = "move:/absolute/directory"')
        return self

    @model_validator(mode="after")
    def _unit_is_told(self) -> Self:
        """What the keys of units have to do with each other is wrong with ``unit``: load.py says so."""
        if self.unit and not self.whole.patterns and self.whole.idle is None:
            raise PydanticCustomError(
                "unit", 'nothing says when one is whole; write unit_complete = ["NAME"] or unit_idle = "10min"'
            )
        return self


class Mirror(_Table):
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


class Config(_Table):
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
