"""A judge compares two completions: (prompts, firsts, seconds, rows) -> P(the first is better), in [0, 1], per pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from minirlhf.rewards.calling import refused
from minirlhf.rewards.scoring import Reward, as_number, score_completions

Judge = Callable[[list[str], list[str], list[str], list[dict]], Sequence[float]]


def judge_by(reward: Reward) -> Judge:
    """A judge made from a reward function: sigmoid(score of the first - score of the second) (Bradley-Terry)."""

    def judge(prompts: list[str], firsts: list[str], seconds: list[str], rows: list[dict]) -> list[float]:
        scores = score_completions(reward, prompts * 2, [*firsts, *seconds], rows * 2)
        gaps = (a - b for a, b in zip(scores[: len(firsts)], scores[len(firsts) :], strict=True))
        return [1 / (1 + math.exp(-max(-30.0, min(30.0, gap)))) for gap in gaps]

    judge.collective = getattr(reward, "collective", False)
    return judge


def judge_pairs(
    judge: Judge, prompts: list[str], firsts: list[str], seconds: list[str], rows: list[dict]
) -> list[float]:
    """Call a judge and check its answer.   Raises: InputError unless it is one probability for each pair."""
    if not prompts and not getattr(judge, "collective", False):
        return []  # a process without rows
    answer = judge(prompts, firsts, seconds, rows)
    probabilities = [as_number(x) for x in answer] if isinstance(answer, Iterable) else []
    name = getattr(judge, "__name__", type(judge).__name__)
    if len(probabilities) != len(prompts) or not all(0 <= p <= 1 for p in probabilities):
        raise refused(
            f"judge {name}",
            f"needed {len(prompts)} probabilities in [0, 1], one for each pair, got "
            f"{len(probabilities)}: {probabilities[:4]}; return how likely the first completion is better",
        )
    return probabilities
