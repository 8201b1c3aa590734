"""Rows of answers in steps: reviews, and one label for the whole answer."""

from minirlhf.tasks.steps import HELD_OUT, as_outcome, steps_task

ROW = {"prompt": "a", "steps": ["b. ", "c. "], "labels": [True, False]}


def test_the_embedded_rows_depend_on_the_seed_and_have_both_labels():
    task = steps_task(40, seed=0)
    assert (len(task.steps), len(task.held_out_steps)) == (40, HELD_OUT)
    same, other = (steps_task(40, seed=seed).steps for seed in (0, 1))
    assert same == task.steps != other
    for row in task.steps:
        assert row["response"] == "".join(row["steps"]) and len(row["steps"]) == len(row["labels"])
    assert {label for row in task.steps for label in row["labels"]} == {True, False}


def test_an_outcome_is_one_step_that_is_right_if_all_steps_are():
    assert as_outcome(ROW) == {"prompt": "a", "steps": ["b. c. "], "labels": [False]}
    assert as_outcome({**ROW, "labels": [True, True]})["labels"] == [True]


def test_the_tokenizer_learns_the_prompts_and_answers_of_training_rows_only():
    task = steps_task(3, seed=0)
    assert list(task.texts()) == [text for row in task.steps for text in (row["prompt"], "".join(row["steps"]))]
