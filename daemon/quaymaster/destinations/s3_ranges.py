"""How a large object is read: in ranges, several requests at once (ahead.py)."""

from __future__ import annotations

from collections.abc import Iterator

PIECE = 1 << 20
"""Bytes; the most that a reader is given at once."""
RANGE = 16 << 20
"""Bytes of one request, the usual part: what a server keeps in one place is asked for in one go. Each request costs the
server work, too, as much as two or three MiB do."""


def pieces_of(body: bytes) -> Iterator[bytes]:
    if len(body) <= PIECE:
        return iter([body] if body else [])
    return (body[at : at + PIECE] for at in range(0, len(body), PIECE))
