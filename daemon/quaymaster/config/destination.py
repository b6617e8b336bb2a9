"""``[destination.NAME]``: where copies go."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from quaymaster.config import values
from quaymaster.config.bandwidth import Bandwidth, Rates
from quaymaster.config.table import AbsolutePath, Bytes, Duration, Table, credential_name
from quaymaster.config.units import GIB, MIB, SHORTEST_WAIT
from quaymaster.config.values import quoted


class S3Destination(Table):
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
        return credential_name(name)

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


class DirectoryDestination(Table):
    name: str
    type: Literal["directory"] = "directory"
    path: AbsolutePath
    hang_after: Annotated[float, Duration(SHORTEST_WAIT, 3600)] = 30.0
    """Seconds without an answer from a network file system, after which it counts as unreachable."""
    bandwidth: Annotated[Bandwidth, Rates()] = Bandwidth()


class BesideDestination(Table):
    """Next to the source (PRODUCT P9)."""

    name: str
    type: Literal["beside"] = "beside"
    bandwidth: Annotated[Bandwidth, Rates()] = Bandwidth()


Destination = S3Destination | DirectoryDestination | BesideDestination
