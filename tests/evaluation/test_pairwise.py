"""Win rates and judges against answers worked by hand."""

import math

import pytest

from minirlhf.evaluation.intervals import bootstrap
from minirlhf.evaluation.pairwise import RULES, in_both_orders, position_bias, verdict, win_by_score, win_rates
from minirlhf.rewards.judges import judge_by

PROMPTS, ROWS = ["p", "q", "r"], [{}, {}, {}]


def judged(judge, ours, theirs):
    pairs = in_both_orders(judge, PROMPTS[: len(ours)], ours, theirs, ROWS[: len(ours)])
    return [verdict(pair) for pair in pairs], position_bias(pairs)


def test_win_by_score():
    assert [win_by_score(*pair) for pair in [(2, 1), (1, 1), (0, 1)]] == [1.0, 0.5, 0.0]
    assert math.isnan(win_by_score(math.nan, 1)) and math.isnan(win_by_score(1, math.nan))


def test_win_rate_by_hand():
    # prompt 1: two pairs, 1 and 0 -> 0.5; prompt 2: 1 (nan is unknown); prompt 3: nothing is known
    wins = [[1.0, 0.0], [1.0, math.nan], [math.nan, math.nan]]
    sizes = [[(20, 10), (10, 20)], [(20, 10), (10, 20)], [(10, 10), (10, 10)]]
    found = win_rates(wins, sizes)
    assert found["prompts"] == 2 and found["rate"] == 0.75 and found["interval"] == bootstrap([0.5, 1.0])
    assert found["by_length"] == {
        "longer": {"prompts": 2, "rate": 1.0, "interval": (1.0, 1.0)},
        "shorter": {"prompts": 1, "rate": 0.0, "interval": (0.0, 0.0)},
    }
    assert win_rates([[math.nan]], [[(1, 1)]]) is None and win_rates([], []) is None


def test_the_interval_is_over_prompts_not_over_samples():
    # ten equal samples of one prompt are one observation
    few = win_rates([[1.0] * 10, [0.0] * 10], [[(1, 1)] * 10] * 2)
    assert few["interval"] == (0.0, 1.0)


def test_a_judge_without_bias():
    judge = judge_by(lambda prompts, completions, rows: [float(len(text)) for text in completions])
    verdicts, bias = judged(judge, ["aa", "b", "cc"], ["a", "bb", "dd"])
    assert verdicts == [1.0, 0.0, 0.5]
    assert bias == {"first": pytest.approx(0.5), "changed": 0.0}


def test_a_judge_that_prefers_the_first():
    verdicts, bias = judged(lambda p, a, b, r: [1.0] * len(a), ["a"] * 3, ["b"] * 3)
    assert verdicts == [0.5] * 3 and bias == {"first": 1.0, "changed": 1.0}


def test_bias_by_hand():
    # ours / theirs: 0.9 then 0.3 for theirs first: (0.9 + 0.7) / 2 = 0.8, a win, the same verdict both ways
    # second pair: 0.6, then 0.7 for theirs first: (0.6 + 0.3) / 2 = 0.45, a loss; the first answer won twice
    answers = iter([[0.9, 0.6], [0.3, 0.7]])
    verdicts, bias = judged(lambda *_: next(answers), ["a", "b"], ["c", "d"])
    assert verdicts == [1.0, 0.0]
    assert bias == {"first": pytest.approx((0.9 + 0.6 + 0.3 + 0.7) / 4), "changed": 0.5}
    assert position_bias([]) is None


def test_rules():
    assert RULES["longer"](PROMPTS, ["aa", "b", "c"], ["a", "bb", "d"], ROWS) == [1.0, 0.0, 0.5]
    assert RULES["shorter"](PROMPTS, ["aa", "b", "c"], ["a", "bb", "d"], ROWS) == [0.0, 1.0, 0.5]
