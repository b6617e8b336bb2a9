"""Places that the contract is held against, and what is done to them."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quaymaster.destinations.answering import Answering
from quaymaster.destinations.base import Destination, Put
from quaymaster.destinations.directory import Directory
from quaymaster.destinations.s3 import S3
from quaymaster.model import Digests, Event, Stored
from servers.seaweed import Seaweed

PART = 5 << 20  # bytes: the least that S3 takes
BUCKET = "contract"


@dataclass(frozen=True)
class Keys:
    access_key: str = Seaweed.access_key
    secret_key: str = Seaweed.secret_key
    session_token: str | None = None


@dataclass(frozen=True)
class Settings:
    """What config.S3Destination says."""

    prefix: str
    endpoint_url: str | None
    name: str = "archive"
    bucket: str = BUCKET
    region: str | None = None
    credentials: str | None = "archive"
    ca_bundle: str | None = None
    addressing: str = "auto"
    part_size: int = PART
    checksum: str = "sha256"
    storage_class: str | None = None
    sse: str | None = None
    sse_kms_key: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    connect_timeout: float = 5
    read_timeout: float = 20


class Place(ABC):
    """One empty destination of its own, and a look at it from behind."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    @abstractmethod
    def make(self) -> Any:
        """A new instance, as another host would have it."""

    @abstractmethod
    def everything(self) -> list[str]:
        """Names of all that is there: visible, hidden or unfinished."""

    @abstractmethod
    def overwrite(self, key: str, data: bytes) -> None:
        """What somebody else might do behind our back."""


class DirectoryPlace(Place):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def make(self) -> Directory:
        return Directory("nas", self.path, emit=self.events.append)

    def everything(self) -> list[str]:
        return sorted(
            os.path.relpath(os.path.join(folder, name), self.path)
            for folder, folders, files in os.walk(self.path)
            for name in folders + files
            if name not in folders or not os.listdir(os.path.join(folder, name))
        )

    def overwrite(self, key: str, data: bytes) -> None:
        path = os.path.join(self.path, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".new", "wb") as file:
            file.write(data)
        os.rename(path + ".new", path)


class AskedPlace(DirectoryPlace):
    """The same, as if on a filesystem that may hang."""

    def make(self) -> Answering:  # type: ignore[override]
        def directory(beat: Callable[[], None]) -> Directory:
            return Directory("nas", self.path, emit=self.events.append, beat=beat)

        return Answering(directory, self.path, hang_after=30, may_hang=lambda: True)


class S3Place(Place):
    def __init__(self, server: Seaweed, settings: Settings) -> None:
        super().__init__()
        self.server = server
        self.settings = settings
        self.client = server.client()
        self.made: list[S3] = []

    def make(self, *, settings: Settings | None = None, **changes: Any) -> S3:
        options = {"credentials": Keys, "emit": self.events.append, "parts": 3, "jitter": lambda: 0.0, **changes}
        self.made.append(S3(settings or self.settings, **options))
        return self.made[-1]

    def with_settings(self, **changes: Any) -> S3:
        return self.make(settings=replace(self.settings, **changes))

    def objects(self) -> list[str]:
        answer = self.client.list_objects_v2(Bucket=BUCKET, Prefix=self.settings.prefix)
        return sorted(found["Key"].removeprefix(self.settings.prefix) for found in answer.get("Contents", []))

    def unfinished(self) -> list[str]:
        answer = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.settings.prefix)
        return [upload["Key"] for upload in answer.get("Uploads", [])]

    def everything(self) -> list[str]:
        return self.objects() + self.unfinished()

    def overwrite(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=self.settings.prefix + key, Body=data)

    def close(self) -> None:
        self.client.close()
        for made in self.made:
            made.close()


def digests_of(data: bytes) -> Digests:
    return Digests(len(data), hashlib.sha256(data).hexdigest())


def bytes_of(size: int, seed: int = 0) -> bytes:
    """Incompressible, and the same every time."""
    block = hashlib.shake_128(seed.to_bytes(8, "big")).digest(min(size, 1 << 20))
    return (block * (size // len(block) + 1))[:size] if size else b""


def deliver(
    destination: Destination,
    key: str,
    data: bytes,
    *,
    digests: Digests | None = None,
    metadata: Mapping[str, str] | None = None,
    replace: Stored | None = None,
    step: int = 1 << 20,
    mtime_ns: int = 0,
    mode: int = 0o644,
    after_write: Callable[[], None] = lambda: None,
) -> Stored:
    """Write and publish as the pipeline does, with one buffer that is used again and again; abort on any failure."""
    metadata = metadata or {}
    upload = destination.begin(Put(key, len(data), metadata, replace, mtime_ns, mode))
    buffer = bytearray(step)
    try:
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            buffer[: len(piece)] = piece
            upload.write(memoryview(buffer)[: len(piece)])
            after_write()
        buffer[:] = bytes(step)
        return upload.publish(digests or digests_of(data), metadata)
    finally:
        upload.abort()


def content(destination: Destination, stored: Stored) -> bytes:
    with destination.read(stored) as pieces:
        return b"".join(pieces)


def race(count: int, action: Callable[[int], Any]) -> list[Any]:
    """Run ``action`` in ``count`` threads that begin at the same moment; results or exceptions, in order."""
    gate = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        try:
            gate.wait(60)
            results[number] = action(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
