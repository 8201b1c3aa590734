"""Judges say which of two completions is better: (prompts, firsts, seconds, rows) -> P(the first wins), in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from minirlhf.errors import InputError
from minirlhf.rewards.scoring import Reward, as_number, score_completions

Judge = Callable[[list[str], list[str], list[str], list[dict]], Sequence[float]]


def judge_by(reward: Reward) -> Judge:
    """A judge from a reward function or model: sigmoid(score of the first - score of the second), Bradley-Terry."""

    def judge(prompts: list[str], firsts: list[str], seconds: list[str], rows: list[dict]) -> list[float]:
        scores = score_completions(reward, prompts * 2, [*firsts, *seconds], rows * 2)
        gaps = (a - b for a, b in zip(scores[: len(firsts)], scores[len(firsts) :], strict=True))
        return [1 / (1 + math.exp(-max(-30.0, min(30.0, gap)))) for gap in gaps]

    return judge


def judge_pairs(
    judge: Judge, prompts: list[str], firsts: list[str], seconds: list[str], rows: list[dict]
) -> list[float]:
    """Call a judge and check its answer.   Raises: InputError if it is not one probability for each pair."""
    answer = judge(prompts, firsts, seconds, rows)
    chances = [as_number(x) for x in answer] if isinstance(answer, Iterable) else []
    name = getattr(judge, "__name__", type(judge).__name__)
    if len(chances) != len(prompts) or not all(0 <= p <= 1 for p in chances):
        raise InputError(
            f"judge {name}: needed {len(prompts)} probabilities in [0, 1], one a pair, got {len(chances)}: "
            f"{chances[:4]}; say how likely the first is the better one"
        )
    return chances
