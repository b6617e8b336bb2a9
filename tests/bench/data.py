"""Deterministic data of the kinds the product meets, made with the standard library alone.

Each generator yields pieces of about 1 MiB without end; :func:`make` cuts a file of a given size from one.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

PIECE = 1 << 20
MIB = 1 << 20


def fastq(seed: int = 1) -> Iterator[bytes]:
    """Reads of 150 bases with binned qualities, as a current Illumina sequencer writes them; about 4:1 at zstd 3."""
    chance = random.Random(seed)
    genome = chance.randbytes(24 * MIB).translate(bytes(b"ACGT"[byte & 3] for byte in range(256)))
    runs = [b"F" * length for length in range(3, 60)] + [b":", b",", b"F:F", b":F,", b",:", b"FF,F", b"#"]
    weights = [12 / length for length in range(3, 60)] + [22, 15, 9, 7, 6, 5, 1.0]
    qualities = b"".join(chance.choices(runs, weights, k=1_500_000))
    bases, scores, uniform = len(genome) - 150, len(qualities) - 150, chance.random
    tile, x, y = 1101, 0, 1000
    lines: list[bytes] = []
    while True:
        for _ in range(PIECE // 370):
            x += int(uniform() * 40)
            if x > 32_000:
                x, y = 0, y + 16
                if y > 37_000:
                    tile, y = tile + 1, 1000
            base, score = int(uniform() * bases), int(uniform() * scores)
            lines.append(
                b"@A00741:312:HKYVLDSX7:2:%d:%d:%d 1:N:0:GTCAACTG+CCTTAGAC\n%b\n+\n%b\n"
                % (tile, x, y, genome[base : base + 150], qualities[score : score + 150])
            )
        yield b"".join(lines)
        lines.clear()


def weights(seed: int = 2) -> Iterator[bytes]:
    """Little-endian fp16 numbers from a normal distribution, as the checkpoint of a language model holds them."""
    chance = random.Random(seed)
    # The low byte (mantissa) is next to uniform; the high one (sign, exponent, two bits) carries the bell's shape,
    # drawn here from its 256 quantiles.
    high = sorted(struct.pack("<e", chance.gauss(0.0, 0.02))[1] for _ in range(256 * 64))[32::64]
    while True:
        piece = bytearray(PIECE)
        piece[0::2] = chance.randbytes(PIECE // 2)
        piece[1::2] = chance.randbytes(PIECE // 2).translate(bytes(high))
        yield bytes(piece)


def json_lines(seed: int = 3) -> Iterator[bytes]:
    """A service's log, one JSON object a line."""
    chance = random.Random(seed)
    uniform, pick = chance.random, chance.choice
    methods = ["GET", "GET", "GET", "POST", "PUT", "DELETE"]
    routes = [f"/api/v{n % 3}/{noun}" for n, noun in enumerate(["runs", "samples", "models", "users", "jobs", "files"])]
    clock = 1_700_000_000_000
    while True:
        lines = []
        for _ in range(PIECE // 190):
            clock += int(uniform() * 900)
            lines.append(
                f'{{"ts":{clock},"level":"info","method":"{pick(methods)}",'
                f'"path":"{pick(routes)}/{int(uniform() * 1e7)}","status":{200 if uniform() < 0.97 else 404},'
                f'"ms":{uniform() * 80:.3f},"bytes":{int(uniform() * 65e3)},'
                f'"trace":"{int(uniform() * (1 << 60)):015x}","host":"node-{int(uniform() * 40):02d}"}}\n'
            )
        yield "".join(lines).encode()


def csv(seed: int = 4) -> Iterator[bytes]:
    """Readings of an instrument: time, channel and four measured columns."""
    chance = random.Random(seed)
    uniform, level = chance.random, [20.0, 101.3, 7.4, 0.5]
    for batch in itertools.count():
        lines = []
        for row in range(PIECE // 46):
            level = [value + (uniform() - 0.5) * 0.02 for value in level]
            seconds = batch * (PIECE // 46) + row
            celsius, kilopascal, acidity, ampere = level
            lines.append(f"{seconds},ch{row % 24:02d},{celsius:.3f},{kilopascal:.3f},{acidity:.4f},{ampere:.4f}\n")
        yield "".join(lines).encode()


def noise(seed: int = 5) -> Iterator[bytes]:
    """What no compressor can make smaller."""
    chance = random.Random(seed)
    while True:
        yield chance.randbytes(PIECE)


def make(path: Path, kind: Callable[[], Iterator[bytes]], size: int) -> Path:
    """A file of exactly ``size`` bytes, fewer only for text cut at its last line."""
    with path.open("wb") as file:
        left = size
        for piece in kind():
            left -= file.write(piece[:left])
            if not left:
                return path
    raise AssertionError("the generators do not end")
