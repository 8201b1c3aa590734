"""Intervals against answers worked by hand."""

import math

import pytest

from minirlhf.errors import InputError
from minirlhf.evaluation.intervals import bootstrap, wilson


def test_wilson_by_hand():
    # z = 2, wins 1 of 4: p = 1/4, z²/n = 1. middle = 1/4 + 1/2; half = 2 sqrt(3/64 + 1/16) = sqrt(7)/4.
    low, high = wilson(1, 4, z=2)
    assert low == pytest.approx((0.75 - math.sqrt(7) / 4) / 2)
    assert high == pytest.approx((0.75 + math.sqrt(7) / 4) / 2)


def test_wilson_at_the_ends():
    # wins 0: the interval is [0, z²/n / (1 + z²/n)]; with z = 2 and n = 4 that is [0, 1/2].
    assert wilson(0, 4, z=2) == (0.0, pytest.approx(0.5))
    assert wilson(4, 4, z=2) == (pytest.approx(0.5), 1.0)
    assert wilson(8, 10) == (pytest.approx(0.490162, abs=1e-6), pytest.approx(0.943318, abs=1e-6))  # Newcombe's tables


def test_wilson_mirrors_and_counts_half_wins():
    low, high = wilson(2.5, 7)
    assert wilson(4.5, 7) == (pytest.approx(1 - high), pytest.approx(1 - low))


@pytest.mark.parametrize(("wins", "n"), [(0, 0), (-1, 3), (4, 3), (math.nan, 3)])
def test_wilson_refuses(wins, n):
    with pytest.raises(InputError, match="wilson: needed 0 <= wins <= n"):
        wilson(wins, n)


def test_bootstrap_by_hand():
    # Four values, one of them 1: the sum of a sample is binomial(4, 1/4). P(0) = 0.316, so the quantile 2.5% is 0.
    # P(4) = 1/256 = 0.004 and P(3 or 4) = 13/256 = 0.051, so the quantile 97.5% is 3/4.
    assert bootstrap([0.0, 1.0, 0.0, 0.0]) == (0.0, 0.75)


def test_bootstrap_of_many_values_is_near_the_normal_interval():
    values = [float(i % 2) for i in range(400)]  # mean 1/2, standard error 1/40
    low, high = bootstrap(values, draws=4000)
    assert low == pytest.approx(0.5 - 1.96 / 40, abs=0.004)
    assert high == pytest.approx(0.5 + 1.96 / 40, abs=0.004)


def test_bootstrap_does_not_depend_on_its_parts(monkeypatch):
    values = [i * i / 7 for i in range(12)]
    whole = bootstrap(values, seed=3)
    monkeypatch.setattr("minirlhf.evaluation.intervals.AT_A_TIME", 25)
    assert bootstrap(values, seed=3) == whole
    assert bootstrap(values, seed=4) != whole
    assert bootstrap([2.0] * 3) == (2.0, 2.0)
    with pytest.raises(InputError, match="got none"):
        bootstrap([])
