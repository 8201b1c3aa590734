"""`sentiment`: go on from the beginning of a review, in a positive way.

A text is a review of the grammar in reviews.py without its prompt. The beginning of the text is the prompt:

    "the kettle is rather"   ->   " wonderful. the cord is dreadful. i bought it in may."

The label of a text is the sign of its sentiment; texts near 0 are left out. Gold reward = the sentiment of the whole
text, in [-1, 1], if the text parses, else -1.
"""

from __future__ import annotations

import random
from dataclasses import replace

from minirlhf.data.formats import Dataset
from minirlhf.tasks import reviews
from minirlhf.tasks.labelled import labelled_task
from minirlhf.tasks.task import Task

CLEAREST = 0.2  # least size of the sentiment of a labelled text


def sentiment_task(rows: int, seed: int, words: int) -> Task:
    """The embedded task.   rows: number of texts, held-out texts included.   words: most words of a prompt."""
    dataset = Dataset("sentiment", "unpaired", "", labelled_texts(rows, seed), [])
    task = labelled_task(dataset, words=words)
    return replace(task, gold=gold, unpaired=with_wrong_labels(task.unpaired, seed))


def labelled_texts(n: int, seed: int) -> list[dict]:
    """n rows {prompt: "", response: text, label: True for a positive text}."""
    rng, rows = random.Random(f"sentiment {seed}"), []
    while len(rows) < n:
        text = reviews.write_review(rng, rng.choice(reviews.PRODUCTS))
        value = reviews.sentiment(prompt_of(text), text)
        if abs(value) >= CLEAREST:
            rows.append({"prompt": "", "response": text, "label": value > 0})
    return rows


def with_wrong_labels(rows: list[dict], seed: int, share: float = 0.05) -> list[dict]:
    """The rows with a share of the labels turned round, because human labels are sometimes wrong."""
    rng = random.Random(f"wrong labels {seed}")
    return [{**row, "label": row["label"] != (rng.random() < share)} for row in rows]


def prompt_of(text: str) -> str:
    """A prompt of `reviews` about the product that a text names in its second word."""
    product = (text.split(" ") + [""])[1]
    return f"a new {product if product in reviews.PRODUCTS else None}"  # no text has the product None


def gold(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
    """The exact measures of each whole text: gold_reward in [-1, 1], grammatical 0 or 1."""
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return reviews.gold([prompt_of(text) for text in texts], texts, rows)
