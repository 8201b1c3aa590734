"""The grammar of `reviews`: which texts parse, their gold reward, and the split of the prompts."""

import random

import pytest

from minirlhf.tasks import reviews
from minirlhf.tasks.reviews import gold, gold_reward, sentiment

PROMPT = "blue kitchen kettle in may:"
FIRST = "the kettle is good. "  # 0.5


def test_every_generated_review_parses():
    rows = reviews.sft_rows(5_000, seed=0)
    values = [sentiment(row["prompt"], row["response"]) for row in rows]
    assert None not in values
    assert min(values) < -0.9 and max(values) > 0.9 and abs(sum(values) / len(values)) < 0.1
    assert {row["response"].count(".") for row in rows} == {2, 3, 4}


@pytest.mark.parametrize(
    ("review", "value"),
    [
        ("the kettle is good. i bought it in may.", 0.5),  # a fact does not count
        ("the kettle is good. it is awful.", -0.25),  # (0.5 - 1) / 2
        ("the kettle is superb. the lid is weak. i hate it.", -1 / 6),  # (1 - 0.5 - 1) / 3
        ("the kettle is superb. the lid is blue. we use it in the attic. i like it.", 0.65),  # (1 + 0.3) / 2
        ("the kettle is very good. the base is red.", 0.75),  # 1.5 * 0.5
        ("the kettle is very superb. the base is red.", 1.0),  # 1.5, cut to 1
        ("the kettle is very awful. the base is red.", -1.0),
        ("the kettle is not awful. the base is red.", 0.5),  # -0.5 * -1
        ("the kettle is slightly poor. it is rather nice.", 0.075),  # (0.3 * -0.5 + 0.6 * 0.5) / 2
        ("the kettle is not dull. i dislike it. i love it.", (0.25 - 0.3 + 1) / 3),
    ],
)
def test_sentiment_is_the_mean_of_the_opinions(review, value):
    assert sentiment(PROMPT, review) == pytest.approx(value)
    assert gold_reward(PROMPT, review) == pytest.approx(value)


@pytest.mark.parametrize(
    "review",
    [
        "",
        ".",
        "the kettle is good.",  # one sentence
        FIRST + "it is bad.",  # no such adjective
        FIRST + "it is nice. it is nice. it is nice. it is nice.",  # five
        "the lamp is good. it is nice.",  # another product
        "a kettle is good. it is nice.",
        "it is nice. the kettle is good.",  # the product comes second
        "the kettle is blue. it is nice.",  # no judgement first
        FIRST + "it is nice",  # no end
        FIRST + "it is nice. ",
        " " + FIRST + "it is nice.",
        FIRST + "it is nice.\n",
        FIRST.strip() + "it is nice.",
        FIRST + "it  is nice.",
        FIRST + "It is nice.",
        FIRST + "it is very very nice.",
        FIRST + "it is very.",
        FIRST + "it is nice very.",
        FIRST + "it is nice. the.",
        FIRST + "the kettle is nice.",  # a product is no part
        FIRST + "the kettle is blue.",
        FIRST + "it is blue.",  # only a part may have a colour
        FIRST + "the lid is.",
        FIRST + "i adore it.",
        FIRST + "we love it.",
        FIRST + "i bought it in attic.",
        FIRST + "we use it in the may.",
        FIRST + "the lid is kitchen.",
        FIRST + "it is nice..",
        FIRST + ". it is nice.",
        "the kettle is . it is nice.",
    ],
)
def test_a_text_that_does_not_parse_has_gold_reward_minus_1(review):
    assert sentiment(PROMPT, review) is None
    assert gold_reward(PROMPT, review) == -1


def test_gold_measures_each_completion():
    texts = ["the kettle is good. it is awful.", "good good", "the kettle is dreadful. the lid is red."]
    assert gold([PROMPT] * 3, texts, [{}] * 3) == {"gold_reward": [-0.25, -1.0, -1.0], "grammatical": [1.0, 0.0, 1.0]}


def test_held_out_prompts_are_1024_and_disjoint_from_training_prompts():
    held_out, training = (
        {row["prompt"] for row in rows()} for rows in (reviews.held_out_prompts, reviews.training_prompts)
    )
    assert len(held_out) == len(reviews.held_out_prompts()) == 1024
    assert len(training) == len(reviews.training_prompts()) == 9216 - 1024 == 8192
    assert not held_out & training
    assert {prompt.split()[2] for prompt in held_out} == set(reviews.PRODUCTS)


def test_training_rows_have_no_held_out_prompt():
    held_out = {row["prompt"] for row in reviews.held_out_prompts()}
    for rows in (reviews.sft_rows(3_000, 0), reviews.preference_rows(1_500, 0)):
        assert not held_out & {row["prompt"] for row in rows}
    assert {row["prompt"] for row in reviews.preference_rows(500, 0, held_out=True)} <= held_out


@pytest.mark.parametrize("make", [reviews.sft_rows, reviews.preference_rows])
def test_rows_are_a_function_of_the_seed(make):
    assert make(50, 3) == make(50, 3) != make(50, 4)
    assert make(50, 3)[:20] == make(20, 3)
    random.seed(0)
    first = make(5, 3)
    random.seed(1)
    assert make(5, 3) == first  # the global generator is not used


def test_true_pairs_are_ordered_by_the_gold_reward():
    gaps = [
        gold_reward(row["prompt"], row["chosen"]) - gold_reward(row["prompt"], row["rejected"])
        for row in reviews.preference_rows(2_000, 0, flipped=0.0)
    ]
    assert min(gaps) >= 0.5


@pytest.mark.parametrize("flipped", [0.05, 0.5, 1.0])
def test_a_share_of_the_labels_is_flipped(flipped):
    rows = reviews.preference_rows(2_000, 0, flipped=flipped)
    wrong = sum(gold_reward(r["prompt"], r["chosen"]) < gold_reward(r["prompt"], r["rejected"]) for r in rows) / 2_000
    assert wrong == pytest.approx(flipped, abs=4 * (flipped * (1 - flipped) / 2_000) ** 0.5)


def test_pairs_have_texts_that_do_not_parse():
    rows = reviews.preference_rows(1_000, 0, flipped=0.0)
    broken = [sentiment(row["prompt"], row["rejected"]) is None for row in rows]
    assert 0.2 < sum(broken) / 1_000 < 0.8
    assert all(sentiment(row["prompt"], row["chosen"]) is not None for row in rows)
