"""Measures of a reward model on pairs: how often it is right, by how much, and whether it is as sure as it is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minirlhf.errors import InputError
from minirlhf.evaluation.intervals import wilson

BINS = 10  # of the expected calibration error
GROUPS = ("longer", "similar", "shorter")


def pair_measures(
    chosen: Sequence[float], rejected: Sequence[float], sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """accuracy with its 95% interval, margin, calibration_error, and the accuracy by the difference of length.

    accuracy:          share of pairs whose chosen answer has the higher score; equal scores count 0.5.
    margin:            mean score of chosen - rejected.
    calibration_error: see `calibration_error`, of the probabilities sigmoid(chosen - rejected).
    by_length:         {"longer" | "similar" | "shorter": {"pairs": n, "accuracy": a}}; see `length_group`. A reward
                       model that counts letters is right on "longer" and wrong on "shorter".

    Args: sizes: (length of chosen, length of rejected) of each pair.   Raises: InputError without pairs.
    """
    if not len(chosen):
        raise InputError("pairs: needed at least one pair with two scores, got none")
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    right = [(margin > 0) + 0.5 * (margin == 0) for margin in margins]
    groups: dict[str, list[float]] = {}
    for value, size in zip(right, sizes, strict=True):
        groups.setdefault(length_group(*size), []).append(value)
    return {
        "pairs": len(right),
        "accuracy": sum(right) / len(right),
        "accuracy_interval": wilson(sum(right), len(right)),
        "margin": sum(margins) / len(margins),
        "calibration_error": calibration_error([_sigmoid(margin) for margin in margins]),
        "by_length": {
            name: {"pairs": len(groups[name]), "accuracy": sum(groups[name]) / len(groups[name])}
            for name in GROUPS
            if name in groups
        },
    }


def calibration_error(probabilities: Sequence[float]) -> float:
    """The expected calibration error of P(chosen is better), 0 to 1: how far the model is too sure, or not sure enough.

    The model says the likelier side; its confidence is max(p, 1 - p). The pairs fall into 10 equal bins of confidence
    from 0.5 to 1; the error is the mean |accuracy - confidence| over the bins, weighted by their pairs.
    Guo et al. 2017, arXiv:1706.04599.   Raises: InputError without pairs.
    """
    if not len(probabilities):
        raise InputError("calibration: needed at least one probability, got none")
    gaps = [0.0] * BINS
    for p in probabilities:
        confidence, right = max(p, 1 - p), (p > 0.5) + 0.5 * (p == 0.5)
        gaps[min(BINS - 1, int((confidence - 0.5) * 2 * BINS))] += right - confidence
    return sum(map(abs, gaps)) / len(probabilities)


def length_group(first: int, second: int) -> str:
    """Is the first text longer than the second, similar (within a tenth of the longer), or shorter?"""
    if 10 * abs(first - second) <= max(first, second):
        return "similar"
    return "longer" if first > second else "shorter"


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, x))))
