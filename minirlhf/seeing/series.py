"""One number over the steps of a run, in bounded memory."""

from __future__ import annotations

import math
from typing import NamedTuple


class Bucket(NamedTuple):
    """Successive values of a series: the step of the last value, their mean, lowest, highest and number."""

    step: int
    mean: float
    low: float
    high: float
    count: int

    def joined(self, later: Bucket) -> Bucket:
        count = self.count + later.count
        mean = self.mean + (later.mean - self.mean) * (later.count / count)
        return Bucket(later.step, mean, min(self.low, later.low), max(self.high, later.high), count)


class Series:
    """At most 2 * `most` buckets. When they are full, neighbours join and `width` doubles, so no spike is lost.

    A value that is no finite number is counted in `left_out`.
    """

    def __init__(self, most: int = 500) -> None:
        self.most, self.width, self.left_out = most, 1, 0
        self.buckets: list[Bucket] = []
        self.first: tuple[int, float] | None = None  # (step, value)
        self.last: tuple[int, float] | None = None
        self.lowest: tuple[int, float] | None = None
        self.highest: tuple[int, float] | None = None

    def add(self, step: int, value: object) -> None:
        if type(value) not in (int, float) or not abs(value) < 1e300:  # also an int that no float can hold
            self.left_out += 1
            return
        value = float(value)
        self.first, self.last = self.first or (step, value), (step, value)
        if self.lowest is None or value < self.lowest[1]:
            self.lowest = step, value
        if self.highest is None or value > self.highest[1]:
            self.highest = step, value
        new = Bucket(step, value, value, value, 1)
        if self.buckets and self.buckets[-1].count < self.width:
            self.buckets[-1] = self.buckets[-1].joined(new)
        else:
            self.buckets.append(new)
        if len(self.buckets) > 2 * self.most:
            self.halve()

    def halve(self) -> None:
        """Join neighbours: half the buckets, each twice as wide."""
        pairs = [self.buckets[k : k + 2] for k in range(0, len(self.buckets), 2)]
        self.buckets = [pair[0].joined(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
        self.width *= 2

    def total(self) -> float:
        return math.fsum(bucket.mean * bucket.count for bucket in self.buckets)
