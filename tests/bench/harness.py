"""Measuring two ways of doing the same thing against each other, fairly, on a machine that has other things to do.

All contenders run in turn, round after round, so that whatever slows the machine down slows each of them. What is
compared is the median over the rounds; each round's ratio is printed too, for its spread.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter


@dataclass(frozen=True)
class Result:
    """One line of the summary: how many times as fast as the other side, and how many it should be (0: no goal)."""

    name: str
    ratio: float
    goal: float

    @property
    def reached(self) -> bool:
        return self.ratio >= self.goal


RESULTS: list[Result] = []
"""Everything that :func:`compare` found in this run."""


def compare(
    name: str,
    ours: Callable[[], None],
    theirs: Mapping[str, Callable[[], None]],
    goal: Mapping[str, float] | float,
    *,
    rounds: int = 5,
    amount: float = 0.0,
    unit: str = "MB/s",
    before: Callable[[], None] = lambda: None,
) -> bool:
    """Run all sides ``rounds`` times in turn, print medians and ratios, and say whether every goal was reached.

    A goal is a ratio of speeds (their time / our time), one for all sides or one each. ``amount`` is the work of
    one call, in the unit of speed (``unit`` per second are printed); 0 prints seconds alone. ``before`` is called
    before each call, and not measured. CPU-seconds are those of this process and of what it waited for.
    """
    sides = {"quaymaster": ours, **theirs}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    for call in sides.values():
        before()
        call()  # brings files into the page cache and libraries into memory
    for turn in range(rounds):
        order = list(sides.items())
        for side, call in order if turn % 2 == 0 else reversed(order):
            before()
            start, used = perf_counter(), sum(os.times()[:4])
            call()
            seconds[side].append(perf_counter() - start)
            cpu[side].append(sum(os.times()[:4]) - used)
    print(f"\n{name}")
    mine = statistics.median(seconds["quaymaster"])
    print(f"  {'quaymaster':<34} {_speed(mine, amount, unit)}  {statistics.median(cpu['quaymaster']):6.2f} CPU-s")
    good = True
    for side in theirs:
        median = statistics.median(seconds[side])
        wanted = goal if isinstance(goal, float | int) else goal[side]
        result = Result(f"{name} / {side}", median / mine, wanted)
        RESULTS.append(result)
        good = good and result.reached
        each = sorted(their / our for their, our in zip(seconds[side], seconds["quaymaster"], strict=True))
        verdict = f"  goal {wanted:.2f}  {'reached' if result.reached else 'MISSED'}" if wanted else ""
        print(
            f"  {side:<34} {_speed(median, amount, unit)}  {statistics.median(cpu[side]):6.2f} CPU-s"
            f"  {result.ratio:5.2f} x  (rounds {each[0]:.2f} to {each[-1]:.2f}){verdict}"
        )
    return good


def _speed(seconds: float, amount: float, unit: str) -> str:
    return f"{seconds:7.3f} s" + (f" {amount / seconds:9.1f} {unit}" if amount else "")


def installed() -> dict[str, str]:
    """The environment for commands of ours: as in a package, bytecode is there from the second start on."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def shell(script: str, directory: Path) -> Callable[[], None]:
    """A contender that is a shell script, run in ``directory``."""

    def call() -> None:
        subprocess.run(["bash", "-ec", "set -o pipefail\n" + script], cwd=directory, check=True, stdout=subprocess.PIPE)

    return call


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A directory for the data of one benchmark, removed at its end. On QUAYMASTER_BENCH_DIR, else the temp dir."""
    with tempfile.TemporaryDirectory(prefix="quaymaster-bench-", dir=os.environ.get("QUAYMASTER_BENCH_DIR")) as path:
        yield Path(path)
