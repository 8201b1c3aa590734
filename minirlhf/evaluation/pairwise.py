"""Two models on the same prompts: win rates by scores or by a judge, with intervals, and the judge's position bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minirlhf.evaluation.intervals import bootstrap
from minirlhf.evaluation.policies import Report
from minirlhf.evaluation.reward_models import GROUPS, length_group
from minirlhf.rewards.answers import exact_match
from minirlhf.rewards.judges import Judge, judge_by, judge_pairs

# "longer" and "shorter" judge by length alone: a win rate that such a rule explains shows no better answers. "right"
# prefers the answer that agrees with the "answer" of the row.
RULES: dict[str, Judge] = {
    "right": judge_by(exact_match),
    "longer": lambda prompts, firsts, seconds, rows: _longer(firsts, seconds),
    "shorter": lambda prompts, firsts, seconds, rows: _longer(seconds, firsts),
}


def win_rate(before: Report, after: Report) -> float | None:
    """Share of prompts whose gold reward is higher in `after`; a tie counts 0.5. None without gold rewards."""
    if not before.gold or not after.gold:
        return None
    wins = sum((b > a) + 0.5 * (b == a) for a, b in zip(before.gold, after.gold, strict=True))
    return wins / len(before.gold)


def win_by_score(score: float, other: float) -> float:
    """1 if the score is higher, 0.5 if both are equal, 0 if it is lower; nan if one is missing."""
    return math.nan if math.isnan(score + other) else (score > other) + 0.5 * (score == other)


def win_rates(
    wins: Sequence[Sequence[float]], sizes: Sequence[Sequence[tuple[int, int]]], seed: int = 0
) -> dict[str, Any] | None:
    """The share of wins, with its bootstrap interval over prompts, in all and by the difference of length.

    wins:  for each prompt, the results (1, 0.5, 0, or nan if unknown) of its pairs of answers.
    sizes: the lengths of both answers of each pair.
    Returns: {"prompts", "rate", "interval", "by_length": {group of `length_group`: {"prompts", "rate", "interval"}}}.
        A prompt without a known result is not counted; None if no prompt has one.
    """
    groups = {
        name: [
            [win for win, size in zip(*pair, strict=True) if name in ("all", length_group(*size))]
            for pair in zip(wins, sizes, strict=True)
        ]
        for name in ("all", *GROUPS)
    }
    rates = {name: _rate(results, seed) for name, results in groups.items()}
    if rates["all"] is None:
        return None
    return {**rates["all"], "by_length": {name: rates[name] for name in GROUPS if rates[name]}}


def _rate(wins: Sequence[Sequence[float]], seed: int) -> dict[str, Any] | None:
    known = [[win for win in results if not math.isnan(win)] for results in wins]
    rates = [sum(results) / len(results) for results in known if results]
    if not rates:
        return None
    return {"prompts": len(rates), "rate": sum(rates) / len(rates), "interval": bootstrap(rates, seed=seed)}


def in_both_orders(
    judge: Judge, prompts: list[str], ours: list[str], theirs: list[str], rows: list[dict]
) -> list[tuple[float, float]]:
    """(P(ours is better) asked with ours first, P(theirs is better) asked with theirs first) of each pair."""
    straight = judge_pairs(judge, prompts, ours, theirs, rows)
    return list(zip(straight, judge_pairs(judge, prompts, theirs, ours, rows), strict=True))


def verdict(asked: tuple[float, float]) -> float:
    """1 if ours wins, 0 if theirs wins, 0.5 for neither. The mean of both orders decides: no position bias."""
    return _win(asked[0] + 1 - asked[1], 1.0)


def position_bias(pairs: Sequence[tuple[float, float]]) -> dict[str, float] | None:
    """The effect of an answer's place on a judge, from `in_both_orders`; None without pairs.

    first:   the mean probability for the first answer; 0.5 without bias.
    changed: the share of pairs for which the judge names another winner after the swap.
    """
    if not pairs:
        return None
    changed = [_win(p, 0.5) != 1 - _win(q, 0.5) for p, q in pairs]
    return {"first": sum(p + q for p, q in pairs) / 2 / len(pairs), "changed": sum(changed) / len(pairs)}


def _win(value: float, middle: float) -> float:
    """Rounding must not turn a tie into a win."""
    return 0.5 if abs(value - middle) < 1e-9 else float(value > middle)


def _longer(firsts: Sequence[str], seconds: Sequence[str]) -> list[float]:
    return [win_by_score(len(a), len(b)) for a, b in zip(firsts, seconds, strict=True)]
