"""Is a file worth compressing? First what its head says it is, then what a sample of its content does (PRODUCT P2)."""

from __future__ import annotations

import re
from collections.abc import Callable

from quaymaster.pipeline import formats

_HEAD = 64
"""Bytes looked at for a format's magic number."""

_SAMPLES, _SAMPLE = 5, 128 << 10
"""How many pieces of a file are tried, spread evenly from its first to its last byte, and their size in bytes."""

_WORTH_IT = 0.95
"""Of the size must be left at most. fp16 weights give 0.92: little, but an archive of them is large."""

_MAGIC: tuple[tuple[str, bytes], ...] = (
    ("gzip", rb"\x1f\x8b\x08"),  # also BAM, tabix and everything else in BGZF
    ("zstd", rb"\x28\xb5\x2f\xfd"),
    ("xz", rb"\xfd7zXZ\x00"),
    ("bzip2", rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    ("lz4", rb"\x04\x22\x4d\x18"),
    ("lzip", rb"LZIP\x01"),
    ("lzop", rb"\x89LZO\x00\r\n\x1a\n"),
    ("compress", rb"\x1f\x9d[\x80-\x9f]"),
    ("snappy", rb"\xff\x06\x00\x00sNaPpY"),
    # A ZIP whose first entry is merely stored (NumPy's npz, PyTorch's checkpoints) may shrink: the sample tells.
    ("ZIP", rb"PK\x03\x04.{4}[^\x00]"),
    ("7-Zip", rb"7z\xbc\xaf\x27\x1c"),
    ("RAR", rb"Rar!\x1a\x07"),
    ("CAB", rb"MSCF\x00{4}"),
    ("rpm", rb"\xed\xab\xee\xdb"),
    ("deb", rb"!<arch>\ndebian-binary"),
    ("squashfs", rb"hsqs.{16}[\x01-\x06]\x00"),
    ("CRAM", rb"CRAM[\x02-\x04]"),
    ("POD5", rb"\x8bPOD\r\n\x1a\n"),
    ("SRA", rb"NCBI\.sra"),
    ("Parquet", rb"PAR1"),
    ("ORC", rb"ORC[\x03-\x0f]"),
    ("JPEG", rb"\xff\xd8\xff"),
    ("JPEG 2000", rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("JPEG XL", rb"\x00\x00\x00\x0cJXL \r\n\x87\n|\xff\x0a[^\x00]"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("GIF", rb"GIF8[79]a"),
    ("WebP", rb"RIFF.{4}WEBP"),
    ("MP4", rb".{4}ftyp"),  # also MOV, M4A, HEIC and AVIF
    ("Matroska", rb"\x1a\x45\xdf\xa3"),
    ("MPEG stream", rb"\x00\x00\x01\xba"),
    ("MP3", rb"ID3[\x02-\x04]\x00|\xff[\xf3\xfb][\x10-\xef]"),
    ("Ogg", rb"OggS\x00"),
    ("FLAC", rb"fLaC\x00"),
    ("WOFF", rb"wOF[F2]"),
)
"""Formats that are compressed inside, by the regular expression that their first bytes match. HDF5, TIFF and PDF may
be or may not: they are left to the sample."""

_KNOWN = [(name, re.compile(pattern, re.DOTALL)) for name, pattern in _MAGIC]


def reason_not_to_compress(read_at: Callable[[int, int], bytes], size: int) -> str | None:
    """Why a file should go as it is, in words for its record, or None when compressing is worth it.

    ``read_at(offset, length)`` reads the file, fewer bytes only at its end; at most 5 x 128 KiB are read, and what
    it raises comes out unchanged. ``size`` is in bytes.
    """
    head = read_at(0, min(size, _HEAD))
    for name, pattern in _KNOWN:
        if pattern.match(head):
            return f"is compressed already ({name})"
    ratio = sample(read_at, size)
    return f"content does not compress (sample {ratio:.2f})" if ratio > _WORTH_IT else None


def sample(read_at: Callable[[int, int], bytes], size: int) -> float:
    """Compressed size of a sample of the content at zstd's level 1, divided by the sample's size."""
    if size <= _SAMPLES * _SAMPLE:
        spots = range(0, size, _SAMPLE)
    else:
        spots = range(0, size - _SAMPLE + 1, (size - _SAMPLE) // (_SAMPLES - 1))
    pieces = [piece for spot in spots if (piece := read_at(spot, min(_SAMPLE, size - spot)))]
    tried = sum(map(len, pieces))
    return sum(map(formats.trial, pieces)) / tried if tried else 1.0
