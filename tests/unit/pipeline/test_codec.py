"""The verified pass: what it stores is standard, reproducible, and proven to expand to what was read."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quaymaster.destinations import crc64
from quaymaster.errors import IntegrityError, SourceUnavailable
from quaymaster.model import Compression, Digests
from quaymaster.pipeline import codec, formats
from quaymaster.pipeline.codec import PIECE, Cancelled, CompressionFailed, Encoded, Layout, Recipe, encode, expand

LAYOUTS = list(Layout)
FORMATS = [Compression.ZSTD, Compression.GZIP]
TOOLS = {Compression.ZSTD: ["zstd", "-dcq"], Compression.GZIP: ["gzip", "-dc"]}


def text(size: int, seed: int = 0) -> bytes:
    """Content that shrinks to about a third, and is never twice the same."""
    chance = random.Random(seed)
    words = [chance.randbytes(6) for _ in range(500)]
    return b" ".join(chance.choices(words, k=size // 7 + 1))[:size]


def cut(data: bytes, length: int) -> Callable[[], bytes]:
    pieces = iter([data[at : at + length] for at in range(0, len(data), length)])
    return lambda: next(pieces, b"")


def run(data: bytes, recipe: Recipe, *, length: int = PIECE, **more: object) -> tuple[bytes, Encoded]:
    stored = bytearray()
    encoded = encode(cut(data, length), stored.extend, recipe, size=len(data), **more)  # type: ignore[arg-type]
    return bytes(stored), encoded


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    limit = time.monotonic() + 10
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < limit, f"left behind: {left}"
        left.pop().join(0.1)


# -- what is stored --


@settings(deadline=None, max_examples=60)
@given(
    data=st.binary(max_size=3000).map(lambda seed: seed * 40),
    length=st.integers(1, 200_000),
    level=st.integers(1, 9),
    layout=st.sampled_from(LAYOUTS),
    compression=st.sampled_from(list(Compression)),
)
def test_any_bytes_cut_in_any_way_come_back(
    data: bytes, length: int, level: int, layout: Layout, compression: Compression
) -> None:
    try:
        stored, encoded = run(data, Recipe(compression, level, layout=layout), length=max(length, len(data) // 50))
    except CompressionFailed:
        compressor = formats.new_compressor(compression, level, 1, len(data))
        assert len(b"".join([*compressor.compress(data), *compressor.finish()])) >= len(data)
        return
    assert b"".join(expand([stored], compression, size=len(data))) == data
    assert encoded.source.sha256 == hashlib.sha256(data).hexdigest()
    assert encoded.stored.sha256 == hashlib.sha256(stored).hexdigest()
    assert (encoded.source.size, encoded.stored.size) == (len(data), len(stored))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", FORMATS)
@pytest.mark.parametrize(
    "size", [9_000, 131_072, 131_073, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, (4 << 20) + 1, (9 << 20) + 12_345]
)
def test_stock_tools_open_every_size(size: int, compression: Compression, layout: Layout) -> None:
    data = text(size)
    stored, encoded = run(data, Recipe(compression, 3, threads=2, layout=layout))
    assert subprocess.run(TOOLS[compression], input=stored, capture_output=True, check=True).stdout == data
    assert b"".join(expand(cut_up(stored, 70_001), compression, size=size)) == data
    assert encoded.compression is compression
    assert set(encoded.seconds) == {"read", "hash", "compress", "write", "expand", "total"}
    assert all(spent >= 0 for spent in encoded.seconds.values())


def cut_up(data: bytes, length: int) -> list[bytes]:
    return [data[at : at + length] for at in range(0, len(data), length)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", list(Compression))
def test_an_empty_file_goes_as_it_is(compression: Compression, layout: Layout) -> None:
    if compression is Compression.NONE:
        stored, encoded = run(b"", Recipe(compression, layout=layout))
        assert (stored, encoded.source.sha256) == (b"", hashlib.sha256().hexdigest())
        assert list(expand([], compression, size=0)) == []
    else:
        with pytest.raises(CompressionFailed, match="does not shrink"):
            run(b"", Recipe(compression, layout=layout))


def test_a_zstd_frame_says_its_size_and_carries_a_checksum() -> None:
    import zstandard

    for size in (5_000, 3 << 20):
        stored, _ = run(text(size), Recipe(Compression.ZSTD, 3))
        found = zstandard.get_frame_parameters(stored)
        assert (found.content_size, found.has_checksum, found.dict_id) == (size, True, 0)


def test_a_gzip_member_carries_no_name_and_no_time() -> None:
    stored, _ = run(text(50_000), Recipe(Compression.GZIP, 6))
    assert stored[:3] == b"\x1f\x8b\x08"
    assert (stored[3], stored[4:8]) == (0, bytes(4))


def test_bytes_that_go_as_they_are_are_hashed_once_for_both_sides() -> None:
    data = text(3 << 20)
    for layout in LAYOUTS:
        stored, encoded = run(data, Recipe(Compression.NONE, layout=layout, others=("md5",)))
        assert stored == data
        assert encoded.stored is encoded.source
        assert encoded.source.others == {"md5": hashlib.md5(data).hexdigest()}


def test_a_digest_that_others_prove_is_taken_as_it_is_but_the_size_is_counted() -> None:
    data = text(3 << 20)
    known = Digests(len(data), "ab" * 32, crc64nvme=7)
    stored, encoded = run(data, Recipe(Compression.NONE, known=known))
    assert stored == data
    assert encoded.source == encoded.stored == known
    assert encoded.stored.crc64nvme == 7
    with pytest.raises(IntegrityError, match="instead of"):
        encode(cut(data, PIECE), lambda _: None, Recipe(Compression.NONE, known=known), size=len(data) + 1)


@pytest.mark.parametrize("compression", Compression)
def test_the_crc_that_is_asked_for_is_that_of_the_stored_bytes(compression: Compression) -> None:
    data = text(3 << 20)
    for layout in LAYOUTS:
        stored, encoded = run(data, Recipe(compression, layout=layout, crc=True))
        assert encoded.stored.crc64nvme == crc64.crc64nvme(stored)
        assert encoded.source.crc64nvme in (None, encoded.stored.crc64nvme)


def test_weaker_digests_stand_beside_sha256_on_both_sides() -> None:
    data = text(300_000)
    stored, encoded = run(data, Recipe(Compression.ZSTD, 3, others=("md5", "sha1", "blake2b", "sha256")))
    for found, content in ((encoded.source, data), (encoded.stored, stored)):
        assert found.sha256 == hashlib.sha256(content).hexdigest()
        assert found.others == {name: hashlib.new(name, content).hexdigest() for name in ("md5", "sha1", "blake2b")}


@pytest.mark.parametrize("compression", FORMATS)
def test_the_same_content_gives_the_same_bytes_however_it_is_made(compression: Compression) -> None:
    for size, lengths in ((100_000, (777, 99_999, PIECE)), ((5 << 20) + 5, (777, 54_321, PIECE, 3 << 20))):
        data = text(size)
        made = {
            run(data, Recipe(compression, 6, threads, layout), length=length)[0]
            for threads in (1, 2, 4)
            for layout in LAYOUTS
            for length in lengths
        }
        assert len(made) == 1


def test_progress_only_grows_and_ends_at_the_totals() -> None:
    data = text(6 << 20)
    for layout in LAYOUTS:
        seen: list[tuple[int, int]] = []
        stored, _ = run(data, Recipe(Compression.ZSTD, 1, layout=layout), progress=lambda r, w: seen.append((r, w)))
        assert seen == sorted(seen)
        assert seen[-1] == (len(data), len(stored))
        assert len(seen) >= 3


# -- the proof --


class Flipping:
    """A compressor that turns one bit of its output over: what a broken CPU or memory does."""

    def __init__(self, compression: Compression, level: int, threads: int, size: int, *, at: int) -> None:
        self._inner = formats.new_compressor(compression, level, threads, size)
        self._left = at

    def _flip(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if 0 <= self._left < len(chunk):
                broken = bytearray(chunk)
                broken[self._left] ^= 16
                self._left = -1
                yield bytes(broken)
            else:
                self._left -= len(chunk) if self._left >= 0 else 0
                yield chunk

    def compress(self, data: bytes | memoryview) -> Iterator[bytes]:
        return self._flip(self._inner.compress(data))

    def finish(self) -> Iterator[bytes]:
        return self._flip(self._inner.finish())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", FORMATS)
def test_one_flipped_bit_anywhere_is_found(compression: Compression, layout: Layout) -> None:
    data = text(2_500_000)
    length = len(run(data, Recipe(compression, 1))[0])
    for at in (0, 2, 1000, length // 2, length - 5, length - 1):
        with pytest.raises(IntegrityError):
            run(data, Recipe(compression, 1, layout=layout), compressor=_flipping(at))


@pytest.mark.parametrize("compression", FORMATS)
def test_a_flip_in_the_header_is_found_or_harmless(compression: Compression) -> None:
    """No checksum covers a header; some of its bits mean nothing to whoever expands (unused ones, gzip's system)."""
    data = text(2_500_000)
    for at in range(20):
        stored = bytearray()
        try:
            encode(
                cut(data, PIECE),
                stored.extend,
                Recipe(compression, 1),
                size=len(data),
                compressor=_flipping(at),
            )
        except IntegrityError:
            continue
        opened = subprocess.run(TOOLS[compression], input=stored, capture_output=True, check=False)
        assert opened.stdout == data


def _flipping(at: int) -> Callable[..., Flipping]:
    return lambda compression, level, threads, size: Flipping(compression, level, threads, size, at=at)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_perfect_frame_of_other_content_is_found(layout: Layout) -> None:
    """Checksums inside the frame all agree: only comparing with the source can tell."""

    class Altering:
        def __init__(self, compression: Compression, level: int, threads: int, size: int) -> None:
            self._inner = formats.new_compressor(compression, level, threads, size)

        def compress(self, data: bytes | memoryview) -> Iterable[bytes]:
            altered = bytearray(data)
            altered[len(altered) // 2] ^= 1
            return self._inner.compress(bytes(altered))

        def finish(self) -> Iterable[bytes]:
            return self._inner.finish()

    for compression in FORMATS:
        with pytest.raises(IntegrityError, match="expands to other bytes"):
            run(text(2 << 20), Recipe(compression, 1, layout=layout), compressor=Altering)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lost", ["end", "all", "start"])
def test_a_compressor_that_forgets_content_is_found(lost: str, layout: Layout) -> None:
    """The frame claims its own, shorter size, so only what is missing from it tells."""
    data = text(5 << 20)
    kept = {"end": data[: 3 << 20], "all": b"", "start": data[1 << 20 :]}[lost]

    class Forgetting:
        def __init__(self, compression: Compression, level: int, threads: int, size: int) -> None:
            self._inner = formats.new_compressor(compression, level, threads, len(kept))

        def compress(self, data: bytes | memoryview) -> Iterable[bytes]:
            return []

        def finish(self) -> Iterable[bytes]:
            return [*self._inner.compress(kept), *self._inner.finish()]

    for compression in FORMATS:
        with pytest.raises(IntegrityError):
            run(data, Recipe(compression, 1, layout=layout), compressor=Forgetting)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_compressor_that_holds_everything_back_does_not_block_the_pass(layout: Layout) -> None:
    class Lagging:
        def __init__(self, *_: object) -> None:
            self._held: list[bytes] = []

        def compress(self, data: bytes | memoryview) -> Iterable[bytes]:
            self._held.append(bytes(data))
            return []

        def finish(self) -> Iterable[bytes]:
            inner = formats.new_compressor(Compression.ZSTD, 1, 1, sum(map(len, self._held)))
            for piece in self._held:
                yield from inner.compress(piece)
            yield from inner.finish()

    data = text(20 << 20)
    stored, _ = run(data, Recipe(Compression.ZSTD, 1, layout=layout), compressor=Lagging)
    assert b"".join(expand([stored], Compression.ZSTD, size=len(data))) == data


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("claimed", [0, 100_000, 299_999, 300_001, 5 << 20])
def test_a_source_of_another_size_is_found(claimed: int, compression: Compression, layout: Layout) -> None:
    with pytest.raises(IntegrityError, match="instead of"):
        encode(cut(text(300_000), 70_000), lambda _: None, Recipe(compression, 1, layout=layout), size=claimed)


# -- giving up --


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", FORMATS)
def test_content_that_does_not_shrink_is_given_up_before_it_is_stored_longer(
    compression: Compression, layout: Layout
) -> None:
    data = random.Random(1).randbytes(3 << 20)
    stored = bytearray()
    with pytest.raises(CompressionFailed) as caught:
        encode(cut(data, PIECE), stored.extend, Recipe(compression, 3, layout=layout), size=len(data))
    assert caught.value.reason == "does not shrink"
    assert len(stored) < len(data)


class Faulty:
    """A compressor that does ``fault()`` at its third piece."""

    def __init__(self, fault: Callable[[], object], size: int) -> None:
        self._inner = formats.new_compressor(Compression.ZSTD, 1, 1, size)
        self._fault = fault
        self._calls = 0

    def compress(self, data: bytes | memoryview) -> Iterable[bytes]:
        self._calls += 1
        if self._calls == 3:
            self._fault()
        return self._inner.compress(data)

    def finish(self) -> Iterable[bytes]:
        return self._inner.finish()


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_compressor_that_fails_says_why(layout: Layout) -> None:
    with pytest.raises(CompressionFailed, match="failed: table overflow"):
        run(
            text(6 << 20),
            Recipe(Compression.ZSTD, 1, layout=layout),
            compressor=lambda *_: Faulty(lambda: _raise(ValueError("table overflow")), 6 << 20),
        )


def test_a_compressor_that_hangs_is_given_up_after_the_time_limit_and_writes_nothing_later() -> None:
    release = threading.Event()
    writes: list[int] = []
    started = time.monotonic()
    try:
        with pytest.raises(CompressionFailed, match=r"no progress for 0\.3 s"):
            encode(
                cut(text(6 << 20), PIECE),
                lambda data: writes.append(len(data)),
                Recipe(Compression.ZSTD, 1, layout=Layout.THREADED, timeout=0.3),
                size=6 << 20,
                compressor=lambda *_: Faulty(release.wait, 6 << 20),
            )
        assert time.monotonic() - started < 5
        before = len(writes)
    finally:
        release.set()
    for thread in threading.enumerate():
        if thread.name == "quaymaster-compress":
            thread.join(10)
    assert len(writes) == before


def test_inline_a_slow_compressor_is_noticed_when_it_returns() -> None:
    with pytest.raises(CompressionFailed, match=r"no progress for 0\.05 s"):
        run(
            text(6 << 20),
            Recipe(Compression.ZSTD, 1, timeout=0.05),
            compressor=lambda *_: Faulty(lambda: threading.Event().wait(0.2), 6 << 20),
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("slow", ["read", "write"])
def test_waiting_for_the_disk_or_the_network_is_no_lack_of_progress(slow: str, layout: Layout) -> None:
    data = text(3 << 20)
    stored = bytearray()
    inner = cut(data, PIECE)
    waited: set[str] = set()

    def wait(what: str) -> None:
        """Once, for longer than the limit; which is long enough for a processor that is busy with other things."""
        if slow == what and what not in waited:
            waited.add(what)
            threading.Event().wait(2.5)

    def read() -> bytes:
        wait("read")
        return inner()

    def write(chunk: bytes | memoryview) -> None:
        wait("write")
        stored.extend(chunk)

    encode(read, write, Recipe(Compression.ZSTD, 1, layout=layout, timeout=2), size=len(data))
    assert waited == {slow}
    assert b"".join(expand([bytes(stored)], Compression.ZSTD, size=len(data))) == data


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cancelling_stops_the_pass(layout: Layout, compression: Compression) -> None:
    reads = 0

    def read() -> bytes:
        nonlocal reads
        reads += 1
        return text(PIECE, seed=reads % 3)

    with pytest.raises(Cancelled):
        encode(
            read,
            lambda _: None,
            Recipe(compression, 1, layout=layout),
            size=1 << 40,
            cancelled=lambda: reads >= 20,
        )
    assert reads < 60


def test_cancelling_does_not_wait_for_a_compressor_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quaymaster.pipeline.stages._GRACE", 0.2)
    hanging, release = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        release.wait()

    try:
        with pytest.raises(Cancelled):
            run(
                text(6 << 20),
                Recipe(Compression.ZSTD, 1, layout=Layout.THREADED, timeout=3600),
                compressor=lambda *_: Faulty(hang, 6 << 20),
                cancelled=hanging.is_set,
            )
    finally:
        release.set()


@settings(deadline=None, max_examples=80)
@given(
    where=st.sampled_from(["read", "write", "compressor", "progress", "cancelled"]),
    count=st.integers(1, 14),
    layout=st.sampled_from(LAYOUTS),
    compression=st.sampled_from(list(Compression)),
    threads=st.integers(1, 2),
)
def test_a_failure_at_any_point_comes_out_unchanged_and_nothing_runs_on(
    where: str, count: int, layout: Layout, compression: Compression, threads: int
) -> None:
    calls = dict.fromkeys(["read", "write", "compressor", "progress", "cancelled"], 0)
    fault = SourceUnavailable("the share is away")
    over = False

    def step(name: str) -> None:
        assert not over, f"{name} was called after the pass had ended"
        calls[name] += 1
        if name == where and calls[name] == count:
            raise fault

    inner = cut(CONTENT, PIECE)

    class Stepping:
        def __init__(self, compression: Compression, level: int, threads: int, size: int) -> None:
            self._inner = formats.new_compressor(compression, level, threads, size)

        def compress(self, data: bytes | memoryview) -> Iterable[bytes]:
            step("compressor")
            return self._inner.compress(data)

        def finish(self) -> Iterable[bytes]:
            return self._inner.finish()

    raised: BaseException | None = None
    try:
        encode(
            lambda: (step("read"), inner())[1],
            lambda _: step("write"),
            Recipe(compression, 1, threads, layout),
            size=len(CONTENT),
            progress=lambda *_: step("progress"),
            cancelled=lambda: step("cancelled") is not None,
            compressor=Stepping,
        )
    except (SourceUnavailable, CompressionFailed) as error:
        raised = error
    over = True
    if raised is None:
        assert calls[where] < count
    elif where == "compressor":
        assert isinstance(raised, CompressionFailed)
        assert raised.__cause__ is fault
    else:
        assert raised is fault
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quaymaster-")]


CONTENT = text(8 << 20)


# -- what the caller plans with --


def test_one_thread_a_file_while_others_wait_and_for_small_files() -> None:
    zstd, large = Compression.ZSTD, 1 << 30
    assert codec.choose_layout(zstd, large, waiting=0, cpus=8, threads=4) == (Layout.THREADED, 4)
    assert codec.choose_layout(zstd, large, waiting=8, cpus=8, threads=4) == (Layout.INLINE, 1)
    assert codec.choose_layout(zstd, large, waiting=0, cpus=1, threads=1) == (Layout.INLINE, 1)
    assert codec.choose_layout(zstd, 16 << 10, waiting=0, cpus=8, threads=4) == (Layout.INLINE, 1)
    assert codec.choose_layout(Compression.GZIP, large, waiting=0, cpus=8, threads=4) == (Layout.THREADED, 1)


MEASURE = r"""
import random, re, sys
from quaymaster.model import Compression, Digests
from quaymaster.pipeline.codec import Layout, Recipe, encode, memory_needed
import zstandard, zlib_ng.zlib_ng
def peak(): return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) << 10
chance = random.Random(1)
letters = bytes(b"ACGT"[n & 3] for n in range(256))
recipe = Recipe(Compression(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Layout(sys.argv[4]))
size, left = int(sys.argv[5]), int(sys.argv[5])
def read():
    global left
    data = chance.randbytes(min(left, 1 << 20)).translate(letters)
    left -= len(data)
    return data
before = peak()
encode(read, lambda data: None, recipe, size=size)
print(peak() - before, memory_needed(recipe, size))
"""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("compression", "level", "threads", "mebibytes"),
    [("zstd", 1, 4, 64), ("zstd", 3, 2, 64), ("zstd", 6, 1, 24), ("zstd", 9, 2, 40), ("gzip", 1, 1, 24)],
)
def test_a_pass_holds_no_more_memory_than_it_says(
    compression: str, level: int, threads: int, mebibytes: int, layout: Layout
) -> None:
    command = [sys.executable, "-c", MEASURE, compression, str(level), str(threads), layout.value, str(mebibytes << 20)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    held, promised = map(int, found.split())
    print(f"held {held} of {promised}")
    assert held < promised
    assert promised < 8 * max(held, 8 << 20)  # a bound that is far too high would keep other files waiting


def test_digest_is_sha256_of_all_pieces() -> None:
    assert codec.digest([b"ab", memoryview(b"c")]) == hashlib.sha256(b"abc").hexdigest()
