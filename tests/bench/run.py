"""Run the benchmarks and print what they found: ``python tests/bench/run.py [NAME ...]``.

A benchmark is a module ``bench_NAME.py`` beside this file with ``main() -> bool``, true when every goal was reached.
Exit status 0 when all did.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench.harness import RESULTS  # noqa: E402 - found through the line above


def available() -> list[str]:
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in available()]
    if unknown:
        print(f"There is no benchmark {unknown[0]!r}; there are: {', '.join(available())}", file=sys.stderr)
        return 2
    load = os.getloadavg()[0]
    print(f"{len(os.sched_getaffinity(0))} CPUs, load {load:.1f}; ratios are medians of interleaved rounds")
    failed = []
    for name in names or available():
        module = importlib.import_module(f"bench.bench_{name}")
        if not hasattr(module, "main"):
            continue
        if not module.main():
            failed.append(name)
    width = max((len(result.name) for result in RESULTS), default=0)
    print("\nSummary")
    for result in RESULTS:
        goal = f"goal {result.goal:.2f}  {'reached' if result.reached else 'MISSED'}" if result.goal else ""
        print(f"  {result.name:<{width}}  {result.ratio:6.2f} x  {goal}")
    if failed:
        print(f"Not all goals were reached: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
