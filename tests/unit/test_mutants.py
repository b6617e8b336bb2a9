"""The catalogue of ways to break the product fits the product."""

from __future__ import annotations

import pytest

from mutants.catalogue import MUTANTS, Mutant
from mutants.run import TESTS, broken


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_fits_the_code_and_names_tests_that_are_there(mutant: Mutant) -> None:
    compile(broken(mutant), mutant.module, "exec")
    for test in mutant.tests:
        path, _, name = test.partition("::")
        if name:
            assert f"def {name.partition('[')[0]}(" in (TESTS / path).read_text()
