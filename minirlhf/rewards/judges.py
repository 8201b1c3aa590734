"""A judge compares two completions: (prompts, firsts, seconds, rows) -> P(the first is better), in [0, 1], per pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from operator import mul

from minirlhf.errors import InputError
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


class BothOrders:
    """A judge that is asked in both orders; the mean of both answers has no position bias.

    P(first is better) = (P(asked first, second) + 1 - P(asked second, first)) / 2
    Zheng et al. 2023, arXiv:2306.05685, Section 3.4: judges that are language models favour an answer for its place.

    disagreement: of the last call, the share of pairs for which the judge names another winner in the other order.
    Online preference learning reports it as a metric.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge, self.disagreement = judge, 0.0
        self.__name__ = f"{getattr(judge, '__name__', type(judge).__name__)} in both orders"
        self.collective = getattr(judge, "collective", False)

    def __call__(self, prompts: list[str], firsts: list[str], seconds: list[str], rows: list[dict]) -> list[float]:
        straight = judge_pairs(self.judge, prompts, firsts, seconds, rows)
        swapped = [1 - p for p in judge_pairs(self.judge, prompts, seconds, firsts, rows)]
        changed = [_side(p) != _side(q) for p, q in zip(straight, swapped, strict=True)]
        self.disagreement = sum(changed) / max(len(changed), 1)
        return [(p + q) / 2 for p, q in zip(straight, swapped, strict=True)]


def rubric(criteria: Sequence[tuple[float, Reward]]) -> Reward:
    """A reward in [0, 1]: the weighted mean of criteria, each a reward in [0, 1] (1: met). `judge_by` makes it a judge.

    criteria: (weight above 0, reward) each; an error names the reward that leaves [0, 1].
    """
    if not criteria or not all(0 < weight < math.inf for weight, _ in criteria):
        got = ", ".join(str(weight) for weight, _ in criteria) or "none"
        raise InputError(f"rubric: needed criteria with weights above 0, got the weights {got}")
    shares = [weight / sum(weight for weight, _ in criteria) for weight, _ in criteria]

    def score(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
        columns = [score_completions(reward, prompts, completions, rows) for _, reward in criteria]
        for (_, reward), column in zip(criteria, columns, strict=True):
            if bad := [x for x in column if not 0 <= x <= 1]:
                name = getattr(reward, "__name__", type(reward).__name__)
                raise refused(f"rubric: {name}", f"needed a number in [0, 1] for each text, got {bad[0]:g}")
        return [sum(map(mul, shares, row)) for row in zip(*columns, strict=True)]

    score.__name__ = "rubric"
    score.collective = any(getattr(reward, "collective", False) for _, reward in criteria)
    return score


def _side(probability: float) -> float:
    """1: the first is better; 0: the second; 0.5: a tie. Rounding makes no winner of a tie."""
    return 0.5 if abs(probability - 0.5) < 1e-9 else float(probability > 0.5)


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
