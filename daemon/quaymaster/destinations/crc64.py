"""CRC-64/NVME, the checksum that S3 keeps of a whole object however many parts it came in.

AWS S3 adds it to every object that is stored without another (S3 user guide, "Checking object integrity"), so it is
what most objects of other writers can be held against. The AWS library computes it at several GB/s; it is imported
when the first is asked for.
"""

from __future__ import annotations

import base64


def crc64nvme(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """Of ``data``, after bytes whose own is ``before``."""
    from awscrt import checksums

    return int(checksums.crc64nvme(data, before))


def joined(first: int, second: int, length: int) -> int:
    """Of two runs of bytes, one after the other, from their own; the second has ``length`` bytes."""
    from awscrt import checksums

    return int(checksums.combine_crc64nvme(first, second, length))


def text(crc: int) -> str:
    """In S3's notation: base64 of its eight bytes, the highest first."""
    return base64.b64encode(crc.to_bytes(8)).decode()


def shown(crc: int | None) -> str:
    """For people."""
    return "none" if crc is None else f"{crc:016x}"
