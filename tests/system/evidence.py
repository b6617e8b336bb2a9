"""What came back, looked at with means that are not the product's: stock tools and hashlib."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

_EXPANDERS = {".zst": ["zstd", "-dcq", "--"], ".gz": ["gunzip", "-c", "--"]}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: str | bytes | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expanded_sha256(path: str | Path) -> str:
    """SHA-256 of what the stock tool for the name's suffix makes of a file; of the file itself without one."""
    expander = _EXPANDERS.get(Path(path).suffix)
    if expander is None:
        return file_sha256(path)
    with subprocess.Popen([*expander, os.fspath(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        digest = hashlib.file_digest(process.stdout, "sha256").hexdigest()  # type: ignore[arg-type]
    assert process.returncode == 0, f"{expander[0]} cannot open {path}"
    return digest
