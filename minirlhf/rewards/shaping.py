"""Rewards for the form of a text: its length, its repetitions, its tags."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from minirlhf.errors import InputError
from minirlhf.rewards.scoring import Reward, score_completions

TAGS = ("think", "answer")
RIGHT, WRONG = (2.0, 1.0), (-10.0, 0.0)  # Yeo et al. 2025, Table 1: (score of an empty text, score of a long text)


def length_cosine(
    correct: Reward,
    longest: int,
    *,
    right: tuple[float, float] = RIGHT,
    wrong: tuple[float, float] = WRONG,
    exceeded: float = -10.0,
    length: Callable[[str], int] = len,
) -> Reward:
    """A right answer earns more if it is short; a wrong answer loses less if it is long, because it has tried longer.

        score(t) = b + (a - b) (1 + cos(pi t / T)) / 2    from a at length 0 to b at length T;  `exceeded` from T on
        Yeo et al. 2025, arXiv:2502.03373, Eq. 1

    Args:
        correct: a reward of 1 for a right and 0 for a wrong answer, such as `exact_match`.
        longest: T, in the unit of `length`: letters, unless another function counts.
        right, wrong: (a, b).
    """
    if longest < 1:
        raise InputError(f"length_cosine: longest must be at least 1, got {longest}")

    def score(is_right: float, text: str) -> float:
        (start, end), share = (right if is_right > 0.5 else wrong), length(text) / longest
        return exceeded if share >= 1 else end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    def cosine(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
        known = score_completions(correct, prompts, completions, rows)
        return [score(is_right, text) for is_right, text in zip(known, completions, strict=True)]

    cosine.collective = getattr(correct, "collective", False)
    return cosine


def repetition(completions: list[str], n: int = 3) -> list[float]:
    """Minus the share of n-grams of words that repeat an earlier n-gram: 0 without repetition, at least -1.

    A text with fewer than n words scores 0.
    """

    def share(words: list[str]) -> float:
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    return [-share(text.split()) for text in completions]


def tags(completions: list[str], names: tuple[str, ...] = TAGS) -> list[float]:
    """1 for a text that is <think>...</think> <answer>...</answer> and holds each tag once; else 0.

    DeepSeek-AI 2025, arXiv:2501.12948, Section 2.2.2.   names: of the tags, in their order.
    """
    parts = r"\s*".join(f"<{name}>.*</{name}>" for name in map(re.escape, names))
    marks = [mark for name in names for mark in (f"<{name}>", f"</{name}>")]
    return [
        float(bool(re.fullmatch(parts, text.strip(), re.DOTALL)) and all(text.count(mark) == 1 for mark in marks))
        for text in completions
    ]
