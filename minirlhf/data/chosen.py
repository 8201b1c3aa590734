"""Some rows of a sequence, and several sequences as one, without a copy of rows that a large file keeps on the disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any


class Chosen(Sequence):
    """rows[numbers[0]], rows[numbers[1]], ..., each changed by a function when it is read."""

    def __init__(self, rows: Sequence, numbers: Sequence[int], change: Callable[[Any], Any] | None = None) -> None:
        self.rows, self.numbers, self.change = rows, numbers, change

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Chosen(self.rows, self.numbers[index], self.change)
        row = self.rows[self.numbers[index]]
        return self.change(row) if self.change else row


class Joined(Sequence):
    """Several sequences, one after another."""

    def __init__(self, parts: Sequence[Sequence]) -> None:
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int | slice) -> Any:
        numbers = range(len(self))[index]
        if isinstance(index, slice):
            return Chosen(self, numbers)
        part = bisect_right(self.ends, numbers)
        return self.parts[part][numbers - (self.ends[part - 1] if part else 0)]


def choose(rows: Sequence, numbers: Sequence[int], change: Callable[[Any], Any] | None = None) -> Sequence:
    """The rows of these numbers: a list if `rows` is a list, else a view that reads a row when it is used."""
    chosen = Chosen(rows, numbers, change)
    return list(chosen) if isinstance(rows, list) else chosen


def join(parts: Sequence[Sequence]) -> Sequence:
    """Several sequences as one: a list if all of them are lists."""
    return [row for part in parts for row in part] if all(isinstance(part, list) for part in parts) else Joined(parts)
