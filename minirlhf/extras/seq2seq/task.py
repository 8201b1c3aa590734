"""`opposite`: a review is rewritten to the opposite sentiment, keeping the product. It needs no data.

    prompt      a review of the grammar of tasks/reviews.py: "the kettle is good. i love it."
    completion  a review of the same product; a negative one, because the prompt is positive

Gold reward: the sentiment of the completion in [-1, 1], with its sign turned if the prompt is positive. It is -1 if the
completion does not parse or is about another product.
"""

from __future__ import annotations

import random
import zlib

from minirlhf.tasks.reviews import PRODUCTS, sentiment, write_review
from minirlhf.tasks.task import Task

CLEAR = 0.5  # the sentiment of each review in the rows has at least this size
CARELESS = 0.2  # the share of the demonstrations that keep the sentiment
ROWS, HELD_OUT = 8000, 256
HELD_OUT_EVERY = 9  # about every ninth prompt, chosen by a checksum of its text, is never trained on


def embedded(seed: int) -> Task:
    """The rows, the reward and the gold measures as a task."""
    train, held_out = rows(ROWS, seed), rows(HELD_OUT, seed, held_out=True)
    parts = {"sft": train, "prompts": train, "held_out_sft": held_out, "held_out_prompts": held_out}
    return Task("opposite", **parts, pairs=[], held_out_pairs=[], reward=reward, gold=gold)


def rows(n: int, seed: int, *, careless: float = CARELESS, held_out: bool = False) -> list[dict]:
    """n rows {prompt, response}. careless: the share of responses that have the sentiment of the prompt."""
    rng, found = random.Random(f"opposite {seed} {held_out}"), []
    while len(found) < n:
        product = rng.choice(PRODUCTS)
        prompt = _review(rng, product, sign=rng.choice((-1, 1)))
        if (zlib.crc32(prompt.encode()) % HELD_OUT_EVERY == 0) != held_out:
            continue
        turn = 1 if rng.random() < careless else -1
        found.append({"prompt": prompt, "response": _review(rng, product, sign=turn * _sign(prompt))})
    return found


def gold(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
    """The exact measures of each completion: gold_reward in [-1, 1], grammatical 0 or 1."""
    values = [_sentiment(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
    signs = map(_sign, prompts)
    return {
        "gold_reward": [-1.0 if v is None else -sign * v for v, sign in zip(values, signs, strict=True)],
        "grammatical": [float(value is not None) for value in values],
    }


def reward(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
    """The gold reward, as a reward function."""
    return gold(prompts, completions, rows)["gold_reward"]


def _sentiment(prompt: str, review: str) -> float | None:
    """The sentiment of a review of the product that the prompt reviews; None if it does not parse."""
    return sentiment(f"any any {prompt.split()[1]}", review)


def _sign(prompt: str) -> int:
    return 1 if _sentiment(prompt, prompt) > 0 else -1


def _review(rng: random.Random, product: str, sign: int) -> str:
    """A review of the product, of two sentences, with a clear sentiment of this sign."""
    while True:
        review = write_review(rng, product)
        if review.count(".") == 2 and sign * _sentiment(review, review) >= CLEAR:
            return review
