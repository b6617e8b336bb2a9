"""P12: what work took in memory is there for others when it is done."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quaymaster.memory import EVERY, Freed

_HELD = """
import ctypes, os
from quaymaster.memory import give_back

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

kept = []
def burst():
    # Pieces that glibc takes from its heap, and something small above each that stays: so it cannot shrink by itself.
    return [(bytearray(b"x" * 100_000), kept.append(bytearray(600))) for _ in range(640)]

large = burst()
full = resident()
large.clear()
held = resident()
give_back()
print(full, held, resident(), hasattr(ctypes.CDLL(None), "malloc_trim"))
"""


def test_freed_memory_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _HELD], capture_output=True, text=True, check=True, timeout=60)
    full, held, given, glibc = done.stdout.split()
    if glibc != "True":
        pytest.skip("only glibc keeps what is freed")
    assert int(held) > int(full) - (32 << 20), "it was to be held, or this shows nothing"
    assert int(given) < int(full) - (48 << 20)


def test_it_is_given_back_while_there_is_work_and_once_after_it() -> None:
    given: list[float] = []
    now = 0.0
    freed = Freed(now, lambda: given.append(now))
    for second in range(1, 400):
        now = float(second)
        if second < 100:
            freed.work()
        freed.tick(now)
    assert given == [EVERY, 2 * EVERY, 3 * EVERY, 4 * EVERY]
