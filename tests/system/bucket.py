"""A prefix of a bucket on a real S3 server: how a destination names it, and a look at it from behind."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

# What the service itself keeps beside the objects: probes of the endpoint, claims to keys about to be published, and
# heads of the custody log.
OWN = (".quaymaster-probe/", ".quaymaster-claim/", ".quaymaster-custody/")


@dataclass
class Bucket:
    client: Any
    """A plain S3 client."""
    name: str
    prefix: str
    endpoint: str
    credentials: str
    """A file with the key pair."""

    def destination(self, name: str = "archive", *, more: str = "") -> str:
        """The configuration of a destination here; ``more`` is TOML, and wins."""
        settings = {
            "type": "s3",
            "bucket": self.name,
            "prefix": self.prefix,
            "endpoint_url": self.endpoint,
            "region": "us-east-1",
            "credentials": self.credentials,
            "part_size": "5MiB",
        }
        given = {line.partition("=")[0].strip() for line in more.splitlines()}
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if key not in given]
        return "\n".join([f"[destination.{name}]", *lines, more, ""])

    def objects(self, *, own: bool = False) -> dict[str, int]:
        """Key below the prefix -> size; with ``own`` also what the service keeps for itself."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.prefix)
        found = {
            item["Key"].removeprefix(self.prefix): item["Size"] for page in pages for item in page.get("Contents", [])
        }
        return {key: size for key, size in found.items() if own or not key.startswith(OWN)}

    def content(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.name, Key=self.prefix + key)["Body"].read()
        return body

    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        with open(path, "wb") as file:
            for piece in self.client.get_object(Bucket=self.name, Key=self.prefix + key)["Body"].iter_chunks(1 << 20):
                file.write(piece)

    def metadata(self, key: str) -> dict[str, str]:
        found: dict[str, str] = self.client.head_object(Bucket=self.name, Key=self.prefix + key)["Metadata"]
        return found

    def uploads(self) -> list[str]:
        """Keys of the multipart uploads that were begun and neither completed nor aborted."""
        answer = self.client.list_multipart_uploads(Bucket=self.name, Prefix=self.prefix)
        return [upload["Key"].removeprefix(self.prefix) for upload in answer.get("Uploads", [])]

    def clear(self) -> None:
        for key in self.objects(own=True):
            self.client.delete_object(Bucket=self.name, Key=self.prefix + key)
        self.client.close()
