"""Panels of curves as one SVG file: points of the gold reward, fitted curves with bands, the proxy as a dashed line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

COLUMNS, WIDTH, HEIGHT = 2, 440, 300  # panels of a row; size of a panel
LEFT, RIGHT, TOP, BOTTOM = 52, 116, 34, 44  # margins of a panel; the legend stands in the right margin
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5195")  # readers with any colour vision tell them apart
Points = tuple[np.ndarray, np.ndarray]  # x [P], y [P]


@dataclass(frozen=True)
class Line:
    label: str
    points: Points  # gold reward, mean over the seeds
    curve: Points | None  # the fit
    band: np.ndarray | None  # [2, P] on the x of the curve; None for a single seed
    proxy: Points | None


@dataclass(frozen=True)
class Panel:
    title: str
    lines: list[Line]


def figure(panels: Sequence[Panel]) -> str:
    """The SVG text. All panels have the same vertical axis, so that they can be compared."""
    rows = math.ceil(len(panels) / COLUMNS)
    width, height = COLUMNS * WIDTH if len(panels) > 1 else WIDTH, rows * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for k, panel in enumerate(panels):
        x, y = k % COLUMNS * WIDTH, k // COLUMNS * HEIGHT
        parts += [f'<g transform="translate({x},{y})">', *_panel(panel, y_range(panels)), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def y_range(panels: Sequence[Panel]) -> tuple[float, float]:
    """The range of all gains; a fitted curve may leave it."""
    values = [y for panel in panels for line in panel.lines for y in (line.points[1], line.proxy and line.proxy[1])]
    joined = np.concatenate([y for y in values if y is not None] or [np.zeros(1)])
    low, high = float(joined.min()), float(joined.max())
    pad = 0.05 * (high - low) or 1.0
    return low - pad, high + pad


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers within the range, about `count`: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _panel(panel: Panel, y_ends: tuple[float, float]) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    last = max((float(line.points[0].max()) for line in panel.lines), default=1.0) or 1.0
    scale = _Scale(last, *y_ends)
    yield f'<text x="{LEFT}" y="20" font-size="13" font-weight="bold">{escape(panel.title)}</text>'
    for value in ticks(*y_ends):
        y = scale.y(value)
        yield f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    for value in ticks(0, last):
        yield f'<text x="{scale.x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>'
    yield f'<path d="M{LEFT} {TOP}V{bottom}H{right}" stroke="#444" fill="none"/>'
    yield f'<text x="{(LEFT + right) / 2}" y="{bottom + 34}" text-anchor="middle">d = sqrt(KL) [sqrt(nats)]</text>'
    middle = (TOP + bottom) / 2
    yield (
        f'<text transform="translate(14,{middle})rotate(-90)" text-anchor="middle">gain [standard deviations]</text>'
    )
    for k, line in enumerate(panel.lines):
        yield from _line(line, COLOURS[k % len(COLOURS)], scale)
        y = TOP + 16 * k + 8
        yield f'<circle cx="{right + 12}" cy="{y - 4}" r="3" fill="{COLOURS[k % len(COLOURS)]}"/>'
        yield f'<text x="{right + 20}" y="{y}">{escape(line.label)}</text>'
    y = TOP + 16 * len(panel.lines) + 16
    for text, dashes in (("gold, fitted", "none"), ("proxy", "4 3")):
        yield f'<path d="M{right + 6} {y - 4}h22" stroke="#444" stroke-dasharray="{dashes}"/>'
        yield f'<text x="{right + 34}" y="{y}">{text}</text>'
        y += 16


@dataclass(frozen=True)
class _Scale:
    """Numbers to pixels of a panel."""

    x_last: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_last

    def y(self, value: float) -> float:
        """A value outside of the axis stands on its edge."""
        share = (min(max(value, self.y_low), self.y_high) - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def path(self, x: np.ndarray, y: np.ndarray) -> str:
        return "L".join(f"{self.x(a):.1f} {self.y(b):.1f}" for a, b in zip(x, y, strict=True))


def _line(line: Line, colour: str, scale: _Scale) -> Iterator[str]:
    if line.band is not None:
        x = line.curve[0]
        outline = scale.path(np.concatenate([x, x[::-1]]), np.concatenate([line.band[0], line.band[1][::-1]]))
        yield f'<path d="M{outline}Z" fill="{colour}" fill-opacity="0.15"/>'
    if line.proxy is not None:
        yield f'<path d="M{scale.path(*line.proxy)}" stroke="{colour}" fill="none" stroke-dasharray="4 3"/>'
    if line.curve is not None:
        yield f'<path d="M{scale.path(*line.curve)}" stroke="{colour}" fill="none" stroke-width="1.5"/>'
    for x, y in zip(*line.points, strict=True):
        yield f'<circle cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="2.5" fill="{colour}"/>'
