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


def test_several_judges_are_refused_and_an_async_judge_is_awaited(tmp_path):
    with pytest.raises(InputError, match="--judge: needed one judge, got several: 'a/b,c/d'"):
        open_judge(EvalConfig(data="rows.jsonl", judge="a/b,c/d"), [], "cpu")
    (tmp_path / "mine.py").write_text(
        "async def first(prompts, firsts, seconds, rows):\n    return [1.0] * len(rows)\n"
    )
    judge = open_judge(EvalConfig(data="rows.jsonl", judge=f"{tmp_path}/mine.py:first"), [{"prompt": "a"}], "cpu")
    assert judge(["a"], ["b"], ["c"], [{}]) == [1.0]
