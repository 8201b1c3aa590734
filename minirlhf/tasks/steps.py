"""A task for reward models of right and wrong: answers in steps, with a label for each step.

A row is {"prompt": text, "steps": [text], "labels": [true or false]}.
"""

from __future__ import annotations

import random

from minirlhf.data.columns import Columns
from minirlhf.data.reading import read_values
from minirlhf.errors import InputError, shown
from minirlhf.foreign import SURROGATE
from minirlhf.runtime.distributed import say
from minirlhf.tasks import reviews
from minirlhf.tasks.task import Task

KEYS = ("prompt", "steps", "labels")
HELD_OUT = 1024  # rows of the embedded task
HELD_OUT_EVERY = 20  # the first 1/20 of a user's rows is held out


def steps_task(data: str | None, rows: int, seed: int, outcome: bool, ignore_columns: tuple[str, ...] = ()) -> Task:
    """A task whose SFT rows are reviews, sentence by sentence, or the rows of a file.

    Args:
        data:    a file of rows; None writes `rows` reviews.
        outcome: join the steps of each answer; the label is true if every step is right.
    """
    if data is None:
        training, held_out = step_rows(rows, seed), step_rows(HELD_OUT, seed, held_out=True)
    else:
        found = read_steps(data, ignore_columns)
        first = len(found) // HELD_OUT_EVERY + 1
        held_out, training = found[:first], found[first:]
    if outcome:
        training, held_out = ([as_outcome(row) for row in part] for part in (training, held_out))
    training = [{**row, "response": "".join(row["steps"])} for row in training]  # the tokenizer learns these texts
    return Task("steps", training, [], [], held_out, [], [])


def step_rows(n: int, seed: int, *, held_out: bool = False) -> list[dict]:
    """n rows {prompt, steps, labels} for process reward models. A step is a sentence; its label is True if it parses.

    Some sentences have a fault. Every step ends with ". ".
    """
    rng = random.Random(f"reviews steps {seed} {held_out}")
    prompts = reviews.held_out_prompts() if held_out else reviews.training_prompts()
    rows = []
    for _ in range(n):
        prompt = rng.choice(prompts)["prompt"]
        sentences = reviews.write_review(rng, reviews.product_of(prompt)).removesuffix(".").split(". ")
        steps = [reviews.corrupt(rng, sentence) if rng.random() < 0.4 else sentence for sentence in sentences]
        labels = [reviews.sentence_parses(prompt, words.split(" "), i == 0) for i, words in enumerate(steps)]
        rows.append({"prompt": prompt, "steps": [f"{step}. " for step in steps], "labels": labels})
    return rows


def as_outcome(row: dict) -> dict:
    """All steps as one step. Its label is true if all labels are true."""
    return {**row, "steps": ["".join(row["steps"])], "labels": [all(row["labels"])]}


def read_steps(path: str, ignore_columns: tuple[str, ...] = ()) -> list[dict]:
    """The rows of a file. The notes on its columns are printed; see data/columns.py.

    Raises: InputError, with file and line, if a value is not a row of this task.
    """
    rows, columns = [], Columns()
    for unit, number, value in read_values(path):
        try:
            rows.append(_row(value) | {"line": number})
        except InputError as error:
            needed = '{"prompt": text, "steps": [text], "labels": [true or false]}'
            raise InputError(f"{path}: {unit} {number}: needed {needed}, got {error}") from None
        columns.look(value, KEYS, "steps", f"{unit} {number}")
    columns.check(path, ignore_columns)
    for note in columns.notes("steps"):
        say(f"{path}: {note}")
    if not rows:
        raise InputError(f"{path}: needed at least one row, got an empty file; write one JSON object per line")
    return rows


def _row(value: object) -> dict:
    """A row of the task.   Raises: InputError that says what came instead."""
    if isinstance(value, InputError):
        raise value
    if not isinstance(value, dict) or not all(key in value for key in KEYS):
        raise InputError(shown(value))
    prompt, steps, labels = (value[key] for key in KEYS)
    texts = [prompt, *steps] if isinstance(steps, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"prompt {shown(prompt)} and steps {shown(steps)}")
    if any(map(SURROGATE.search, texts)):
        raise InputError("half of a surrogate pair, which is no Unicode text")
    # 1 is right in some data sets, and neutral or a rating in others
    if not isinstance(labels, list) or not all(isinstance(label, bool) for label in labels):
        raise InputError(f"labels {shown(labels)}")
    if len(labels) != len(steps) or not steps or not all(steps):
        raise InputError(
            f"{len(labels)} labels for {len(steps)} steps, of which {len(steps) - sum(map(bool, steps))} are empty"
        )
    return {key: value[key] for key in KEYS}
