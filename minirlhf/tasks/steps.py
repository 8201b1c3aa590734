"""A task for reward models of right and wrong: answers in steps, with a label for each step.

A row is {"prompt": text, "steps": [text], "labels": [true or false]}.
"""

from __future__ import annotations

import random
import reprlib

from minirlhf.data.reading import read_values
from minirlhf.errors import InputError
from minirlhf.tasks import reviews
from minirlhf.tasks.task import Task

HELD_OUT = 1024  # rows of the embedded task
HELD_OUT_EVERY = 20  # the first 1/20 of a user's rows is held out


def steps_task(data: str | None, rows: int, seed: int, outcome: bool) -> Task:
    """A task whose SFT rows are reviews, sentence by sentence, or the rows of a file.

    Args:
        data:    a file of rows; None writes `rows` reviews.
        outcome: join the steps of each answer; the label is true if every step is right.
    """
    if data is None:
        training, held_out = step_rows(rows, seed), step_rows(HELD_OUT, seed, held_out=True)
    else:
        found = read_steps(data)
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


def check_types(row: dict) -> None:
    """Raise ValueError unless the prompt is a text, the steps are texts, and the labels are true or false.

    1 and 0 are no labels: in some files 0 is a neutral step and -1 a wrong step.
    """
    if not isinstance(row["prompt"], str):
        raise ValueError("the prompt is no text")
    if not isinstance(row["steps"], list) or not all(isinstance(step, str) for step in row["steps"]):
        raise ValueError("the steps are no list of texts")
    if not isinstance(row["labels"], list) or not all(isinstance(label, bool) for label in row["labels"]):
        raise ValueError("a label is neither true nor false")


def read_steps(path: str) -> list[dict]:
    """The rows of a file.   Raises: InputError, with file and line, if a value is not a row of this task."""
    rows = []
    for unit, number, value in read_values(path):
        try:
            if isinstance(value, InputError):
                raise value
            row = {"prompt": value["prompt"], "steps": value["steps"], "labels": value["labels"]}
            check_types(row)
            rows.append(row | {"line": number})
        except (ValueError, KeyError, TypeError) as error:
            needed = '{"prompt": text, "steps": [text], "labels": [true or false]}'
            got = error if error is value else f"{reprlib.repr(value)} ({error})"
            raise InputError(f"{path}: {unit} {number}: needed {needed}, got {got}") from None
    return rows
