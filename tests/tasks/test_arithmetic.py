"""`arithmetic`: answers are right, near misses are wrong, and no held-out problem is in the training rows."""

import re

import pytest

from minirlhf.tasks import arithmetic


def test_there_are_20_000_different_problems():
    problems = [arithmetic.problem(i) for i in range(20_000)]
    assert len({row["prompt"] for row in problems}) == 20_000
    assert arithmetic.problem(20_000) == problems[0]


def test_answers_are_right():
    for row in (arithmetic.problem(i) for i in range(0, 20_000, 7)):
        a, sign, b = re.fullmatch(r"(\d{1,2}) ([+-]) (\d{1,2}) =", row["prompt"]).groups()
        assert row["answer"] == int(a) + int(sign + b)


def test_held_out_problems_are_1000_and_never_trained_on():
    held_out, training = (
        {row["prompt"] for row in rows()} for rows in (arithmetic.held_out_prompts, arithmetic.training_prompts)
    )
    assert (len(held_out), len(training)) == (1_000, 19_000) and not held_out & training
    for rows in (arithmetic.sft_rows(3_000, 0), arithmetic.preference_rows(3_000, 0)):
        assert not held_out & {row["prompt"] for row in rows}
    assert {row["prompt"] for row in arithmetic.preference_rows(300, 0, held_out=True)} <= held_out


def test_sft_rows_hold_the_right_number():
    rows = arithmetic.sft_rows(200, 0)
    assert [row["response"] for row in rows] == [str(row["answer"]) for row in rows]


@pytest.mark.parametrize("flipped", [0.0, 0.05, 1.0])
def test_pairs_hold_the_right_number_and_a_near_miss_and_some_are_flipped(flipped):
    rows = arithmetic.preference_rows(2_000, 0, flipped=flipped)
    wrong = 0
    for row in rows:
        right, miss = row["chosen"], row["rejected"]
        if int(right) != row["answer"]:
            right, miss, wrong = miss, right, wrong + 1
        assert int(right) == row["answer"] and abs(int(miss) - row["answer"]) in (1, 2, 10)
    assert wrong / 2_000 == pytest.approx(flipped, abs=4 * (flipped * (1 - flipped) / 2_000) ** 0.5)


@pytest.mark.parametrize("make", [arithmetic.sft_rows, arithmetic.preference_rows])
def test_rows_are_a_function_of_the_seed(make):
    assert make(50, 3) == make(50, 3) != make(50, 4)


@pytest.mark.parametrize(
    ("answer", "text", "score"),
    [
        (7, "7", 1),
        (7, " 7\n", 1),
        (-7, "-7", 1),
        (7, "8", 0),
        (7, "-7", 0),
        (-7, "7", 0),
        (7, "", 0),
        (7, "7.", 0),
        (7, "7 7", 0),
        (7, "it is 7", 0),
        (7, "7\n7", 0),
        (7, "--7", 0),
        (7, "7" * 5_000, 0),
    ],
)
def test_only_the_right_number_without_other_text_scores(answer, text, score):
    rows = [{"answer": answer}]
    assert arithmetic.reward(["p"], [text], rows) == [score]
    assert arithmetic.gold(["p"], [text], rows) == {"gold_reward": [score]}
