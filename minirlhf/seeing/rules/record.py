"""The recorded series of one run up to a step, as the rules read them, and the arithmetic that the rules share."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from minirlhf.seeing.reading import SeenRun

MOST = 1e100  # products of larger numbers overflow


@dataclass(frozen=True)
class Record:
    """curves: metric -> (steps, values), rising steps.   until: later steps are not seen.

    settings: full name -> value.   samples: (step, rows of samples.jsonl).
    """

    kind: str
    curves: dict[str, tuple[list[int], list[float]]]
    settings: dict[str, Any] = field(default_factory=dict)
    samples: Sequence[tuple[int, list[dict[str, Any]]]] = ()
    until: int = 2**60
    bounded: dict[str, list[float]] = field(default_factory=dict, compare=False, repr=False)  # of curves, once read

    @classmethod
    def of(cls, run: SeenRun) -> Record:
        curves = {
            name: ([bucket.step for bucket in series.buckets], [bucket.mean for bucket in series.buckets])
            for name, series in run.metrics.items()
        }
        return cls(run.kind, curves, run.settings, run.samples)

    def up_to(self, step: int) -> Record:
        return replace(self, until=step)

    def steps(self, name: str) -> list[int]:
        steps = self.curves.get(name, ((), ()))[0]
        return list(steps[: bisect_right(steps, self.until)])

    def values(self, name: str) -> list[float]:
        """The values of a metric so far, at most `MOST` in size; [] if the run does not record it."""
        steps, values = self.curves.get(name, ((), ()))
        if name not in self.bounded:  # `up_to` shares them: 40 rules read them at 40 steps
            self.bounded[name] = [max(-MOST, min(MOST, x)) for x in values]
        return self.bounded[name][: bisect_right(steps, self.until)]

    def last(self, name: str, count: int) -> list[float]:
        """The last `count` values; [] if there are fewer."""
        values = self.values(name)
        return values[-count:] if len(values) >= count else []

    def setting(self, name: str, default: float) -> float:
        """A number of the stage's own settings, such as "lr". A broken value counts as the default."""
        value = self.settings.get(f"{self.kind}.{name}", default)
        return value if type(value) in (int, float) and abs(value) <= MOST else default

    def newest_samples(self) -> list[dict[str, Any]]:
        """The rows of the last step with samples."""
        return next((rows for step, rows in reversed(self.samples) if step <= self.until), [])


class Change(NamedTuple):
    """The means of the first and of the last values of a series, and the standard error of their difference."""

    before: float
    after: float
    error: float

    @property
    def by(self) -> float:
        return self.after - self.before

    @property
    def sigmas(self) -> float:
        """The change in standard errors."""
        return self.by / max(self.error, 1e-9 * max(1.0, abs(self.before), abs(self.after)))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def error_of(values: Sequence[float]) -> float:
    """The standard error of the mean, as if the values were independent."""
    middle = mean(values)
    return math.hypot(*(x - middle for x in values)) / math.sqrt((len(values) - 1) * len(values))


def change_of(values: Sequence[float], share: float = 0.2, least: int = 5) -> Change | None:
    """From the first to the last `share` of the values, at least `least` values each. None: the series is too short."""
    count = max(least, int(len(values) * share))
    if len(values) < 2 * count:
        return None
    first, last = values[:count], values[-count:]
    return Change(mean(first), mean(last), math.hypot(error_of(first), error_of(last)))
