"""The final answer of a text, the comparison of two answers, and the reward for right answers."""

import pytest

from minirlhf.errors import InputError
from minirlhf.rewards.answers import check_answers, exact_match, final_answer, is_right, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48 / 2 = 24\n48 + 24 = 72\n#### 72", "72"),
        ("#### 1\nno:\n#### 2\n", "2"),  # the last mark
        ("thus \\boxed{\\frac{1}{2}} of 3", "\\frac{1}{2}"),
        ("The answer is 72. That is 5 more.", "72"),
        ("Answer: Paris.", "Paris"),
        ("所以答案是72。", "72"),
        ("答案：**72**", "72"),
        ("it costs $1,234.50.", "1,234.50"),
        ("10-5", "5"),  # a minus after a number is no sign
        ("x = -5", "-5"),
        ("temperature: −5", "-5"),
        ("３ 个", "3"),
        ("3/4 cup", "3/4"),
        ("#### 7 and \\boxed{8}", "7 and \\boxed{8}"),  # a line of #### goes first
        ("v2 is best", None),
        ("", None),
        ("####", None),
    ],
)
def test_the_final_answer_of_a_text(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("1,000", "1000", True),
        ("1,00", "100", False),
        ("0.50", "1/2", True),
        ("\\frac{1}{2}", ".5", True),
        ("$72", "72 dollars", True),
        ("72 of 80", "72", False),  # two numbers
        ("0", "0 cats", True),
        ("50%", "50", True),
        ("-5", "5", False),
        ("+5", "5", True),
        ("Paris", "  paris.", True),
        ("Paris", "London", False),
        ("1/0", "1/0", True),  # as text
        ("9" * 5000, "9" * 5000, True),  # as text
        ("", "0", False),
    ],
)
def test_two_answers_are_the_same(a, b, same):
    assert same_answer(a, b) is same is same_answer(b, a)


def test_the_reward_is_1_for_a_right_answer():
    rows = [{"answer": 4}, {"answer": "4"}, {"answer": "2 + 2 = 4\n#### 4"}, {"answer": "Paris"}, {}]
    texts = ["so it is 4", "5", "2 + 2 is 4", "paris.", "x"]
    assert exact_match([""] * 5, texts, rows) == [1, 0, 1, 1, None]
    assert not is_right("", 4) and not is_right("I do not know", "4") and not is_right("In Paris", "Paris")


@pytest.mark.parametrize("row", [{}, {"answer": None}, {"answer": ""}, {"answer": [1]}, {"answer": True}])
def test_a_row_without_an_answer_is_refused_by_name(row):
    check_answers([{"answer": 0, "prompt": ""}])
    with pytest.raises(InputError, match='line 3: needed text or a number under "answer"'):
        check_answers([{"answer": "1"}, {"prompt": "a", "line": 3, **row}])
