"""Compresses what is in an rpm anew, with xz itself: nfpm has it in Go, which makes the package a fifth larger.

    smaller.py PACKAGE.rpm

The payload's digest in the header, and the sizes and digests in the signature header, become those of the new payload;
all of them have the length that they had (https://rpm-software-management.github.io/rpm/manual/format_v4.html).
"""

from __future__ import annotations

import hashlib
import lzma
import struct
import sys
from pathlib import Path

LEAD = 96


def header_end(data: bytes, start: int) -> int:
    """Where the header that begins there ends: 16 bytes, an index of 16 bytes an entry, and a store."""
    magic, entries, store = struct.unpack_from(">4s4xII", data, start)
    assert magic == b"\x8e\xad\xe8\x01", "not a header of an rpm"
    return int(start + 16 + entries * 16 + store)


def replaced(data: bytes, old: bytes, new: bytes, what: str) -> bytes:
    assert len(old) == len(new), what
    assert data.count(old) == 1, f"{what}: {data.count(old)} times"
    return data.replace(old, new)


def main(path: Path) -> None:
    data = path.read_bytes()
    start = -(-header_end(data, LEAD) // 8) * 8  # the signature header is filled up to eight bytes
    end = header_end(data, start)
    signature, header, payload = data[:start], data[start:end], data[end:]
    smaller = lzma.compress(lzma.decompress(payload), preset=9 | lzma.PRESET_EXTREME)
    old, new = (hashlib.sha256(each).hexdigest().encode() for each in (payload, smaller))
    lighter = replaced(header, old, new, "the digest of the payload")
    for digest in (hashlib.sha1, hashlib.sha256):
        old, new = (digest(each).hexdigest().encode() for each in (header, lighter))
        if signature.count(old):
            signature = replaced(signature, old, new, "a digest of the header")
    old, new = (hashlib.md5(each, usedforsecurity=False).digest() for each in (header + payload, lighter + smaller))
    if signature.count(old):
        signature = replaced(signature, old, new, "the digest of both")
    old, new = (struct.pack(">I", len(each)) for each in (header + payload, lighter + smaller))
    path.write_bytes(replaced(signature, old, new, "the size of both") + lighter + smaller)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
