"""Judges return probabilities; any other answer is refused."""

import math

import pytest
import torch

from minirlhf.errors import InputError
from minirlhf.rewards import judge_by
from minirlhf.rewards.judges import BothOrders, judge_pairs, rubric

PROMPTS, FIRSTS, SECONDS, ROWS = ["p", "q"], ["aaa", "b"], ["a", "bb"], [{"n": 1}, {"n": 2}]


def length(prompts, completions, rows):
    return [len(text) for text in completions]


def test_a_reward_judges_by_bradley_terry():
    # lengths 3 against 1 and 1 against 2: sigmoid(2) and sigmoid(-1)
    probabilities = judge_by(length)(PROMPTS, FIRSTS, SECONDS, ROWS)
    assert probabilities == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))])


def test_the_two_orders_of_a_pair_add_up_to_1_and_a_tie_is_a_half():
    judge = judge_by(length)
    forward, swapped = judge(PROMPTS, FIRSTS, SECONDS, ROWS), judge(PROMPTS, SECONDS, FIRSTS, ROWS)
    assert [a + b for a, b in zip(forward, swapped, strict=True)] == pytest.approx([1.0, 1.0])
    assert judge(PROMPTS, FIRSTS, FIRSTS, ROWS) == [0.5, 0.5]


def test_the_reward_gets_each_completion_with_its_prompt_and_row():
    def reward(prompts, completions, rows):
        assert prompts == [*PROMPTS, *PROMPTS] and rows == [*ROWS, *ROWS] and completions == [*FIRSTS, *SECONDS]
        return [float(row["n"]) for row in rows]

    assert judge_by(reward)(PROMPTS, FIRSTS, SECONDS, ROWS) == [0.5, 0.5]


@pytest.mark.parametrize("gap", [1e4, 1e15])
def test_a_huge_gap_gives_certainty_without_overflow(gap):
    probabilities = judge_by(lambda p, c, rows: [gap, -gap])(["p"], ["a"], ["b"], [{}])
    assert probabilities == pytest.approx([1.0])
    assert judge_by(lambda p, c, rows: [-gap, gap])(["p"], ["a"], ["b"], [{}]) == pytest.approx([0.0])


def test_a_broken_reward_is_refused_by_its_name():
    for score in (math.nan, None):

        def broken(prompts, completions, rows, score=score):
            return [score] * len(completions)

        with pytest.raises(InputError, match="^reward broken: needed a finite number"):
            judge_by(broken)(PROMPTS, FIRSTS, SECONDS, ROWS)


@pytest.mark.parametrize("answer", [(1, 0), (True, 0.5), torch.tensor([0.25, 1.0])], ids=str)
def test_every_number_type_is_accepted_as_a_probability(answer):
    assert judge_pairs(lambda *_: answer, PROMPTS, FIRSTS, SECONDS, ROWS) == [float(x) for x in answer]


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        ([0.5], r"1: \[0.5\]"),
        ([0.5, 1.5], r"2: \[0.5, 1.5\]"),
        ([-0.1, 0.5], r"2: \[-0.1, 0.5\]"),
        ([0.5, math.nan], r"2: \[0.5, nan\]"),
        ([0.5, None], r"2: \[0.5, nan\]"),
        (["1", 0.5], r"2: \[nan, 0.5\]"),
        ([], r"0: \[\]"),
    ],
)
def test_an_answer_that_is_not_one_probability_per_pair_is_refused_by_name(answer, got):
    def strict(prompts, firsts, seconds, rows):
        return answer

    text = rf"^judge strict: needed 2 probabilities in \[0, 1\], one for each pair, got {got}; return how likely"
    with pytest.raises(InputError, match=text):
        judge_pairs(strict, PROMPTS, FIRSTS, SECONDS, ROWS)


@pytest.mark.parametrize("answer", [None, 0.5])
def test_an_answer_that_is_not_a_list_is_refused(answer):
    def strict(prompts, firsts, seconds, rows):
        return answer

    with pytest.raises(InputError, match="^judge strict: needed"):
        judge_pairs(strict, ["p"], ["a"], ["b"], [{}])


def test_both_orders_cancel_a_preference_for_a_place_and_count_it():
    def first_is_better(prompts, firsts, seconds, rows):  # by 0.2, beside the lengths
        pairs = zip(map(len, firsts), map(len, seconds), strict=True)
        return [0.7 if a == b else 1.0 if a > b else 0.3 for a, b in pairs]

    judge = BothOrders(first_is_better)
    # equal lengths: (0.7 + 1 - 0.7) / 2, and the verdict changes; 3 against 1: (1 + 1 - 0.3) / 2, and it does not
    assert judge(["p", "q"], ["aaa", "bb"], ["a", "cc"], [{}, {}]) == pytest.approx([0.85, 0.5])
    assert judge.disagreement == 0.5
    assert judge(["p"], ["aaa"], ["a"], [{}]) == pytest.approx([0.85]) and judge.disagreement == 0
    fair = judge_by(length)
    asked = PROMPTS, FIRSTS, SECONDS, ROWS
    assert BothOrders(fair)(*asked) == pytest.approx(fair(*asked))


def test_both_orders_refuse_an_answer_outside_of_0_and_1():
    with pytest.raises(InputError, match="^judge strict: needed 1 probabilities"):

        def strict(prompts, firsts, seconds, rows):
            return [1.5]

        BothOrders(strict)(["p"], ["a"], ["b"], [{}])


def test_a_rubric_is_the_weighted_mean_of_its_criteria():
    def short(completions):
        return [len(text) < 3 for text in completions]

    def polite(completions):
        return ["please" in text for text in completions]

    reward = rubric([(3, short), (1, polite)])
    assert reward(["p"] * 4, ["a", "please", "long", "ab"], [{}] * 4) == [0.75, 0.25, 0, 0.75]
    # judged: sigmoid(0.75 - 0.25)
    assert judge_by(reward)(["p"], ["a"], ["please"], [{}]) == pytest.approx([1 / (1 + math.exp(-0.5))])


def test_a_criterion_outside_of_0_and_1_and_bad_weights_are_refused():
    with pytest.raises(InputError, match=r"^rubric: length: needed a number in \[0, 1\] for each text, got 3"):
        rubric([(1, length)])(["p"], ["aaa"], [{}])
    for criteria in ([], [(0, length)], [(-1, length)], [(math.inf, length)]):
        with pytest.raises(InputError, match="^rubric: needed criteria with weights above 0, got the weights"):
            rubric(criteria)
