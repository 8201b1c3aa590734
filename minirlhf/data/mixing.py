"""Several sources of rows as one: how many rows each source gives, and the numbers of these rows.

A mixture is a pure function of its arguments, so it is the same in every process and after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from minirlhf.data.chosen import choose, join
from minirlhf.errors import InputError, shown
from minirlhf.runtime.randomness import permutation

STRATEGIES = ("concat", "weighted", "balanced")


def mix(
    sources: Sequence[Sequence], strategy: str = "concat", weights: Sequence[float] = (), seed: int = 0
) -> Sequence:
    """The rows of all sources as one sequence, source after source. See `counts` for the strategies.

    A row that a source gives twice stands in the result twice.
    """
    sizes = [len(rows) for rows in sources]
    wanted = counts(sizes, strategy, weights)
    numbers = [row_numbers(size, count, seed, i) for i, (size, count) in enumerate(zip(sizes, wanted, strict=True))]
    return join([choose(rows, chosen) for rows, chosen in zip(sources, numbers, strict=True)])


def counts(sizes: Sequence[int], strategy: str = "concat", weights: Sequence[float] = ()) -> list[int]:
    """The number of rows that each source gives.

    concat      every source gives all its rows, once.
    weighted    the mixture has as many rows as all sources together; its shares are the weights. A source with too
                few rows repeats them, a source with too many gives a random part.
    balanced    every source gives as many rows as the smallest source has. No row is repeated.

    Args:
        sizes:   rows of each source.
        weights: of each source, for "weighted" only; they need not sum to 1.
    Raises: InputError for another strategy, or weights that are missing, superfluous, or not above 0.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"mix: needed one of {', '.join(STRATEGIES)}, got {shown(strategy)}")
    if strategy == "weighted":
        check_weights(weights, len(sizes))
        return _rounded([sum(sizes) * weight / sum(weights) for weight in weights])
    if weights:
        raise InputError(
            f"mix: {strategy} takes no weights, got {_listed(weights)}; choose weighted, or drop the weights"
        )
    return list(sizes) if strategy == "concat" else [min(sizes)] * len(sizes) if sizes else []


def check_weights(weights: Sequence[float], sources: int) -> None:
    """Raise InputError unless there is a finite weight above 0 for each source."""
    if len(weights) != sources:
        raise InputError(f"mix: needed a weight for each of {sources} sources, got {len(weights)}: {_listed(weights)}")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise InputError(f"mix: needed finite weights above 0, got {_listed(weights)}; leave a source of weight 0 out")


def row_numbers(size: int, count: int, seed: int, source: int) -> list[int]:
    """The numbers of `count` rows of a source of `size` rows, in their order.

    Every row comes count // size times, and a random part of the rows once more.
    """
    if not size:
        return []
    whole, rest = divmod(count, size)
    extra = set(permutation(size, seed, "mixture", source)[:rest])
    return [number for number in range(size) for _ in range(whole + (number in extra))]


def lines(names: Sequence[str], sizes: Sequence[int], wanted: Sequence[int]) -> list[str]:
    """The plan of a mixture in words, a line for each source."""
    total = max(1, sum(wanted))
    return [
        f"{name}: gives {count:,} rows ({count / total:.0%} of the mixture), {_in_words(size, count)}"
        for name, size, count in zip(names, sizes, wanted, strict=True)
    ]


def _in_words(size: int, count: int) -> str:
    if count == size:
        return "each row once"
    return f"{count:,} of its {size:,} rows" if count < size else f"each of its {size:,} rows {count / size:.3g} times"


def _rounded(numbers: Sequence[float]) -> list[int]:
    """Whole numbers with the same sum: the largest remainders are rounded up."""
    floors = [math.floor(number) for number in numbers]
    rest = round(sum(numbers)) - sum(floors)
    largest = sorted(range(len(numbers)), key=lambda i: floors[i] - numbers[i])[:rest]
    return [floor + (i in largest) for i, floor in enumerate(floors)]


def _listed(weights: Sequence[float]) -> str:
    return ",".join(map(str, weights)) or "none"
