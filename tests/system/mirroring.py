"""A bucket with models, a directory they are mirrored to, and what a mirror's configuration says."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from system.bucket import Bucket
from system.conftest import Home, quoted
from system.service import Service, until

NAME = "models"


def config(home: Home, bucket: Bucket, more: str = "", *, watch: str = "", service: str = "") -> str:
    """A mirror of the bucket, polled often; ``more`` is TOML of the mirror, and wins."""
    settings = {"source": '"archive"', "path": quoted(place(home)), "interval": '"300ms"', "disk_free": '"1MiB"'}
    given = {line.partition("=")[0].strip() for line in more.splitlines()}
    lines = [f"{key} = {value}" for key, value in settings.items() if key not in given]
    return "\n".join([
        "[service]", f"state_dir = {quoted(home.folder / 'state')}", f"staging_dir = {quoted(home.staging)}", service,
        "[limits]", 'staging_free = "1MiB"', bucket.destination(), f"[mirror.{NAME}]", *lines, more, watch, "",
    ])  # fmt: skip


def place(home: Home) -> Path:
    folder = home.folder / "models"
    folder.mkdir(exist_ok=True)
    return folder


def put(bucket: Bucket, key: str, content: bytes, **more: Any) -> None:
    """Until the server takes it: on a machine that has much else to do it answers InternalError at times."""

    def taken() -> bool:
        try:
            bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + key, Body=content, **more)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                raise
            return False
        return True

    until(taken, 60, f"{key} stored")


def put_model(bucket: Bucket, version: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        put(bucket, f"{version}/{name}", content)


def remove(bucket: Bucket, *keys: str) -> None:
    for key in keys:
        bucket.client.delete_object(Bucket=bucket.name, Key=bucket.prefix + key)


def released(home: Home) -> dict[str, bytes]:
    """Every file that is visible: path below the mirror -> content."""
    root = place(home)
    found = {}
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".qm-")]
        for name in files:
            path = os.path.join(folder, name)
            with suppress(FileNotFoundError), open(path, "rb") as file:  # removed at this moment
                found[os.path.relpath(path, root)] = file.read()
    return found


def hidden(home: Home, kind: str) -> list[str]:
    folder = place(home) / f".qm-mirror-{NAME}" / kind
    return sorted(os.listdir(folder)) if folder.exists() else []


def once(home: Home, text: str) -> tuple[int, dict[str, Any], str]:
    """One pass by hand: exit status, what it says of the mirror, and its messages."""
    service = Service(text, home.folder)
    done = service.command("mirror", "--once", "--json")
    said = json.loads(done.stdout)["mirrors"][0] if done.stdout.strip() else {}
    return done.returncode, said, done.stderr


def until_released(home: Home, wanted: dict[str, bytes], timeout: float = 60) -> None:
    until(lambda: wanted.items() <= released(home).items(), timeout, f"{sorted(wanted)} released")
