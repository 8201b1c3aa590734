"""Rows dealt to processes, so that all processes have about as many tokens. The deal is a function of lengths alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minirlhf.data.encoding import EncodedRow
from minirlhf.runtime.distributed import rank, world_size


def deal(lengths: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    """Row numbers for each process, in ascending order: `counts[r]` of them for process r.

    The longest rows are dealt first. In each round, every process that still needs rows gets one: the process with the
    fewest tokens gets the longest row of the round. So if all counts are equal, the tokens of two processes differ by
    at most the longest row minus the shortest row.

    Raises: ValueError unless the counts sum to the number of rows.
    """
    if sum(counts) != len(lengths):
        raise ValueError(f"deal: needed counts that sum to {len(lengths)} rows, got {list(counts)}")
    hands: list[list[int]] = [[] for _ in counts]
    tokens = [0] * len(counts)
    longest_first = iter(sorted(range(len(lengths)), key=lambda i: -lengths[i]))
    for number in range(max(counts, default=0)):
        open_hands = [hand for hand, count in enumerate(counts) if count > number]
        for hand in sorted(open_hands, key=tokens.__getitem__):
            row = next(longest_first)
            hands[hand].append(row)
            tokens[hand] += lengths[row]
    return [sorted(hand) for hand in hands]


def even_counts(rows: int, parts: int) -> list[int]:
    """The number of rows of each part: rows // parts, and 1 more for the first rows % parts parts."""
    return [len(range(part, rows, parts)) for part in range(parts)]


def dealt(batch: Sequence, config: Any = None) -> Sequence:
    """The draws of a batch that this process trains on.

    config: settings of the algorithm. If they have a `minibatch_size`, each minibatch is dealt alone, so that each has
        the same rows with any number of processes.
    """
    if world_size() == 1:
        return batch
    size, own = getattr(config, "minibatch_size", None) or len(batch), []
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        lengths = [length(getattr(draw, "row", None)) for draw in part]
        own += [part[i] for i in deal(lengths, even_counts(len(part), world_size()))[rank()]]
    return own


def length(row: Any) -> int:
    """Tokens of a row of ids with its longest response; 1 for any other row."""
    return len(row.prompt) + max(map(len, row.responses), default=0) if isinstance(row, EncodedRow) else 1
