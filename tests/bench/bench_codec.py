"""Large files: the one verified pass against the shell chain it replaces, and against compressing alone."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from bench import data
from bench.harness import compare, shell, workspace
from quaymaster.model import Compression
from quaymaster.pipeline import codec

CPUS = len(os.sched_getaffinity(0))
DEFAULT_THREADS = max(1, min(4, CPUS // 2))  # limits.compress_threads = "auto"


def one_pass(source: Path, target: Path, level: int, threads: int = DEFAULT_THREADS) -> Callable[[], None]:
    """Read, hash, compress, hash, write, expand and compare: one file to another."""

    def call() -> None:
        size = source.stat().st_size
        layout, chosen = codec.choose_layout(Compression.ZSTD, size, waiting=0, cpus=CPUS, threads=threads)
        recipe = codec.Recipe(Compression.ZSTD, level, chosen, layout)
        with source.open("rb", buffering=0) as file, target.open("wb", buffering=0) as out:
            read = functools.partial(os.read, file.fileno(), codec.PIECE)
            write = functools.partial(os.write, out.fileno())
            encoded = codec.encode(read, write, recipe, size=size)
        assert encoded.source.size == size

    return call


def main() -> bool:
    with workspace() as directory:
        return all([against_the_chain(directory), against_compressing_alone(directory)])


def against_the_chain(directory: Path) -> bool:
    size = 256 * data.MIB
    source = data.make(directory / "reads.fastq", data.fastq, size)
    chain = "{hash} reads.fastq; zstd -q -f -3 {threads} reads.fastq -o s.zst; {hash} s.zst; zstd -dcq s.zst | {hash}"
    coreutils, openssl = "sha256sum + zstd -3", "openssl sha256 + zstd -3 -T2"
    return compare(
        "one pass, FASTQ 256 MiB, level 3",
        one_pass(source, directory / "ours.zst", 3, threads=2),  # as -T2 on the other side
        {
            coreutils: shell(chain.format(hash="sha256sum", threads=""), directory),
            openssl: shell(chain.format(hash="openssl dgst -sha256", threads="-T2"), directory),
        },
        {coreutils: 2.7, openssl: 1.1},
        amount=size / 1e6,
    )


def against_compressing_alone(directory: Path) -> bool:
    good = True
    kinds = {"FASTQ": data.fastq, "fp16": data.weights, "JSON": data.json_lines, "CSV": data.csv}
    for name, kind in kinds.items():
        for level, mebibytes in ((3, 96), (1, 128), (6, 48)):
            source = data.make(directory / f"{name}.in", kind, mebibytes * data.MIB)
            good &= compare(
                f"verified pass, {name} {mebibytes} MiB, level {level}",
                one_pass(source, directory / "ours.zst", level),
                {"zstd -T1 alone": shell(f"zstd -q -f -{level} -T1 {source.name} -o theirs.zst", directory)},
                0.85 if level == 3 else 0.0,
                amount=mebibytes * data.MIB / 1e6,
            )
    return good


if __name__ == "__main__":
    raise SystemExit(not main())
