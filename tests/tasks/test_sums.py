"""Sums for a calculator: rows, answers, and a calculator that agrees with them."""

from minirlhf.environments.tools.calculator import calculator
from minirlhf.tasks import sums


def test_held_out_sums_are_no_training_sums():
    train, asked = sums.problems(500, "a"), sums.problems(500, "b", held_out=True)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in asked}
    for row in train + asked:
        assert len(row["prompt"]) == 10 and calculator(row["prompt"].removesuffix("=")) == str(row["answer"])


def test_rows_that_ask_show_a_call_and_bare_sums_hardly_ever_do():
    rows = sums.sft_rows(4000, 0)
    asked = [row for row in rows if row["prompt"].startswith(sums.ASK)]
    bare = [row for row in rows if row not in asked]
    assert abs(len(asked) / 4000 - sums.ASKED) < 0.04  # five standard deviations of a share of 4,000 rows
    assert all("<calculator>" in row["response"] for row in asked)
    assert 0.02 < sum("<calculator>" in row["response"] for row in bare) / len(bare) < 0.08
    texts = [part["text"] for part in asked[0]["response_parts"]]
    sum_ = asked[0]["prompt"].removeprefix(sums.ASK).removesuffix("=")
    assert [part["by"] for part in asked[0]["response_parts"]] == ["policy", "environment", "policy"]
    assert texts == [f"<calculator>{sum_}</calculator>", f"<result>{texts[2]}</result>", calculator(sum_)]
    assert not any("<" in row["response"] or sums.ASK in row["prompt"] for row in sums.sft_rows(200, 0, tool=False))


def test_the_answer_stands_after_the_last_result():
    rows = [{"answer": 12}] * 4
    texts = ["12", "<calculator>5+7</calculator><result>12</result>12", "<result>12</result>", "<result>12</result>13"]
    assert sums.gold([""] * 4, texts, rows) == {"gold_reward": [1.0, 1.0, 0.0, 0.0]}
