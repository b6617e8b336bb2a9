"""The compressed formats: making them, and expanding what may be damaged or hostile (PRODUCT P2, X3).

The only module that knows the compression libraries. Both are loaded at first use: an idle service is small.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Protocol, cast

from quaymaster.errors import IntegrityError
from quaymaster.model import Compression

if TYPE_CHECKING:
    import zstandard

PIECE = 1 << 20
"""Source bytes handled at a time, and the largest piece that :func:`expand` yields."""

CHUNK = 1 << 20
"""Compressed zstd bytes handed on at a time."""

_JOB = 2 << 20
"""Source bytes that one zstd thread compresses by itself, at least. zstd's own choice is four windows (8 MiB at level
3): three times the memory for 0.1 % of the size."""

_NO_OVERLAP = 1
"""For ``overlap_log``: a job does not look back into the one before it, which zstd would index once more. Up to level 8
(a window of 2 MiB), with jobs of two windows, that takes a tenth of the time away and changes the size by less than
0.3 %; with larger windows it would cost some per cent of it."""

_WINDOW_BOUND = 1 << 27
"""The largest window that is expanded: what level 22 uses, and the limit of ``zstd -d``."""

_ADVICE = "The stored copy is not what was recorded: keep the source, and look at the storage that held it"


class Compressor(Protocol):
    """One frame or member in the making. What a call yields must be drawn to its end before the next call."""

    def compress(self, data: bytes | memoryview, /) -> Iterable[bytes]: ...

    def finish(self) -> Iterable[bytes]: ...


def new_compressor(compression: Compression, level: int, threads: int, size: int) -> Compressor:
    """A compressor for content of exactly ``size`` bytes. Its output depends on content, format, level and library
    version alone, as long as the content is always cut alike (zlib-ng's depends on that)."""
    if compression is Compression.GZIP:
        return _Gzip(level)
    import zstandard

    if size <= _contexts.largest:
        return cast(Compressor, _contexts.zstd(level).chunker(size=size, chunk_size=size + 1024))
    # Always at least one thread of its own: zstd's output depends on whether there are any, not on how many.
    job, overlap_log = _jobs(_shape(level, size))
    parameters = zstandard.ZstdCompressionParameters(
        compression_level=level,
        threads=max(1, threads),
        job_size=job,
        overlap_log=overlap_log,
        write_checksum=True,
        write_content_size=True,
    )
    context = zstandard.ZstdCompressor(compression_params=parameters)
    return cast(Compressor, context.chunker(size=size, chunk_size=CHUNK))


def memory_needed(compression: Compression, level: int, threads: int, size: int | None) -> int:
    """An upper bound of the bytes that a compressor and the expander that checks it hold together."""
    if compression is Compression.GZIP:
        return 4 * PIECE

    bound = max(1, size or 1 << 40)
    shape = _shape(level, bound)
    window = min(1 << shape.window_log, bound)
    tables = shape.estimated_compression_context_size()
    if bound <= _contexts.largest:
        return tables + 2 * window
    job = min(max(_jobs(shape)[0], window), bound)
    # Each thread has its tables and the compressed form of one job; the input ring holds the jobs in flight and the
    # window before them; the expander needs one more window.
    return threads * tables + (3 * threads + 4) * job + window


def _shape(level: int, size: int) -> zstandard.ZstdCompressionParameters:
    """What zstd chooses for content of ``size`` bytes."""
    import zstandard

    return zstandard.ZstdCompressionParameters.from_level(level, source_size=size)


def _jobs(shape: zstandard.ZstdCompressionParameters) -> tuple[int, int]:
    """The size of a job in bytes and the ``overlap_log`` between jobs; 0 is zstd's own choice."""
    window = 1 << shape.window_log
    return (2 * _JOB, _NO_OVERLAP) if window <= _JOB else (_JOB, 0)


def trial(data: bytes) -> int:
    """The size of ``data`` compressed at zstd's level 1: what worth.py judges content by."""
    return len(_contexts.zstd(1).compress(data))


class _Gzip:
    """A member that depends on its content and level alone: no name, no time."""

    def __init__(self, level: int) -> None:
        from zlib_ng import zlib_ng

        self._member = zlib_ng.compressobj(level, zlib_ng.DEFLATED, 31)

    def compress(self, data: bytes | memoryview, /) -> Iterator[bytes]:
        if made := self._member.compress(data):
            yield made

    def finish(self) -> Iterator[bytes]:
        yield self._member.flush()


class _Contexts(threading.local):
    """zstd contexts for small files, made once a thread: making one takes a tenth of the time of a 16 KiB file.
    Larger files give theirs back to the system, so that an idle service is small."""

    largest = 128 << 10

    def __init__(self) -> None:
        self._made: dict[int, zstandard.ZstdCompressor] = {}
        self.expanders: list[zstandard.ZstdDecompressor] = []  # those that nobody uses now

    def zstd(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self._made:
            import zstandard

            self._made[level] = zstandard.ZstdCompressor(level=level, write_checksum=True)
        return self._made[level]


_contexts = _Contexts()


# -- the way back --


def expand(pieces: Iterable[bytes], compression: Compression, *, size: int) -> Generator[bytes, None, None]:
    """The content of stored bytes, in pieces of at most 1 MiB; ``size`` is what the record says it must come to.

    Never makes more than that, whatever the stored bytes claim. Raises IntegrityError when they are damaged, end
    early, go on after their end, or expand to another size: by then earlier pieces have been yielded, so nothing
    may be published before the iterator has ended by itself.
    """
    if compression is not Compression.NONE:
        for piece in expanded(iter(pieces), compression, size):
            yield bytes(piece)
        return
    done = 0
    for stored in pieces:
        done += len(stored)
        if done > size:
            break
        yield stored
    _same_size(done, size)


def expanded(chunks: Iterator[bytes], compression: Compression, size: int) -> Iterator[memoryview]:
    """Like :func:`expand`, but each piece is overwritten by the next one."""
    buffer = bytearray(min(PIECE, size + 1))  # one more than expected, to notice it
    view = memoryview(buffer)
    chunks = _bounded(chunks, size)
    into = _zstd_into(chunks, size) if compression is Compression.ZSTD else _gzip_into(chunks)
    done = 0
    while length := into(view):
        done += length
        if done > size:
            break
        yield view[:length]
    _same_size(done, size)


def _same_size(done: int, size: int) -> None:
    if done != size:
        raise _damaged(f"they come to {'more than' if done > size else f'{done} instead of'} {size} bytes")


def _damaged(what: object) -> IntegrityError:
    return IntegrityError(f"The stored bytes cannot be expanded: {what}", _ADVICE)


def _bounded(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The chunks, as long as they can belong to ``size`` bytes: a stream of empty blocks would never end. No format
    needs more than 9/8 of the content and its headers."""
    left = size + size // 8 + 4096
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise _damaged("they are far larger than what they should expand to")
        if chunk:
            yield chunk


def _gzip_into(chunks: Iterator[bytes]) -> Callable[[memoryview], int]:
    """A function that fills a buffer from the one gzip member, and returns how much it held; 0 at its end."""
    from zlib_ng import zlib_ng

    member = zlib_ng.decompressobj(31)
    failure = cast(type[Exception], zlib_ng.error)
    left = b""

    def into(buffer: memoryview) -> int:
        nonlocal left
        filled = 0
        while filled < len(buffer) and not member.eof:
            left = left or next(chunks, b"")
            ended = not left
            try:
                made = member.decompress(left, len(buffer) - filled)
            except failure as error:
                raise _damaged(error) from None
            left = member.unconsumed_tail
            buffer[filled : filled + len(made)] = made
            filled += len(made)
            if ended and not made and not member.eof:
                raise _damaged("they end early")
        if not filled and (member.unused_data or next(chunks, b"")):
            raise _damaged("there is more after their end")
        return filled

    return into


def _zstd_into(chunks: Iterator[bytes], size: int) -> Callable[[memoryview], int]:
    """The same for one zstd frame."""
    import zstandard

    frame = _Frame(chunks, size)
    spare = _contexts.expanders
    expander = spare.pop() if spare else zstandard.ZstdDecompressor(max_window_size=_WINDOW_BOUND)
    reader = expander.stream_reader(cast(IO[bytes], frame), read_across_frames=False)

    def into(buffer: memoryview) -> int:
        try:
            filled = reader.readinto(buffer)
        except zstandard.ZstdError as error:
            raise _damaged(error) from None
        if not filled:
            frame.finish()
            if size <= _contexts.largest:
                spare.append(expander)
        return filled

    return into


class _Frame:
    """Follows one zstd frame (RFC 8878, 3.1.1) to its very end, which the library's reader does not report: it takes
    a frame without its checksum for whole, and does not look at what comes after."""

    def __init__(self, chunks: Iterator[bytes], size: int) -> None:
        self._chunks = chunks
        self._size = size
        self._steps = self._walk()
        self._need = next(self._steps)
        self._seen = b""
        self._ended = False

    def read(self, _: int = -1) -> bytes:
        """The next chunk, for the library to expand."""
        chunk = next(self._chunks, b"")
        at = 0
        while at < len(chunk):
            if self._ended:
                raise _damaged("there is more after their end")
            step = min(abs(self._need), len(chunk) - at)
            if self._need > 0:
                self._seen += chunk[at : at + step]
                self._need -= step
            else:
                self._need += step
            at += step
            if not self._need:
                self._advance()
        return chunk

    def finish(self) -> None:
        """Draw what follows the last byte of content. Raises IntegrityError unless it is just the frame's end."""
        while self.read():
            pass
        if not self._ended:
            raise _damaged("they end early")

    def _advance(self) -> None:
        try:
            while not self._need:
                seen, self._seen = self._seen, b""
                self._need = self._steps.send(seen)
        except StopIteration:
            self._ended = True

    def _walk(self) -> Generator[int, bytes, None]:
        """Asks for so many bytes to look at, or, if negative, to pass over."""
        import zstandard

        try:
            head = yield 5
            head += yield zstandard.frame_header_size(head) - len(head)
            claims = zstandard.get_frame_parameters(head)
        except zstandard.ZstdError as error:
            raise _damaged(error) from None
        if claims.content_size not in (self._size, zstandard.CONTENTSIZE_UNKNOWN):
            raise _damaged(f"they claim to hold {claims.content_size} bytes instead of {self._size}")
        last = 0
        while not last:
            block = int.from_bytes((yield 3), "little")
            last, kind, length = block & 1, block >> 1 & 3, block >> 3
            yield -1 if kind == 1 else -length
        if claims.has_checksum:
            yield -4
