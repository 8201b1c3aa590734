"""Rewards for length, repetition and tags: answers worked by hand."""

import pytest

from minirlhf.errors import InputError
from minirlhf.rewards.shaping import length_cosine, repetition, tags

ASKED = (["p"] * 5, ["", "ab", "abcd", "", "ab"], [{}] * 5)


def test_the_length_cosine_at_its_ends_and_in_the_middle():
    # T = 4. right: 2 at 0 letters, (2 + 1) / 2 at 2 letters; at 4 letters the limit; wrong: -10 at 0, -5 at 2
    reward = length_cosine(lambda p, c, rows: [1, 1, 1, 0, 0], 4)
    assert reward(*ASKED) == pytest.approx([2, 1.5, -10, -10, -5])


def test_a_right_answer_falls_with_its_length_and_a_wrong_answer_rises():
    texts = ["x" * n for n in range(20)]
    for right, sign in ((1, -1), (0, 1)):
        scores = length_cosine(lambda completions, right=right: [right] * len(completions), 20)(texts, texts, [{}] * 20)
        assert all(sign * (b - a) > 0 for a, b in zip(scores, scores[1:], strict=False))


def test_length_is_counted_by_another_function():
    def right(completions):
        return [1] * len(completions)

    words = length_cosine(right, 2, length=lambda text: len(text.split()), exceeded=-3.0)
    assert words(["p"] * 2, ["long", "two words"], [{}] * 2) == pytest.approx([1.5, -3.0])
    with pytest.raises(InputError, match="longest must be at least 1, got 0"):
        length_cosine(len, 0)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("", 0.0),
        ("a a", 0.0),  # no 3-gram
        ("a b c", 0.0),
        ("a a a a", -0.5),  # two 3-grams, one of them new
        ("a b c a b c", -0.25),  # abc bca cab abc
    ],
)
def test_the_share_of_repeated_three_grams(text, score):
    assert repetition([text]) == [score]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("  <think>\na\n</think>\n<answer></answer>\n", 1.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think> so <answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> more", 0.0),
        ("<think><think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("", 0.0),
    ],
)
def test_tags_in_order_and_once(text, score):
    assert tags([text]) == [score]
