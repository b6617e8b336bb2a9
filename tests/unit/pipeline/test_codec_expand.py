"""Expanding what may be damaged or hostile: never more than the record says, never less, never something else."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from quaymaster.errors import IntegrityError
from quaymaster.model import Compression
from quaymaster.pipeline.codec import PIECE, expand

ZSTD, GZIP, NONE = Compression.ZSTD, Compression.GZIP, Compression.NONE
CONTENT = b"".join(b"%d: the quick brown fox\n" % (n * n) for n in range(50_000))


def frame(content: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True, **options).compress(content)


def stored(compression: Compression) -> bytes:
    return {ZSTD: frame(CONTENT), GZIP: gzip.compress(CONTENT, 6, mtime=0), NONE: CONTENT}[compression]


def expanded(data: bytes, compression: Compression, size: int, length: int = 50_000) -> bytes:
    pieces = [data[at : at + length] for at in range(0, len(data), length)]
    return b"".join(expand(pieces, compression, size=size))


@pytest.mark.parametrize("length", [1, 7, 4096, 1 << 24])
@pytest.mark.parametrize("compression", list(Compression))
def test_pieces_may_be_cut_in_any_way(compression: Compression, length: int) -> None:
    short = CONTENT[:20_000]
    data = {ZSTD: frame(short), GZIP: gzip.compress(short), NONE: short}[compression]
    assert expanded(data, compression, len(short), length) == short


@pytest.mark.parametrize("compression", [ZSTD, GZIP])
def test_no_piece_is_larger_than_a_mebibyte(compression: Compression) -> None:
    zeros = bytes(9 << 20)
    data = frame(zeros) if compression is ZSTD else gzip.compress(zeros)
    assert [len(piece) for piece in expand([data], compression, size=len(zeros))] == [PIECE] * 9


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("wrong", [-1, 1, -len(CONTENT), 1 << 40])
def test_the_recorded_size_must_be_met(compression: Compression, wrong: int) -> None:
    with pytest.raises(IntegrityError):
        expanded(stored(compression), compression, len(CONTENT) + wrong)


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("lost", [1, 3, 4, 5, 8, 9, 1000])
def test_a_missing_end_is_found_even_when_all_content_is_there(compression: Compression, lost: int) -> None:
    with pytest.raises(IntegrityError):
        expanded(stored(compression)[:-lost], compression, len(CONTENT))


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize(
    "more", [b"\0", b"garbage", frame(b""), frame(b"x"), gzip.compress(b"", mtime=0), b"\x50\x2a\x4d\x18\0\0\0\0"]
)
@pytest.mark.parametrize("length", [1 << 24, 1000])
def test_whatever_follows_the_end_is_found(compression: Compression, more: bytes, length: int) -> None:
    with pytest.raises(IntegrityError):
        expanded(stored(compression) + more, compression, len(CONTENT), length)


@pytest.mark.parametrize("compression", [ZSTD, GZIP])
def test_nothing_at_all_is_not_an_empty_file(compression: Compression) -> None:
    with pytest.raises(IntegrityError):
        expanded(b"", compression, 0)
    empty = frame(b"") if compression is ZSTD else gzip.compress(b"", mtime=0)
    assert expanded(empty, compression, 0) == b""


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=400), st.sampled_from([ZSTD, GZIP]), st.integers(0, 3000))
def test_garbage_is_an_integrity_error_and_nothing_else(data: bytes, compression: Compression, size: int) -> None:
    head = b"\x28\xb5\x2f\xfd" if compression is ZSTD else b"\x1f\x8b\x08"
    for candidate in (data, head + data):
        try:
            assert len(expanded(candidate, compression, size, 60)) == size
        except IntegrityError:
            pass


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([ZSTD, GZIP]), st.data())
def test_a_garbled_byte_never_gives_other_content(compression: Compression, data: st.DataObject) -> None:
    content = CONTENT[:5000]
    broken = bytearray(frame(content) if compression is ZSTD else gzip.compress(content))
    broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert expanded(bytes(broken), compression, len(content)) == content
    except IntegrityError:
        pass


# -- bombs --


def made_before_failing(data: bytes, compression: Compression, size: int) -> int:
    made = 0
    pieces = expand([data], compression, size=size)
    with pytest.raises(IntegrityError, match="more than"):  # noqa: PT012 - the pieces until then are the point
        for piece in pieces:
            made += len(piece)
    return made


def test_a_bomb_makes_no_more_than_was_recorded() -> None:
    """1 GiB of zeros in 100 KiB, recorded as 5 MiB."""
    compressor = zstandard.ZstdCompressor(level=1).chunker(chunk_size=1 << 20)
    bomb = b"".join(chunk for _ in range(64) for chunk in compressor.compress(bytes(16 << 20)))
    bomb += b"".join(compressor.finish())
    tracemalloc.start()
    try:
        made = made_before_failing(bomb, ZSTD, 5 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made <= 5 << 20
    assert peak < 4 << 20


def test_a_gzip_bomb_makes_no_more_than_was_recorded() -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    assert made_before_failing(bomb, GZIP, 5 << 20) <= 5 << 20


def test_a_claim_of_another_size_is_refused_before_anything_is_expanded() -> None:
    with pytest.raises(IntegrityError, match="claim to hold"):
        next(expand([frame(bytes(1 << 20))], ZSTD, size=(1 << 20) - 1))


def test_a_window_beyond_every_level_is_refused() -> None:
    header = b"\x28\xb5\x2f\xfd" + bytes([0, (28 - 10) << 3])  # no content size; a window of 256 MiB
    with pytest.raises(IntegrityError, match="memory"):
        list(expand([header + bytes(100)], ZSTD, size=100))


@pytest.mark.parametrize("compression", [ZSTD, GZIP])
def test_a_stream_that_never_ends_is_given_up(compression: Compression) -> None:
    drawn = 0

    def endless() -> Iterator[bytes]:
        nonlocal drawn
        if compression is ZSTD:
            yield b"\x28\xb5\x2f\xfd" + bytes([0, 0])  # then blocks of no bytes, none of them the last
            block = bytes(3000)
        else:
            yield b"\x1f\x8b\x08\x08" + bytes(6)  # then a name without an end
            block = b"x" * 3000
        while True:
            drawn += 1
            yield block

    with pytest.raises(IntegrityError, match="far larger"):
        list(expand(endless(), compression, size=1 << 20))
    assert drawn < 500


def test_a_frame_that_needs_a_dictionary_is_refused() -> None:
    dictionary = zstandard.ZstdCompressionDict(random.Random(1).randbytes(2000))
    data = zstandard.ZstdCompressor(dict_data=dictionary).compress(CONTENT[:3000])
    try:
        assert expanded(data, ZSTD, 3000) == CONTENT[:3000]
    except IntegrityError:
        pass
    trained = zstandard.train_dictionary(1000, [CONTENT[at : at + 200] for at in range(0, 100_000, 200)])
    data = zstandard.ZstdCompressor(dict_data=trained).compress(CONTENT[:3000])
    with pytest.raises(IntegrityError):
        expanded(data, ZSTD, 3000)


@pytest.mark.parametrize("compression", list(Compression))
def test_an_error_of_the_source_comes_out_unchanged(compression: Compression) -> None:
    fault = OSError(5, "the disk")

    def pieces() -> Iterator[bytes]:
        yield stored(compression)[:1000]
        raise fault

    with pytest.raises(OSError, match="the disk") as caught:
        list(expand(pieces(), compression, size=len(CONTENT)))
    assert caught.value is fault


def test_two_expansions_in_one_thread_do_not_disturb_each_other() -> None:
    left = expand([frame(CONTENT * 3)], ZSTD, size=3 * len(CONTENT))
    right = expand([frame(CONTENT[::-1] * 3)], ZSTD, size=3 * len(CONTENT))
    both = list(zip(left, right, strict=True))
    assert b"".join(a for a, _ in both) == CONTENT * 3
    assert b"".join(b for _, b in both) == CONTENT[::-1] * 3
