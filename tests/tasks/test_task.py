"""Tasks from a user's rows: training rows, held-out rows, and the error of a stage without rows."""

import re

import pytest

from minirlhf.data.formats import Dataset
from minirlhf.errors import InputError
from minirlhf.tasks import embedded_task, reviews, task_from_rows

PROMPTS = [f"question {i}" for i in range(400)]


def dataset(kind, prompts=PROMPTS):
    answers = {"sft": ("response",), "preference": ("chosen", "rejected"), "prompt": ()}[kind]
    rows = [{"prompt": p, **{key: f"{key} {i}" for key in answers}, "line": i} for i, p in enumerate(prompts, 1)]
    return Dataset("rows.jsonl", kind, "{...}", rows, [])


def prompts_of(rows):
    return [row["prompt"] for row in rows]


def test_preference_rows_are_used_by_every_stage():
    task = task_from_rows(dataset("preference"))
    assert task.name == "rows.jsonl" and task.gold is None
    assert prompts_of(task.sft) == prompts_of(task.pairs) == prompts_of(task.prompts)
    assert [row["response"] for row in task.sft] == [row["chosen"] for row in task.pairs]
    assert [row["response"] for row in task.held_out_sft] == [row["chosen"] for row in task.held_out_pairs]


def test_sft_rows_are_used_by_sft_and_sampling():
    task = task_from_rows(dataset("sft"))
    assert prompts_of(task.sft) == prompts_of(task.prompts) and task.sft[0]["response"].startswith("response")
    assert task.pairs == task.held_out_pairs == []


def test_rows_of_prompts_are_used_by_sampling_only():
    task = task_from_rows(dataset("prompt"))
    assert task.sft == task.pairs == task.held_out_sft == task.held_out_pairs == []
    assert len(task.prompts) + len(task.held_out_prompts) == 400


def test_a_twentieth_of_the_prompts_is_held_out():
    task = task_from_rows(dataset("preference"))
    kept, held = prompts_of(task.prompts), prompts_of(task.held_out_prompts)
    assert sorted(kept + held) == sorted(PROMPTS)
    assert 8 <= len(held) <= 32  # 20 expected, standard deviation 4.4
    assert prompts_of(task.held_out_pairs) == prompts_of(task.held_out_sft) == held


def test_all_rows_of_a_prompt_are_on_the_same_side_and_the_prompt_is_sampled_once():
    task = task_from_rows(dataset("preference", PROMPTS * 3))
    kept, held = prompts_of(task.pairs), prompts_of(task.held_out_pairs)
    assert not set(kept) & set(held) and len(kept) + len(held) == 1200
    assert (len(task.prompts), len(task.held_out_prompts)) == (len(kept) // 3, len(held) // 3)


def test_keys_of_the_rows_are_kept():
    assert all("line" in row for row in task_from_rows(dataset("preference")).prompts)


@pytest.mark.parametrize(
    ("part", "needs"),
    [
        ("sft", "SFT needs rows {prompt, response}"),
        ("pairs", "training on pairs needs rows {prompt, chosen, rejected}"),
    ],
)
def test_a_stage_without_rows_is_refused(part, needs):
    task = task_from_rows(dataset("prompt"))
    text = f"rows.jsonl: {needs}, but the task has none; give --data FILE with such rows"
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        task.need(part)


def test_need_returns_the_rows():
    task = task_from_rows(dataset("sft"))
    assert task.need("sft") is task.sft


def test_texts_are_all_training_texts_and_no_held_out_text():
    task = task_from_rows(dataset("preference"))
    assert set(task.texts()) == {text for row in (*task.sft, *task.pairs) for key, text in row.items() if key != "line"}
    assert not set(task.texts()) & set(prompts_of(task.held_out_prompts))


@pytest.mark.parametrize("name", ["reviews", "arithmetic"])
def test_embedded_tasks_have_every_part_and_are_a_function_of_the_seed(name):
    task = embedded_task(name, 0, sft_rows=30, pair_rows=20)
    assert (len(task.sft), len(task.pairs), len(task.held_out_pairs)) == (30, 20, 1024)
    assert task == embedded_task(name, 0, sft_rows=30, pair_rows=20)
    assert task.sft != embedded_task(name, 1, sft_rows=30, pair_rows=20).sft
    trained = set(prompts_of(task.sft) + prompts_of(task.pairs) + prompts_of(task.prompts))
    assert not trained & set(prompts_of(task.held_out_prompts + task.held_out_pairs + task.held_out_sft))


def test_held_out_pairs_have_true_labels():
    task = embedded_task("reviews", 0, sft_rows=1, pair_rows=1)
    for row in task.held_out_pairs:
        assert reviews.gold_reward(row["prompt"], row["chosen"]) > reviews.gold_reward(row["prompt"], row["rejected"])
    assert all(r["response"] == r["chosen"] for r in task.held_out_sft)


def test_unknown_task_is_refused_with_the_known_ones():
    text = "task: needed reviews or arithmetic, got 'poems'; or give your own rows with --data FILE"
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        embedded_task("poems", 0)
