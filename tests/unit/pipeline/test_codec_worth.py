"""What is compressed already goes as it is, and nothing else does."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import zipfile
import zlib

import pytest
import zstandard

from quaymaster.pipeline.worth import reason_not_to_compress, sample

TEXT = b"".join(b"%d,%d,sensor\n" % (n, n * n) for n in range(100_000))


def judged(data: bytes) -> str | None:
    return reason_not_to_compress(lambda offset, length: data[offset : offset + length], len(data))


def zipped(method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("a.npy", TEXT)
    return out.getvalue()


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100, 100, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10_100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (gzip.compress(TEXT), "gzip"),
        (zstandard.compress(TEXT), "zstd"),
        (lzma.compress(TEXT), "xz"),
        (bz2.compress(TEXT), "bzip2"),
        (zipped(zipfile.ZIP_DEFLATED), "ZIP"),
        (png(), "PNG"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0" + TEXT, "JPEG"),
        (b"RIFF\x10\0\0\0WEBPVP8 " + TEXT, "WebP"),
        (b"\0\0\0\x18ftypmp42" + TEXT, "MP4"),
        (b"ID3\x03\0\0\0\0\0\x0a" + TEXT, "MP3"),
        (b"OggS\0\x02" + TEXT, "Ogg"),
        (b"CRAM\x03\0" + TEXT, "CRAM"),
        (b"\x8bPOD\r\n\x1a\n" + TEXT, "POD5"),
        (b"PAR1\x15\0" + TEXT, "Parquet"),
        (b"7z\xbc\xaf\x27\x1c\0\x04" + TEXT, "7-Zip"),
        (b"Rar!\x1a\x07\x01\0" + TEXT, "RAR"),
        (b"\x04\x22\x4d\x18\x64\x40" + TEXT, "lz4"),
    ],
)
def test_a_compressed_format_is_known_by_its_first_bytes(data: bytes, named: str) -> None:
    reason = judged(data)
    assert reason is not None
    assert named in reason


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        b"BZh is how some text begins\n" + TEXT,
        b"PK is how some text begins\n" + TEXT,
        b"ID3 or not\n" + TEXT,
        b"RIFF\x10\0\0\0WAVEfmt " + TEXT,
        zipped(zipfile.ZIP_STORED),
        b"\x89HDF\r\n\x1a\n" + bytes(300_000),
        bytes(5_000_000),
    ],
    ids=["text", "like bzip2", "like zip", "like mp3", "wave", "stored zip", "hdf5", "zeros"],
)
def test_what_shrinks_is_compressed(data: bytes) -> None:
    assert judged(data) is None


@pytest.mark.parametrize("size", [40, 100, 50_000, 3 << 20, (5 << 17) - 1, 5 << 17, (5 << 17) + 1])
def test_content_without_a_known_head_is_judged_by_a_sample(size: int) -> None:
    reason = judged(b"\x11" + random.Random(2).randbytes(size - 1))
    assert reason is not None
    assert reason.startswith("content does not compress (sample 1")


def test_half_precision_weights_are_still_compressed() -> None:
    chance = random.Random(3)
    data = b"".join(struct.pack("<e", chance.gauss(0, 0.02)) for _ in range(100_000))
    assert 0.9 < sample(lambda offset, length: data[offset : offset + length], len(data)) < 0.95
    assert judged(data) is None


def test_a_sample_reaches_from_the_first_to_the_last_byte_and_reads_little() -> None:
    size = 10 << 30
    asked: list[tuple[int, int]] = []

    def read_at(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return bytes(length)

    assert reason_not_to_compress(read_at, size) is None
    assert sum(length for _, length in asked) < 700_000
    assert min(offset for offset, _ in asked) == 0
    assert max(offset + length for offset, length in asked) == size


def test_a_compressible_head_does_not_hide_what_follows() -> None:
    reason = judged(TEXT[:200_000] + random.Random(4).randbytes(20 << 20))
    assert reason is None or "sample" in reason
    assert judged(TEXT[:2_000] + random.Random(4).randbytes(20 << 20)) is not None


def test_an_error_of_the_source_comes_out_unchanged() -> None:
    fault = OSError(5, "the disk")

    def read_at(offset: int, length: int) -> bytes:
        raise fault

    with pytest.raises(OSError, match="the disk") as caught:
        reason_not_to_compress(read_at, 100)
    assert caught.value is fault
