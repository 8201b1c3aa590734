"""Checkable answers: the share that is right, and pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minirlhf.errors import InputError


def pass_at_k(n: int, right: int, k: int) -> float:
    """The probability that at least one of k samples is right, estimated without bias from n samples.

    1 - C(n - right, k) / C(n, k).   Chen et al. 2021, arXiv:2107.03374, Eq. 1. (1 - (1 - right / n)^k is too low.)
    Raises: InputError unless 1 <= k <= n and 0 <= right <= n.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise InputError(f"pass@k: needed 1 <= k <= n and 0 <= right <= n, got k {k}, right {right} and n {n}")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def answer_measures(right: Sequence[Sequence[bool]], ks: Sequence[int]) -> dict[str, float]:
    """exact_match, and pass@k for each k up to the number of samples: means over the prompts.

    right: for each prompt, whether each of its samples has the right answer.   Raises: InputError without prompts.
    """
    if not right or not all(right):
        raise InputError("answers: needed a sample for each prompt, got none; leave out rows without an answer")
    fewest = min(map(len, right))
    measures = {"exact_match": sum(sum(samples) / len(samples) for samples in right) / len(right)}
    for k in [k for k in ks if k <= fewest]:
        measures[f"pass@{k}"] = sum(pass_at_k(len(s), sum(s), k) for s in right) / len(right)
    return measures
