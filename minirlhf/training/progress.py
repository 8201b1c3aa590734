"""The numbers of a run in the terminal: a table that grows by a row at each evaluation, and the time they take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from minirlhf.columns import beginning, columns_of, padded, printable

WIDTH = 80  # columns
BARS = "▁▂▃▄▅▆▇█"
# Columns of the table in their order, as far as a run has them and they fit: metric -> label.
LABELS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "win_prob": "win",
    "margin": "margin",
    "gold_reward": "gold",
    "model_reward": "reward",
    "grammatical": "grammar",
    "kl": "KL",
    "length": "length",
    "entropy": "entropy",
    "score_mean": "score",
    "distinct_2": "distinct",
    "ended": "ended",
}


class EvaluationTable:
    """name: of the run.   headline: metrics of a step that the table shows too, such as score_mean.
    earlier: the metrics of a run that is resumed; the table goes on with their columns and trends.
    """

    def __init__(self, name: str, headline: Iterable[str], earlier: Path | None = None) -> None:
        self.first = f"{beginning(printable(name), 12)} step"
        self.wanted = {*(metric.removeprefix("eval/") for metric in headline), "entropy"}
        self.widths: dict[str, int] = {}  # the columns, once the first evaluation shows which numbers come
        self.has_header = False
        self.history: dict[str, list[float]] = {}  # column -> its values so far
        for metrics in _evaluations(earlier) if earlier else ():
            self._add(metrics)

    def row(self, step: int, metrics: dict[str, float]) -> str:
        """The line of one evaluation, below the header if it is the first. eval/NAME goes before NAME.

        Each validation set has a line of its own below it, with the set's name instead of the step.
        """
        rows, lines = self._add(metrics), []
        if not self.has_header:
            lines = [self._line(self.first, {name: _label(name) for name in self.widths})]
            self.has_header = True
        for subset, numbers in rows.items():
            first = printable(subset) or str(step)
            lines.append(self._line(first, {name: _number(x) for name, x in numbers.items()}))
        return "\n".join(lines)

    def trend(self) -> str:
        """A last line: small bars below each column, from its first to its last evaluation. "" below 3 evaluations."""
        cells = {name: sparkline(self.history.get(name, []), width) for name, width in self.widths.items()}
        is_long = any(len(values) > 2 for values in self.history.values())
        return self._line("trend", cells) if self.has_header and is_long else ""

    def _add(self, metrics: dict[str, float]) -> dict[str, dict[str, float]]:
        """Remember an evaluation -> the name of a validation set -> its measures. "" is the step itself."""
        rows: dict[str, dict[str, float]] = {"": {n: x for n, x in metrics.items() if n in self.wanted}}
        for name, value in metrics.items():
            if name.startswith("eval/"):
                subset, _, short = name.removeprefix("eval/").rpartition("/")
                rows.setdefault(subset, {})[short] = value
        if not self.widths:
            self._choose_columns(dict.fromkeys(name for numbers in rows.values() for name in numbers))
        for name, value in rows[""].items():
            if type(value) in (int, float) and abs(value) < 1e300:
                self.history.setdefault(name, []).append(value)
        return rows

    def _choose_columns(self, names: Iterable[str]) -> None:
        known = list(LABELS)  # measures of the user's own come first
        room = WIDTH - columns_of(self.first)
        for name in sorted(names, key=lambda name: known.index(name) if name in known else -1):
            width = max(7, columns_of(_label(name)))
            if width + 2 <= room:
                self.widths[name] = width
                room -= width + 2

    def _line(self, first: str, cells: dict[str, str]) -> str:
        cut = [padded(cells.get(name, "-"), width, right=True) for name, width in self.widths.items()]
        width = columns_of(self.first)
        return "  ".join([padded(beginning(first, width), width, right=True), *cut])


def _label(name: str) -> str:
    return LABELS.get(name) or printable(name)


def sparkline(values: Sequence[float], width: int) -> str:
    """Small bars of at most `width` columns: the lowest value is ▁, the highest is █. Neighbours are averaged."""
    count = min(width, len(values))
    ends = [k * len(values) // count for k in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join(BARS[round(7 * (mean - low) / (high - low))] if high > low else BARS[0] for mean in means)


def _evaluations(path: Path) -> Iterator[dict[str, float]]:
    """The rows of metrics.jsonl with an evaluation, as far as the file can be read."""
    with suppress(OSError, ValueError), path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if isinstance(row, dict) and any(name.startswith("eval/") for name in row):
                yield {name: value for name, value in row.items() if name != "step"}


def evaluation_seconds(folder: Path) -> tuple[float, float]:
    """-> (seconds in evaluations, seconds in all), over the steps of all runs in a folder. A damaged line counts 0."""
    evaluations = seconds = 0.0
    for line in [line for file in folder.glob("*/timings.jsonl") for line in file.read_bytes().splitlines()]:
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            row = json.loads(line)
            seconds += float(row["seconds"])
            evaluations += float(row.get("evaluation_seconds", 0.0))
    return evaluations, seconds


def _number(value: object) -> str:
    if not isinstance(value, int | float):  # of the user's own evaluation
        return beginning(printable(str(value)), 7)
    if isinstance(value, int) and abs(value) > 1e300:  # no float can hold it
        return "huge"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}" if abs(value) < 10_000 else f"{value:.0e}"
