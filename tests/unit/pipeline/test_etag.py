"""What a server tells of an object that another program put there is compared with the file: equal bytes are recognised
whatever parts they were sent in, other bytes never are (PRODUCT I2)."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Callable

import pytest

from quaymaster.model import Stored
from quaymaster.pipeline.etag import Told, part_sizes

MIB = 1 << 20


def reading(content: bytes, piece: int = MIB) -> Callable[[], bytes]:
    pieces = iter([content[start : start + piece] for start in range(0, len(content), piece)])
    return lambda: next(pieces, b"")


def multipart_etag(content: bytes, part: int) -> str:
    """As the S3 user guide has it."""
    digests = [hashlib.md5(content[start : start + part]).digest() for start in range(0, len(content), part)]
    return f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"


def compared(content: bytes, etag: str = "", checksum: str = "", size: int = -1) -> str | None:
    told = Told.by(Stored("k", len(content) if size < 0 else size, etag, checksum=checksum))
    if told is None:
        return None
    sha256, evidence = told.compare(reading(content))
    assert sha256 == hashlib.sha256(content).hexdigest()
    return evidence


@pytest.mark.parametrize("part", [5 * MIB, 8 * MIB, 15 * MIB, 16 * MIB, 6 * MIB + 4096])
def test_an_object_in_parts_is_recognised(part: int) -> None:
    content = random.Random(part).randbytes(3 * part - 7 if part % MIB == 0 else 2 * part)
    etag = multipart_etag(content, part)
    assert compared(content, etag) == "etag-md5-parts"
    assert compared(content[:-1] + b"?", etag) == ""


def test_an_object_in_one_piece_is_recognised() -> None:
    assert compared(b"abc", hashlib.md5(b"abc").hexdigest()) == "etag-md5"
    assert compared(b"abd", hashlib.md5(b"abc").hexdigest()) == ""
    assert compared(b"", hashlib.md5(b"").hexdigest()) == "etag-md5"


def test_a_sha256_of_the_whole_is_believed_before_the_etag() -> None:
    right = "SHA256:" + base64.b64encode(hashlib.sha256(b"abc").digest()).decode()
    assert compared(b"abc", "0" * 32, right) == "sha256"
    assert compared(b"abd", hashlib.md5(b"abd").hexdigest(), right) == ""


@pytest.mark.parametrize("etag", ["", "12:34567", "no-etag", "0" * 31, "0" * 32 + "-0", "0" * 32 + "-x"])
def test_what_tells_nothing_of_the_bytes_is_not_compared(etag: str) -> None:
    assert compared(b"abc", etag) is None
    assert compared(b"abc", etag, "SHA256:" + "A" * 43 + "=-2") is None


def test_only_sizes_that_make_this_number_of_parts_are_tried_and_never_many() -> None:
    for size, parts in [(20 * MIB, 3), (100 * MIB, 13), (5 << 40, 10_000), (1, 1), (MIB + 1, 2)]:
        found = part_sizes(size, parts)
        assert 1 <= len(found) <= 6, (size, parts)
        assert all(-(-size // part) == parts for part in found)
    assert part_sizes(20 * MIB, 3)[0] == 8 * MIB
    assert part_sizes(0, 1) == ()
    assert part_sizes(10, 9_999) == ()
