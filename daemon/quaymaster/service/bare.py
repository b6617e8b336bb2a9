"""The configuration of a pass over a directory and a destination that no file configures (PRODUCT I1).

It is the same configuration as one from a file, so that there is one way for every byte. What is remembered of the pass
has a state directory of its own for each pair of directory and destination.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quaymaster.config import values
from quaymaster.errors import UsageError
from quaymaster.model import shown

if TYPE_CHECKING:
    from quaymaster.config import Config, DirectoryDestination, S3Destination, Watch

WATCH, DESTINATION = "sync", "target"


@dataclass(frozen=True, slots=True)
class Pair:
    """What the command line says."""

    directory: str
    target: str
    """``s3://BUCKET/PREFIX`` or a directory."""
    endpoint_url: str | None = None
    credentials: str | None = None
    compress: str = "none"

    @property
    def in_bucket(self) -> bool:
        return self.target.startswith("s3://")

    @property
    def real_target(self) -> str:
        return self.target if self.in_bucket else os.path.realpath(self.target)


def config(pair: Pair, environ: Mapping[str, str]) -> Config:
    """Raises UsageError for what cannot be synchronised."""
    from quaymaster.config import Config, Limits, Service

    directory = os.path.realpath(pair.directory)
    target = pair.real_target
    _check(pair, directory, target)
    state = state_directory(pair, environ)
    try:
        return Config(
            service=Service(state_dir=state, staging_dir=os.path.join(state, "staging")),
            limits=Limits(),
            destinations={DESTINATION: _destination(pair, target)},
            watches={WATCH: _watch(pair, directory, state)},
            compression_disabled=_is_true(environ.get("QUAYMASTER_DISABLE_COMPRESSION", "")),
        )
    except ValueError as error:  # of a model: what was given cannot be such a value
        raise _unusable(pair, error) from None


def to_look(pair: Pair, environ: Mapping[str, str]) -> Config:
    """The same for a pass that only looks, without the models that check a configuration; what is given is held to the
    same rules. Raises UsageError."""
    from quaymaster.service.quick import Note

    directory, target, state = os.path.realpath(pair.directory), pair.real_target, state_directory(pair, environ)
    _check(pair, directory, target)
    try:
        where = _bucket(pair) if pair.in_bucket else {"name": DESTINATION, "type": "directory", "path": target}
    except ValueError as error:
        raise _unusable(pair, error) from None
    compress = None if pair.compress == "none" else {"format": pair.compress, "min_size": values.MIN_SIZE}
    watch = {
        "name": WATCH, "path": directory, "destinations": (DESTINATION,), "key": "{path}", "compress": compress,
        "ignored": _without(directory, state), "include": (), "exclude": (), "marker": None, "sentinel": None,
        "hang_after": values.HANG_AFTER, "hard_links": False, "after": "keep", "settle": None,
        "settle_closed": values.SETTLE_CLOSED, "settle_per_gib": values.SETTLE_PER_GIB,
        "unit": None, "unit_depth": 1, "unit_pattern": None, "upload": "file",
    }  # fmt: skip
    disabled = _is_true(environ.get("QUAYMASTER_DISABLE_COMPRESSION", ""))
    host, files, parts = values.host_name(), values.FILES, values.PARTS
    return Note("", state, {WATCH: watch}, {DESTINATION: where}, host, files, parts, disabled).config()


def _bucket(pair: Pair) -> dict[str, Any]:
    given = _given(pair)
    if (credentials := given["credentials"]) is not None and not credentials.startswith("/"):
        values.credential_name(credentials)
    values.bucket_name(given["bucket"])
    values.clean_prefix(given["prefix"])
    values.plain_endpoint(given["endpoint_url"])
    return given | {
        "type": "s3", "region": None, "ca_bundle": None, "addressing": "auto", "part_size": values.PART_SIZE,
        "checksum": "sha256", "storage_class": None, "sse": None, "sse_kms_key": None, "tags": {},
        "connect_timeout": values.CONNECT_TIMEOUT, "read_timeout": values.READ_TIMEOUT,
    }  # fmt: skip


def state_directory(pair: Pair, environ: Mapping[str, str]) -> str:
    """Where a pair is remembered: below $STATE_DIRECTORY, else in the user's own state (XDG Base Directory)."""
    parts = [os.path.realpath(pair.directory), pair.real_target.rstrip("/"), (pair.endpoint_url or "").rstrip("/")]
    said = "\0".join(parts)
    name = hashlib.sha256(os.fsencode(said)).hexdigest()[:16]
    if given := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return os.path.join(given, "sync", name)
    home = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME") or "/root", ".local", "state")
    return os.path.join(os.path.abspath(home), "quaymaster", "sync", name)


def _watch(pair: Pair, directory: str, state: str) -> Watch:
    from quaymaster.config import Compress, Watch

    compress = None if pair.compress == "none" else Compress(format=pair.compress)  # type: ignore[arg-type]
    return Watch(
        name=WATCH,
        path=directory,
        destinations=(DESTINATION,),
        key="{path}",
        compress=compress,
        ignore=_without(directory, state),
    )


def _destination(pair: Pair, target: str) -> S3Destination | DirectoryDestination:
    from quaymaster.config import DirectoryDestination, S3Destination

    if not pair.in_bucket:
        return DirectoryDestination(name=DESTINATION, path=target)
    return S3Destination(**_given(pair))


def _given(pair: Pair) -> dict[str, Any]:
    """What the command line says of a bucket."""
    bucket, _, prefix = pair.target.removeprefix("s3://").partition("/")
    credentials = pair.credentials
    if credentials is not None and "/" in credentials:
        credentials = os.path.abspath(credentials)
    return {
        "name": DESTINATION,
        "bucket": bucket,
        "prefix": prefix.rstrip("/") + "/" if prefix.strip("/") else "",
        "endpoint_url": pair.endpoint_url,
        "credentials": credentials,
    }


def _unusable(pair: Pair, error: ValueError) -> UsageError:
    return UsageError(f"{_text(pair.directory)} cannot be sent to {_text(pair.target)}: {_said(error)}")


def _check(pair: Pair, directory: str, target: str) -> None:
    if not os.path.isdir(directory):
        raise UsageError(f"{_text(pair.directory)} is no directory", "Name the directory that is to be sent")
    if not pair.in_bucket:
        _check_target(pair, directory, target)


def _check_target(pair: Pair, directory: str, target: str) -> None:
    if pair.endpoint_url or pair.credentials:
        raise UsageError(
            f"{_text(pair.target)} is a directory, which has no --endpoint-url and no --credentials",
            "Write a bucket as s3://BUCKET/PREFIX",
        )
    if not os.path.isdir(target):
        raise UsageError(
            f"{_text(pair.target)} is no directory",
            "Make it first, so that a share which is not mounted is never taken for one; or write s3://BUCKET/PREFIX",
        )
    if (target + "/").startswith(directory.rstrip("/") + "/"):
        raise UsageError(
            f"{_text(target)} lies inside {_text(directory)}: it would take its own copies",
            "Choose a directory outside",
        )


def _without(directory: str, state: str) -> tuple[str, ...]:
    """The pattern that leaves out what is remembered, when it lies in the directory itself."""
    inside = directory.rstrip("/") + "/"
    real = os.path.realpath(state)
    if not real.startswith(inside):
        return ()
    below = os.path.dirname(real).removeprefix(inside)  # of all pairs: they change while this one is sent
    return ("/" + re.sub(r"([\\*?\[\]!# ])", r"\\\1", below) + "/",)


def _is_true(value: str) -> bool:
    return value.strip().lower() in ("true", "1", "yes", "on")


def _said(error: ValueError) -> str:
    """pydantic's first problem in its own words, or in those of schema.py."""
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    first = details(include_url=False, include_input=False)[0]
    text = str(first.get("ctx", {}).get("error", first["msg"]))
    return f"{'.'.join(map(str, first['loc']))} {text}"


def _text(path: str) -> str:
    return shown(os.fsencode(path))
