"""95% intervals: of a share by Wilson's formula, of a mean by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from minirlhf.errors import InputError
from minirlhf.runtime.randomness import keyed_uniforms

Z = 1.959963984540054  # standard deviations: 95% of a normal distribution lie within
AT_A_TIME = 4_000_000  # random numbers


def wilson(wins: float, n: int, z: float = Z) -> tuple[float, float]:
    """Wilson's interval of a share, wins / n (1927); a tie may count as half a win.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). It stays inside [0, 1] and has a width even if all are won.
    Raises: InputError unless 0 <= wins <= n and n >= 1.
    """
    if not (n >= 1 and 0 <= wins <= n):
        raise InputError(f"wilson: needed 0 <= wins <= n and n of at least 1, got wins {wins} and n {n}")
    share, middle = wins / n, wins / n + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return (0.0 if wins == 0 else low), (1.0 if wins == n else high)  # exact at the ends, where floats round


def bootstrap(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The bootstrap interval of a mean: its quantiles 2.5% and 97.5% over samples of the values with replacement.

    values: one per prompt, because two answers to one prompt are not independent. With fewer than 20 values the
    interval is too narrow.   Efron 1979.   Raises: InputError without values.
    """
    if not len(values):
        raise InputError("bootstrap: needed at least one value, got none")
    column, n = torch.tensor(values, dtype=torch.float64), len(values)
    rows = max(1, AT_A_TIME // n)
    means = []
    for start in range(0, draws, rows):
        draw = torch.arange(start, min(draws, start + rows))[:, None]
        means.append(column[(keyed_uniforms(seed, "bootstrap", draw, torch.arange(n)) * n).long()].mean(-1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
