"""Results of the lab to a table and a figure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from minirlhf.extras.overoptimisation.cells import AXES, CROSS, METHODS, MIDDLE, Cell
from minirlhf.extras.overoptimisation.figure import Line, Panel, figure
from minirlhf.extras.overoptimisation.fits import Curve, Fit, fit, long_enough, peak_of
from minirlhf.extras.overoptimisation.lab import Lab
from minirlhf.training.checkpoint import write_whole

HEADER = ["cell", "seeds", "accuracy", "alpha", "beta", "R2", "peak at d"]
HEADER += ["best gold", "at d", "last gold", "last proxy", "last d"]
METHOD_NAMES = {"best_of_n": "best of n", "ppo": "PPO", "dpo": "DPO"}
AXIS_NAMES = {"comparisons": "comparisons", "size": "reward model", "ensemble": "ensemble", "kl_coef": "KL coefficient"}
MIDDLE_TITLE = "the methods, at the middle"


@dataclass(frozen=True)
class Measured:
    """A cell over its seeds. Gains over the SFT policy, in standard deviations of its samples. Points are means."""

    cell: Cell
    gold: list[Curve]
    proxy: list[Curve]  # empty for DPO
    accuracy: float | None
    fit: Fit | None  # None for a curve that is too short, such as that of a run of one step

    @classmethod
    def of(cls, lab: Lab, cell: Cell) -> Measured | None:
        """None without a result."""
        if not (results := lab.results(cell)):
            return None
        gold, known = [curve_of(found["points"], "gold") for found in results], cell.method != "dpo"
        proxy = [curve_of(found["points"], "proxy") for found in results] if known else []
        accuracy = statistics.fmean(found["accuracy"] for found in results) if known else None
        form = "best_of_n" if cell.method == "best_of_n" else "rl"
        return cls(cell, gold, proxy, accuracy, fit(form, gold) if all(map(long_enough, gold)) else None)

    def row(self) -> list[str]:
        """The row of the table, in the order of HEADER."""
        d, gain = mean_curve(self.gold)
        best, last_proxy = int(gain.argmax()), mean_curve(self.proxy)[1][-1] if self.proxy else None
        first = [self.cell.name, str(len(self.gold)), number(self.accuracy, 3)]
        return [*first, *self._fitted(d.max()), *map(number, (gain[best], d[best], gain[-1], last_proxy, d[-1]))]

    def _fitted(self, farthest: float) -> list[str]:
        """alpha, beta, R2 and the d of the peak, if the curve has one within the measured distances."""
        if not self.fit:
            return ["-"] * 4
        ends, peak = self.fit.intervals(), peak_of(self.fit.form, self.fit.alpha, self.fit.beta)
        both = [number(self.fit.alpha), number(self.fit.beta)]
        if ends is not None:
            both = [f"{text} ({low:.2f} to {high:.2f})" for text, (low, high) in zip(both, ends, strict=True)]
        return [*both, number(self.fit.r2), number(peak) if peak is not None and peak <= farthest else "none"]

    def line(self, label: str) -> Line:
        d, gain = mean_curve(self.gold)
        grid = np.linspace(0, d.max(), 81)
        curve, band = (None, None) if self.fit is None else ((grid, self.fit(grid)), self.fit.band(grid))
        return Line(label, (d, gain), curve, band, mean_curve(self.proxy) if self.proxy else None)


def report(lab: Lab) -> str:
    """Write table.md and figure.svg from all results -> the table."""
    found = {cell: measured for cell in CROSS if (measured := Measured.of(lab, cell))}
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(measured.row()) + " |" for measured in found.values()]
    text = "\n".join(lines) + "\n"
    write_whole(lab.folder / "table.md", text)
    write_whole(lab.folder / "figure.svg", figure(panels(found)))
    return f"{text}\nfigure: {lab.folder / 'figure.svg'}"


def panels(found: dict[Cell, Measured]) -> list[Panel]:
    """The methods at the middle, then a panel for each axis of each method that has two cells or more."""
    chosen = {MIDDLE_TITLE: {METHOD_NAMES[cell.method]: cell for cell in MIDDLE}}
    for axis, name in AXIS_NAMES.items():
        for method in (method for method, axes in METHODS.items() if axis in axes):
            cells = Cell(method).along(axis)
            chosen[f"{METHOD_NAMES[method]}: {name}"] = dict(zip(map(str, AXES[axis]), cells, strict=True))
    drawn = []
    for title, cells in chosen.items():
        lines = [found[cell].line(label) for label, cell in cells.items() if cell in found]
        if len(lines) > 1 or title == MIDDLE_TITLE:
            drawn.append(Panel(title, lines))
    return drawn


def curve_of(points: list[dict[str, Any]], name: str) -> Curve:
    """Distances and gains over the first point. An estimated KL may be negative near 0: its d is 0."""
    values, kl = (np.array([point[key] for point in points], dtype=float) for key in (name, "kl"))
    return Curve(np.sqrt(np.maximum(kl, 0.0)), values - values[0])


def mean_curve(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """The means over the seeds of d and of the gain, point by point."""
    return tuple(np.mean([getattr(curve, name) for curve in curves], axis=0) for name in ("d", "gain"))


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
