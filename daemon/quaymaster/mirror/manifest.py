"""What a unit's own list of its files says: SHA-256 of each (PRODUCT W5, M2).

``quaymaster-manifest.json`` is what quaymaster publishes last of a directory; ``SHA256SUMS`` is what sha256sum(1)
writes. Both are outside input: a list that cannot be read, or names files outside, is an integrity failure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from quaymaster.errors import IntegrityError

NAMES = (b"quaymaster-manifest.json", b"SHA256SUMS")
LARGEST = 64 << 20
_SUM = re.compile(rb"\\?([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")
_HEX = re.compile(r"[0-9a-f]{64}")


def parse(name: bytes, content: bytes) -> dict[bytes, str]:
    """Path below the manifest's directory -> SHA-256 in hex. Raises IntegrityError."""
    try:
        found = _json(content) if name.endswith(b".json") else _sums(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise IntegrityError(f"{name.decode()} is not a list of files with their SHA-256", "Publish it again") from None
    for path, sha256 in found.items():
        outside = path.startswith(b"/") or any(part in (b"", b".", b"..") for part in path.split(b"/"))
        if outside or b"\0" in path or not _HEX.fullmatch(sha256):
            raise IntegrityError(f"{name.decode()} names {path[:100]!r} with {sha256[:70]!r}", "Publish it again")
    return found


def _json(content: bytes) -> dict[bytes, str]:
    said: Any = json.loads(content)
    files = said["files"]
    if isinstance(files, Mapping):
        return {path.encode(): _digest(told) for path, told in files.items()}
    return {str(told["path"]).encode("utf-8", "surrogateescape"): _digest(told) for told in files}


def _digest(told: Any) -> str:
    return str(told if isinstance(told, str) else told["sha256"]).lower()


def _sums(content: bytes) -> dict[bytes, str]:
    found = {}
    for line in content.splitlines():
        if not line.strip() or line.startswith(b"#"):
            continue
        match = _SUM.fullmatch(line)
        if match is None:
            raise ValueError
        path = match.group(2)
        if line.startswith(b"\\"):
            path = path.replace(b"\\n", b"\n").replace(b"\\\\", b"\\")
        found[path] = match.group(1).decode().lower()
    return found
