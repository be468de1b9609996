"""The short form of `python -m benchmarks.agreement`."""

import pytest

from benchmarks import agreement


@pytest.fixture(scope="module")
def rows():
    return agreement.compare("float64", agreement.SHORT, agreement.SHORT_MUTANTS, agreement.SHORT_FORM)


def test_layouts_agree(rows):
    sound = [row for row in rows if row["mutant"] is None]
    assert len(sound) == len(agreement.SHORT) * len(agreement.SOUND)
    assert all(row["agrees"] for row in sound), agreement.table(sound)


@pytest.mark.parametrize("mutant", [agreement.GRADIENT, agreement.ROWS, agreement.NORM])
def test_a_mistake_is_caught(rows, mutant):
    of_mutant = [row for row in rows if row["mutant"] == mutant]
    assert not all(row["agrees"] for row in of_mutant), agreement.table(of_mutant)
