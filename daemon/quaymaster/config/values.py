"""Rules and defaults of single values, for the models (schema) and for commands that begin before the models are there.

What is wrong with a value is a ValueError "what is wrong; what to do".
"""

from __future__ import annotations

import re
import socket

MIB = 1 << 20

FILES, PARTS = 20, 8
HANG_AFTER = 30.0
SETTLE_CLOSED = 1.0
SETTLE_PER_GIB = 0.0
MIN_SIZE = 10 * MIB
PART_SIZE = 16 * MIB
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 60.0
MIRROR_INTERVAL, MIRROR_KEEP_OLD, MIRROR_DELETE_GRACE = 30.0, 3600.0, 86400.0

_CREDENTIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,254}")
_ACCESS_KEY = re.compile(r"(AKIA|ASIA)[A-Z0-9]{16}")
_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(:[0-9]{1,5})?(/[!$-;=?-Z_a-z~]*)?")
_ENDPOINT = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(:[0-9]{1,5})?/?")


def quoted(text: str) -> str:
    """A value for a message: on one line, not too long, in double quotes."""
    text = text if len(text) <= 60 else text[:57] + "..."
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + '"'


def host_name() -> str:
    """What this machine calls itself."""
    return re.sub("[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip(".-_") or "localhost"


def bucket_name(bucket: str) -> str:
    if "/" in bucket:
        raise ValueError(f'{quoted(bucket)} holds "/"; put what follows the bucket\'s name into prefix')
    # Wider than AWS's own rule: other servers have upper case, underscores and tenants.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}", bucket):
        raise ValueError(f"{quoted(bucket)} is not a bucket name; use letters, digits, dots and hyphens")
    return bucket


def plain_name(name: str | None, example: str) -> str | None:
    """Of a file, without a directory."""
    if name is not None and (name in ("", ".", "..") or "/" in name or "\0" in name):
        raise ValueError(f'{quoted(name)} is not a file name; write a plain name such as "{example}"')
    return name


def clean_prefix(prefix: str) -> str:
    parts = prefix.removesuffix("/").split("/") if prefix else []
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f'{quoted(prefix)} begins with "/" or holds "//", "." or ".."; write it like "raw/2024/"')
    if not prefix.isprintable() or len(prefix.encode()) > 512:
        raise ValueError("holds control characters or is longer than 512 bytes; shorten it")
    return prefix


def plain_endpoint(url: str | None) -> str | None:
    # Never quoted: what is wrong here may be a password.
    if url is not None and "@" in url:
        raise ValueError("holds a user or password; secrets do not belong here: use credentials = NAME")
    if url is not None and not _ENDPOINT.fullmatch(url):
        raise ValueError('is not an endpoint; write "https://HOST" or "https://HOST:PORT", without a path')
    return url


def hook_url(url: str | None) -> str | None:
    """Where a hook is told; "credential:NAME" for one that stands elsewhere."""
    if url is not None and url.startswith("credential:"):
        name = url.removeprefix("credential:")
        return f"credential:{name if name.startswith('/') else credential_name(name)}"
    # Never quoted: what is wrong here may be a password.
    if url is not None and "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError("holds a user or password; secrets do not belong here: sign with secret = NAME")
    if url is not None and not _URL.fullmatch(url):
        raise ValueError('is not a URL; write "https://HOST/PATH", or "credential:NAME" to keep it in a file')
    return url


def credential_name(name: str) -> str:
    """Of a name without a directory."""
    if _ACCESS_KEY.fullmatch(name):
        raise ValueError("is an access key itself; secrets do not belong here: write the name of a credential")
    if not name.startswith("/") and not _CREDENTIAL.fullmatch(name):
        raise ValueError("is not the name of a credential; write a plain name or the absolute path of a file")
    return name
