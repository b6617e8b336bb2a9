"""Small files: thousands of them through codec and digests, against a shell that does the same in batches."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from bench import data
from bench.harness import compare, shell, workspace
from quaymaster.model import Compression
from quaymaster.pipeline import codec

FILES, SIZE = 5_000, 16 << 10

BATCHED = """
rm -rf theirs && mkdir theirs
find in -type f -print0 > names
xargs -0 -n 100 sha256sum < names > sums.in
xargs -0 -n 100 zstd -q -f --output-dir-flat theirs < names
find theirs -type f -print0 > stored
xargs -0 -n 100 sha256sum < stored > sums.out
xargs -0 -n 100 zstd -dcq < stored | sha256sum
"""


def each_in_turn(sources: Path, target: Path) -> Callable[[], None]:
    """What one worker does: every file hashed, compressed, hashed, written, expanded and compared."""

    def call() -> None:
        target.mkdir(exist_ok=True)
        recipe = codec.Recipe(Compression.ZSTD, level=3)
        proofs = []
        for entry in sorted(os.scandir(sources), key=lambda entry: entry.name):
            source = os.open(entry.path, os.O_RDONLY)
            out = os.open(target / f"{entry.name}.zst", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            read = functools.partial(os.read, source, codec.PIECE)
            size = os.fstat(source).st_size
            proofs.append(codec.encode(read, functools.partial(os.write, out), recipe, size=size))
            os.close(source)
            os.close(out)
        assert len(proofs) == FILES

    return call


def main() -> bool:
    with workspace() as directory:
        (directory / "in").mkdir()
        content = data.make(directory / "all", data.json_lines, FILES * SIZE).read_bytes()
        for number in range(FILES):
            (directory / "in" / f"{number:05}.json").write_bytes(content[number * SIZE : (number + 1) * SIZE])
        return compare(
            f"{FILES} files of 16 KiB, level 3",
            each_in_turn(directory / "in", directory / "ours"),
            {"xargs -n 100 sha256sum, zstd": shell(BATCHED, directory)},
            1.4,
            amount=FILES,
            unit="files/s",
        )


if __name__ == "__main__":
    raise SystemExit(not main())
