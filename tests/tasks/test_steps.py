"""Rows of answers in steps: reviews, a user's file, one label for the whole answer, and refusals."""

import json

import pytest

from minirlhf.errors import InputError
from minirlhf.tasks.steps import HELD_OUT, as_outcome, read_steps, steps_task

ROW = {"prompt": "a", "steps": ["b. ", "c. "], "labels": [True, False]}


@pytest.fixture
def file(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return write


def test_the_embedded_rows_depend_on_the_seed_and_have_both_labels():
    task = steps_task(None, 40, seed=0, outcome=False)
    assert (len(task.sft), len(task.held_out_sft)) == (40, HELD_OUT)
    same, other = (steps_task(None, 40, seed=seed, outcome=False).sft for seed in (0, 1))
    assert same == task.sft != other
    for row in task.sft:
        assert row["response"] == "".join(row["steps"]) and len(row["steps"]) == len(row["labels"])
    assert {label for row in task.sft for label in row["labels"]} == {True, False}


def test_the_first_20th_of_a_file_is_held_out(file):
    task = steps_task(file(*({**ROW, "prompt": str(n)} for n in range(40))), 0, seed=0, outcome=False)
    assert [row["prompt"] for row in task.held_out_sft] == ["0", "1", "2"] and len(task.sft) == 37


def test_an_outcome_is_one_step_that_is_right_if_all_steps_are(file):
    assert as_outcome(ROW) == {"prompt": "a", "steps": ["b. c. "], "labels": [False]}
    task = steps_task(file({**ROW, "labels": [True, True]}, ROW), 0, seed=0, outcome=True)
    assert [row["labels"] for row in (*task.held_out_sft, *task.sft)] == [[True], [False]]


def test_the_tokenizer_learns_from_training_rows_only(file):
    task = steps_task(file(*({**ROW, "prompt": str(n)} for n in range(3))), 0, seed=0, outcome=False)
    assert task.texts() == ["1", "b. c. ", "2", "b. c. "]


@pytest.mark.parametrize(
    "row",
    [
        *("{", [1], {"prompt": "a"}, {**ROW, "steps": 3}, {**ROW, "steps": "bc"}, {**ROW, "steps": ["b", 1]}),
        *({**ROW, "prompt": prompt} for prompt in (None, 1, ["a"], "\ud800")),
        *({**ROW, "labels": labels} for labels in (["no"], [1, 0], [True, 0], [True, 1.0], [True, None], True, "ab")),
    ],
)
def test_a_value_that_is_no_row_is_refused_with_its_line(file, row):
    path = file(ROW, "", row)
    with pytest.raises(InputError, match=rf'^{path}: line 3: needed {{"prompt": text, "steps": \[text\], "labels"'):
        read_steps(path)


def test_the_error_of_broken_json_shows_the_line(file):
    with pytest.raises(InputError, match=r"got broken JSON, Expecting value: 'nonsense'$"):
        read_steps(file(ROW, "nonsense"))
