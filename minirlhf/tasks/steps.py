"""A task for reward models of right and wrong: answers in steps, with a label for each step.

A row is {"prompt": text, "steps": [text], "labels": [true or false]}.
"""

from __future__ import annotations

import random

from minirlhf.tasks import reviews
from minirlhf.tasks.task import Task
from minirlhf.tasks.user_rows import joined_steps

HELD_OUT = 1024  # rows of the embedded task


def steps_task(rows: int, seed: int) -> Task:
    """The embedded task: `rows` reviews, sentence by sentence, and held-out reviews."""
    parts = {"steps": step_rows(rows, seed), "held_out_steps": step_rows(HELD_OUT, seed, held_out=True)}
    return Task("steps", [], [], [], [], [], [], **{name: joined_steps(part) for name, part in parts.items()})


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
    """All steps of a row as one step. Its label is true if all labels are true."""
    return {**row, "steps": ["".join(row["steps"])], "labels": [all(row["labels"])]}
