"""A task for reward models of right and wrong: answers in steps, with a label for each step.

A row is {"prompt": text, "steps": [text], "labels": [true or false]}.
"""

from __future__ import annotations

import random

from minirlhf.data.formats import read_rows
from minirlhf.runtime.distributed import say
from minirlhf.tasks import reviews
from minirlhf.tasks.task import Task

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
    """The rows of a file. The notes on its columns are printed; see data/columns.py."""
    dataset = read_rows(path, max_refused=0.0, as_kind="steps", ignore_columns=ignore_columns)
    for note in dataset.notes:
        say(f"{path}: {note}")
    return list(dataset.rows)
