"""Measures of a reward model against answers worked by hand."""

import math

import pytest

from minirlhf.errors import InputError
from minirlhf.evaluation.intervals import wilson
from minirlhf.evaluation.reward_models import calibration_error, length_group, pair_measures


def test_pairs_by_hand():
    # margins 0.5, -1, 0, 3: right, wrong, half, right
    measures = pair_measures([1.5, 0, 1, 3], [1, 1, 1, 0], [(20, 10), (10, 20), (10, 10), (30, 1)])
    assert measures["pairs"] == 4 and measures["accuracy"] == 2.5 / 4 and measures["margin"] == 2.5 / 4
    assert measures["accuracy_interval"] == wilson(2.5, 4)
    assert measures["by_length"] == {
        "longer": {"pairs": 2, "accuracy": 1.0},
        "similar": {"pairs": 1, "accuracy": 0.5},
        "shorter": {"pairs": 1, "accuracy": 0.0},
    }
    with pytest.raises(InputError, match="needed at least one pair"):
        pair_measures([], [], [])


def test_calibration_by_hand():
    # 0.8 four times, three right (the side of 0.2 is the rejected one): |3 - 4 * 0.8| = 0.2
    # 0.6 once, right: 0.4. Together (0.2 + 0.4) / 5
    assert calibration_error([0.8, 0.8, 0.8, 0.2, 0.6]) == pytest.approx(0.6 / 5)
    assert calibration_error([0.5, 0.5]) == 0.0
    assert calibration_error([1.0, 1.0]) == 0.0 and calibration_error([0.0]) == 1.0
    # ten bins of width 0.05: 0.544 (right) and 0.548 (wrong) share a bin, 0.551 (wrong) stands in the next
    assert calibration_error([0.544, 1 - 0.548]) == pytest.approx(abs(1 - 0.544 - 0.548) / 2)
    assert calibration_error([0.544, 1 - 0.551]) == pytest.approx((1 - 0.544 + 0.551) / 2)
    # sure by log-odds of log(3), probability 3/4, and right in three of four
    log3 = math.log(3)
    measures = pair_measures([log3, log3, log3, 0], [0, 0, 0, log3], [(1, 1)] * 4)
    assert measures["calibration_error"] == pytest.approx(0)
    assert pair_measures([log3], [0], [(1, 1)])["calibration_error"] == pytest.approx(1 - 3 / 4)
    assert pair_measures([0], [log3], [(1, 1)])["calibration_error"] == pytest.approx(3 / 4)
    assert pair_measures([1e6], [-1e6], [(1, 1)])["calibration_error"] == 0.0
    with pytest.raises(InputError, match="needed at least one probability"):
        calibration_error([])


def test_length_groups():
    assert [length_group(*pair) for pair in [(10, 9), (9, 10), (0, 0), (11, 9), (8, 10)]] == [
        "similar", "similar", "similar", "longer", "shorter"
    ]  # fmt: skip
