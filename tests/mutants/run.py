"""Break a copy of the package in each way of the catalogue, and run the tests that must fail then.

``make mutants``, or with names as arguments only those. Prints a line for each; the exit status is 1 when one survived.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "daemon" / "quaymaster"
_LONGEST = 1200.0
"""Seconds for the tests of one mutant."""
_left_out = shutil.ignore_patterns(".*", "__pycache__", "dist", "build")
_OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "--tb=short", "-o", f"timeout={_LONGEST:.0f}")

sys.path[:0] = [str(TESTS)]
from mutants.catalogue import MUTANTS, Mutant  # noqa: E402


def broken(mutant: Mutant) -> str:
    """Its module, broken. Raises ValueError when the mutant does not fit the code."""
    text = (PACKAGE / mutant.module).read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: what it breaks is {text.count(mutant.old)} times in {mutant.module}")
    return text.replace(mutant.old, mutant.new)


def run(mutant: Mutant) -> tuple[bool, str]:
    """Whether its tests fail, and what they say."""
    text = broken(mutant)
    with tempfile.TemporaryDirectory(prefix="quaymaster-mutant-") as folder:
        copy = Path(folder) / "checkout"  # with the tests: guests with a kernel of their own run what is beside them
        shutil.copytree(TESTS.parent, copy, ignore=_left_out, symlinks=True)
        (copy / PACKAGE.relative_to(TESTS.parent) / mutant.module).write_text(text)
        tests = [each if each.startswith("-") or " " in each else f"tests/{each}" for each in mutant.tests]
        try:
            done = subprocess.run(
                [*(sys.executable, "-m", "pytest", *_OPTIONS, f"--basetemp={folder}/tests"), *tests],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy / "daemon")},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_LONGEST,
            )
        except subprocess.TimeoutExpired:
            return True, f"no end within {_LONGEST:.0f} s"
    said = re.findall(r"^E +(.+)$", done.stdout, re.M)
    end = done.stdout.strip().splitlines()[-1:]
    failed = any(re.search(r"\b\d+ failed\b", line) for line in end)
    return done.returncode == 1 and failed, (said or end or [done.stderr[-200:]])[0][:160]


def main(names: list[str]) -> int:
    chosen = [each for each in MUTANTS if not names or each.name in names]
    survived = 0
    for mutant in chosen:
        began = time.monotonic()
        caught, said = run(mutant)
        survived += not caught
        how = "caught  " if caught else "SURVIVED"
        print(f"{how} {mutant.name} ({mutant.broken}), {time.monotonic() - began:.0f} s: {said}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    return 1 if survived or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
