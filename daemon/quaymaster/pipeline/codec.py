"""zstd and gzip in one verified pass (PRODUCT P1 to P4, X3).

    read ──► hash ──► compress ──► expand ──► hash ──► equal?
               │                      └─ hash ──► write  │
               └─────────────────────────────────────────┘

What was written may be published only after :func:`encode` has returned: then the stored bytes have been expanded
again, and came to the size and SHA-256 of what was read. A second digest was chosen over comparing with kept pieces.
It costs another hash, but memory does not grow with what the compressor holds back, and it also finds a buffer
that changed between hashing and compressing.

The output is one standard zstd frame with content size and checksum (RFC 8878), or one gzip member without name and
time (RFC 1952). For given content, format, level and library versions it is always the same bytes, however many
threads make it and however the reads are cut, so that an interrupted upload can go on.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from time import perf_counter
from typing import TypeVar

from quaymaster.destinations import crc64
from quaymaster.errors import IntegrityError
from quaymaster.model import Compression, Digests
from quaymaster.pipeline import formats
from quaymaster.pipeline.budget import Cancelled
from quaymaster.pipeline.formats import CHUNK, PIECE, Compressor, expand
from quaymaster.pipeline.stages import CompressionFailed, Stages

T = TypeVar("T")

_READ_AHEAD, _CHUNKS_AHEAD = 2, 1
"""Pieces, and compressed chunks, that wait between two stages."""

_TOLD_AT_LEAST = 2 * PIECE
"""Source bytes between two signs of progress while no compressed chunk comes along: zeros shrink to next to nothing."""


class Layout(Enum):
    """How the work on one file is spread."""

    INLINE = "inline"
    """The calling thread does everything. Best when other files keep the other CPUs busy, and for small files."""
    THREADED = "threaded"
    """Reading, compressing, expanding and writing overlap, each with its hashing. Best for one large file."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to encode one file."""

    compression: Compression
    level: int = 6
    threads: int = 1
    """zstd's own threads; gzip is always made by one. Does not change the output."""
    layout: Layout = Layout.INLINE
    timeout: float = 300.0
    """Seconds without progress of the compressor. In the INLINE layout it is noticed once the compressor returns."""
    others: tuple[str, ...] = ()
    """Names of further digests (hashlib's), recorded beside SHA-256."""
    known: Digests | None = None
    """Of the source from an earlier reading, with its CRC-64/NVME, when those who take the stored bytes prove them
    against that: what goes as it is is then not hashed once more."""
    crc: bool = False
    """Whether the CRC-64/NVME of the stored bytes is made too."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What :func:`encode` proved."""

    source: Digests
    stored: Digests
    compression: Compression
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Time by stage: read, hash, compress, write, expand, and ``total``. Stages overlap, so they may sum to more."""


def choose_layout(compression: Compression, size: int, *, waiting: int, cpus: int, threads: int) -> tuple[Layout, int]:
    """The layout for one file and the number of zstd threads, at most ``threads``.

    ``waiting``: files in flight or ready to be taken, this one not counted. When they are enough for all CPUs, one
    thread a file gets most done; so it does for a small file, which is ready before threads have started.
    """
    if compression is not Compression.ZSTD:
        threads = 1
    if size <= 4 * PIECE or cpus < 2 or waiting >= cpus:
        return Layout.INLINE, 1
    return Layout.THREADED, max(1, threads)


def memory_needed(recipe: Recipe, size: int | None = None) -> int:
    """An upper bound of the bytes that one :func:`encode` with this recipe holds, for a file of ``size`` bytes."""
    held = (_READ_AHEAD + 3) * PIECE
    if size is not None:
        held = min(held, size + PIECE)  # what was read, and the next read, which finds the end
    if recipe.compression is not Compression.NONE:
        held += PIECE + (2 * _CHUNKS_AHEAD + 4) * CHUNK  # two are drawn for one expanded piece
        held += formats.memory_needed(recipe.compression, recipe.level, recipe.threads, size)
    return held


def digest(pieces: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of a run of bytes, in hex."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def digests(data: bytes, others: tuple[str, ...]) -> Digests:
    """SHA-256 of some bytes, and the further digests that are named (hashlib's names)."""
    total = _Hasher(others)
    total.update(data)
    return total.result()


# -- the pass --


def encode(
    read: Callable[[], bytes | memoryview],
    write: Callable[[bytes | memoryview], None],
    recipe: Recipe,
    *,
    size: int,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    compressor: Callable[[Compression, int, int, int], Compressor] | None = None,
) -> Encoded:
    """Read ``size`` bytes, write their stored form, and prove that it expands to them again.

    ``read`` gives the next piece, b"" at the end; a piece stays as it is for as long as someone holds it. Pieces of
    1 MiB are fastest. ``write`` takes the stored bytes in order, in the calling thread; ``read`` may be called in
    another one, and neither is called after this function has ended. So ``read`` must come back, or raise, in bounded
    time. What they raise comes out unchanged. ``progress`` is told the source and stored bytes done so far.

    Raises CompressionFailed (start again with Compression.NONE and record the reason), Cancelled, and IntegrityError
    when the stored bytes do not expand to what was read, or the source is not ``size`` bytes long.
    """
    started = perf_counter()
    if recipe.compression is Compression.NONE:
        work = _Pass(read, write, recipe, size)
    else:
        work = _CompressingPass(read, write, recipe, size, compressor or formats.new_compressor)
    with Stages(cancelled, recipe.timeout) as stages:
        for done in work.steps(stages):
            if progress is not None:
                progress(done, work.stored.size)
            stages.check()
    source = work.source.result()
    stored = source if work.stored is work.source else work.stored.result()
    work.seconds["total"] = perf_counter() - started
    return Encoded(source, stored, recipe.compression, work.seconds)


class _Hasher:
    """SHA-256 and whatever digests stand beside it, over one run of bytes."""

    def __init__(self, others: tuple[str, ...], crc: bool = False) -> None:
        self.size = 0
        self._crc = 0 if crc else None
        self._sha256 = hashlib.sha256()
        self._others = {name: hashlib.new(name, usedforsecurity=False) for name in others if name != "sha256"}

    def update(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        for other in self._others.values():
            other.update(data)
        if self._crc is not None:
            self._crc = crc64.crc64nvme(data, self._crc)
        self.size += len(data)

    def result(self) -> Digests:
        others = {name: other.hexdigest() for name, other in self._others.items()}
        return Digests(self.size, self._sha256.hexdigest(), others, self._crc)


class _Known(_Hasher):
    """Only counts bytes whose digest is known, and proven elsewhere."""

    def __init__(self, known: Digests) -> None:
        super().__init__(())
        self._known = known

    def update(self, data: bytes | memoryview) -> None:
        self.size += len(data)

    def result(self) -> Digests:
        return replace(self._known, size=self.size)


class _Pass:
    """One file on its way as it is: what is stored is the source."""

    def __init__(
        self,
        read: Callable[[], bytes | memoryview],
        write: Callable[[bytes | memoryview], None],
        recipe: Recipe,
        size: int,
    ) -> None:
        self.read, self.write, self.recipe, self.size = read, write, recipe, size
        self.source = self.stored = _Known(recipe.known) if recipe.known else _Hasher(recipe.others, recipe.crc)
        self.seconds: dict[str, float] = {}

    def steps(self, stages: Stages) -> Iterator[int]:
        """Do the work; yields the number of source bytes that are done."""
        done = 0
        for piece in self.ahead(stages, self.pieces(), _READ_AHEAD, "read"):
            start = perf_counter()
            self.write(piece)
            self.spent("write", start)
            done += len(piece)
            yield done

    def ahead(self, stages: Stages, items: Generator[T, None, None], depth: int, name: str) -> Iterator[T]:
        return stages.ahead(items, depth, name) if self.recipe.layout is Layout.THREADED else items

    def pieces(self) -> Generator[bytes | memoryview, None, None]:
        """The source, hashed, in pieces of exactly PIECE bytes but for the last: zlib-ng's output depends on that."""
        held = b""
        while True:
            start = perf_counter()
            data = self.read()
            self.spent("read", start)
            start = perf_counter()
            self.source.update(data)
            self.spent("hash", start)
            found = self.source.size
            if found > self.size or (not data and found < self.size):
                raise IntegrityError(
                    f"The source gave {'at least' if data else 'only'} {found} bytes instead of {self.size}",
                    "Nothing was published; it is read again",
                )
            if not data:
                break
            if len(data) == PIECE and not held:
                yield data
                continue
            held += data
            while len(held) >= PIECE:
                yield held[:PIECE]
                held = held[PIECE:]
        if held:
            yield held

    def spent(self, stage: str, since: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - since


class _CompressingPass(_Pass):
    """One file on its way through a compressor, and back again to see that nothing changed."""

    def __init__(
        self,
        read: Callable[[], bytes | memoryview],
        write: Callable[[bytes | memoryview], None],
        recipe: Recipe,
        size: int,
        compressor: Callable[[Compression, int, int, int], Compressor],
    ) -> None:
        super().__init__(read, write, replace(recipe, crc=False), size)
        self.stored = _Hasher(recipe.others, recipe.crc)
        self._compressor = compressor
        self._expanded = hashlib.sha256()

    def steps(self, stages: Stages) -> Iterator[int]:
        pieces = self.ahead(stages, self.pieces(), _READ_AHEAD, "read")
        made = self.ahead(stages, self._compressed(stages, pieces), _CHUNKS_AHEAD, "compress")
        for chunks, done in self.ahead(stages, self._expanded_again(made), _CHUNKS_AHEAD, "expand"):
            for chunk in chunks:
                if self.stored.size + len(chunk) >= self.size:
                    raise CompressionFailed("does not shrink")
                start = perf_counter()
                self.stored.update(chunk)
                self.write(chunk)
                self.spent("write", start)
            yield done
        self._prove()

    def _expanded_again(self, chunks: Iterator[bytes]) -> Generator[tuple[tuple[bytes, ...], int], None, None]:
        """The same chunks, after they were expanded, with the number of source bytes that had come out by then."""
        drawn: list[bytes] = []
        clock = _Stopwatch(_noted(chunks, drawn))
        done = told = 0
        for piece in formats.expanded(clock, self.recipe.compression, self.size):
            self._expanded.update(piece)
            done += len(piece)
            self.seconds["expand"] = self.seconds.get("expand", 0.0) + clock.lap()
            if drawn or done - told >= _TOLD_AT_LEAST:
                taken, told = tuple(drawn), done
                drawn.clear()
                yield taken, done
            clock.lap()
        yield tuple(drawn), done

    def _prove(self) -> None:
        read, expanded = self.source.result().sha256, self._expanded.hexdigest()
        if expanded != read:
            raise IntegrityError(
                f"The compressed form expands to other bytes (SHA-256 {expanded} instead of {read})",
                "Nothing was published; it is compressed again. If it happens again, test this host's memory",
            )

    def _compressed(self, stages: Stages, pieces: Iterator[bytes | memoryview]) -> Generator[bytes, None, None]:
        recipe = self.recipe
        compressor = stages.codec_call(
            lambda: self._compressor(recipe.compression, recipe.level, recipe.threads, self.size)
        )
        for piece in pieces:
            yield from self._drawn(stages, functools.partial(compressor.compress, piece))
        yield from self._drawn(stages, compressor.finish)

    def _drawn(self, stages: Stages, work: Callable[[], Iterable[bytes]]) -> Iterator[bytes]:
        """What one call into the compressor makes; each step of it has the time limit to itself."""
        draw = functools.partial(next, iter(stages.codec_call(work)), None)
        while True:
            start = perf_counter()
            chunk = stages.codec_call(draw)
            self.spent("compress", start)
            if chunk is None:
                return
            yield chunk


def _noted(chunks: Iterator[bytes], drawn: list[bytes]) -> Iterator[bytes]:
    """The same chunks, each kept in ``drawn`` once it was asked for."""
    for chunk in chunks:
        drawn.append(chunk)
        yield chunk


class _Stopwatch:
    """Hands chunks on, and leaves the time that making them took out of its laps."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._since = perf_counter()

    def __iter__(self) -> _Stopwatch:
        return self

    def __next__(self) -> bytes:
        start = perf_counter()
        try:
            return next(self._chunks)
        finally:
            self._since += perf_counter() - start

    def lap(self) -> float:
        now = perf_counter()
        lap, self._since = now - self._since, now
        return lap


__all__ = [
    "PIECE",
    "Cancelled",
    "CompressionFailed",
    "Compressor",
    "Encoded",
    "Layout",
    "Recipe",
    "choose_layout",
    "digest",
    "encode",
    "expand",
    "memory_needed",
]
