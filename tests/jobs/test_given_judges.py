"""Rewards and judges that a user names."""

import pytest

from minirlhf.cli.eval import EvalConfig
from minirlhf.errors import InputError
from minirlhf.jobs.given_judges import _takes_pairs, open_judge


@pytest.mark.parametrize(
    ("function", "pairs"),
    [
        (lambda prompts, firsts, seconds, rows: 0, True),
        (lambda p, a, b, r, temperature=0.0: 0, True),
        (lambda prompts, completions, rows: 0, False),
        (lambda prompts, completions, rows, answer: 0, False),
        (lambda completions, **rest: 0, False),
    ],
)
def test_a_judge_of_pairs_has_four_parameters(function, pairs):
    assert _takes_pairs(function) is pairs


def test_an_unknown_judge_is_refused_with_the_rules():
    with pytest.raises(
        InputError, match="needed right, longer, shorter, a reward model's folder .* got 'shortr'; the nearest"
    ):
        open_judge(EvalConfig(data="rows.jsonl", judge="shortr"), [], "cpu")
