"""Swaps files and directories under a watch with links to what its writer may not read, as fast as it can.

    python -m system.swapper LANDING ELSEWHERE OUTSIDE SEED

OUTSIDE holds the files "secret" and "folder/inside". Ends when its standard input does.
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import sys
import time

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # rename(2)
_libc = ctypes.CDLL(None, use_errno=True)
KINDS = ("file", "folder", "hard", "deep")
COPIES = 4
"""Of each kind."""
PAUSES = (0, 0, 0, 0.0005, 0.01, 0.3, 0.6)
"""Seconds: the longer ones let a file become whole."""


def make(landing: str, elsewhere: str, outside: str) -> list[tuple[str, str]]:
    """The pairs to exchange: what lies under the watch, and what is to take its place."""
    pairs = []
    for number in range(COPIES):
        inner = {
            "file": f"file-{number}",
            "hard": f"hard-{number}",
            "folder": f"folder-{number}",
            "deep": f"deep-{number}/middle",
        }
        os.mkdir(f"{landing}/deep-{number}")
        for kind, name in inner.items():
            there, here = f"{landing}/{name}", f"{elsewhere}/{kind}-{number}"
            if kind in ("folder", "deep"):
                os.mkdir(there)
                write(f"{there}/inside", kind, number)
                os.symlink(f"{outside}/folder", here)
            else:
                write(there, kind, number)
                if kind == "hard":
                    os.link(f"{outside}/secret", here)
                else:
                    os.symlink(f"{outside}/secret", here)
            pairs.append((there, here))
    return pairs


def write(path: str, kind: str, number: int) -> None:
    with open(path, "w") as file:
        file.write(f"mine: {kind} {number}\n" * 20)


def exchange(one: str, other: str) -> None:
    if _libc.renameat2(_AT_FDCWD, one.encode(), _AT_FDCWD, other.encode(), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), one)


def main(landing: str, elsewhere: str, outside: str, seed: str) -> None:
    chance, count = random.Random(int(seed)), 0
    pairs = make(landing, elsewhere, outside)
    while not select.select([sys.stdin], [], [], 0)[0]:
        for pair in chance.sample(pairs, 4):
            exchange(*pair)
            count += 1
        time.sleep(chance.choice(PAUSES))
    print(count)


if __name__ == "__main__":
    main(*sys.argv[1:5])
