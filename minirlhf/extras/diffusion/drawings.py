"""Pictures of 16 x 16: digits and shapes drawn from strokes, each a little different; nothing is downloaded.

Values from -1 (paper) to 1 (ink). A prompt is the name of a drawing, such as "7" or "circle"; "" means any drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minirlhf.errors import InputError, shown
from minirlhf.nearest import nearest
from minirlhf.runtime.randomness import keyed_uniforms

SIZE = 16
SHAPE = (1, SIZE, SIZE)  # of a picture
_TURN = [(0.5 + 0.5 * math.sin(i * math.pi / 6), 0.5 - 0.5 * math.cos(i * math.pi / 6)) for i in range(13)]  # a circle
_UPPER, _LOWER = ([(x, y / 2 + start) for x, y in _TURN] for start in (0.0, 0.5))  # half as high
# Strokes through points (x, y) of the unit square; y grows downwards.
STROKES: dict[str, list[list[tuple[float, float]]]] = {
    "0": [[(0.15 + 0.7 * x, y) for x, y in _TURN]],
    "1": [[(0.25, 0.25), (0.55, 0), (0.55, 1)]],
    "2": [[(0.05, 0.2), (0.3, 0), (0.7, 0), (0.95, 0.25), (0.8, 0.5), (0.05, 1), (0.95, 1)]],
    "3": [[(0.1, 0.05), (0.7, 0), (0.9, 0.2), (0.7, 0.45), (0.4, 0.47)],
          [(0.7, 0.47), (0.95, 0.7), (0.7, 1), (0.1, 0.95)]],
    "4": [[(0.75, 1), (0.75, 0), (0.05, 0.65), (1, 0.65)]],
    "5": [[(0.9, 0), (0.15, 0), (0.1, 0.45), (0.6, 0.4), (0.95, 0.65), (0.7, 1), (0.1, 0.95)]],
    "6": [[(0.8, 0), (0.3, 0.3), (0.1, 0.7)], [(0.1 + 0.8 * x, y) for x, y in _LOWER]],
    "7": [[(0.05, 0), (0.95, 0), (0.4, 1)]],
    "8": [[(0.15 + 0.7 * x, y) for x, y in _UPPER], [(0.1 + 0.8 * x, y) for x, y in _LOWER]],
    "9": [[(0.1 + 0.8 * x, y) for x, y in _UPPER], [(0.9, 0.3), (0.8, 0.7), (0.4, 1)]],
    "circle": [_TURN],
    "square": [[(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]],
    "triangle": [[(0.5, 0), (1, 1), (0, 1), (0.5, 0)]],
    "cross": [[(0, 0), (1, 1)], [(1, 0), (0, 1)]],
}  # fmt: skip
NAMES = ("", *STROKES)  # the position is the label; 0 means no condition
DIGITS = tuple("0123456789")


def labels_of(prompts: Sequence[str]) -> list[int]:
    """Labels of prompts.   Raises: InputError for a prompt that is no name of a drawing."""
    for prompt in prompts:
        if prompt not in NAMES:
            known = ", ".join(NAMES[1:])
            raise InputError(f"prompts: needed {known} or an empty text, got {shown(prompt)}{nearest(prompt, NAMES)}")
    return [NAMES.index(prompt) for prompt in prompts]


def drawn(keys: Sequence[Sequence[int]], seed: int, stream: str, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pictures [B, 1, 16, 16] and their labels [B] from 1 on; row i is a pure function of (seed, stream, keys[i]).

    Each picture has its own size, position, slant, thickness and wobble.
    label: [B], the drawings to draw; None draws each with equal probability.
    """
    columns = [torch.tensor(column)[:, None] for column in zip(*keys, strict=True)]
    u = keyed_uniforms(seed, stream, *columns, torch.arange(10 + 2 * _POINTS.shape[1])).float()  # [B, 10 + wobble]
    if label is None:
        label = 1 + (u[:, 0] * len(STROKES)).long()
    width, height = 6 + 4 * u[:, 1], 9 + 4 * u[:, 2]
    height = torch.where(label > len(DIGITS), width, height)  # so that a circle is no 0
    left, top = 1 + (SIZE - 3 - width) * u[:, 3], 1 + (SIZE - 3 - height) * u[:, 4]
    slant, thick, ink = 0.5 * (u[:, 5] - 0.5), 0.5 + 0.8 * u[:, 6], 0.7 + 0.3 * u[:, 7]
    points = _POINTS[label - 1] + 0.06 * (u[:, 10:].unflatten(1, (-1, 2)) - 0.5)  # [B, P, 2]
    x = left[:, None] + width[:, None] * (points[..., 0] - slant[:, None] * (points[..., 1] - 0.5))
    y = top[:, None] + height[:, None] * points[..., 1]
    distance = _distances(torch.stack([x, y], -1), _IN_STROKE[label - 1])
    inked = ink[:, None] * torch.sigmoid(3 * (thick[:, None] - distance))
    return (2 * inked - 1).unflatten(1, SHAPE), label


def _distances(points: Tensor, drawn: Tensor) -> Tensor:
    """Distance of each pixel to the nearest segment [B, 256]. points [B, P, 2]; drawn [B, P - 1]: is it a segment?"""
    start, along = points[:, None, :-1], (points[:, 1:] - points[:, :-1])[:, None]
    side = torch.arange(SIZE).float()
    pixels = torch.cartesian_prod(side, side).flip(-1)[None, :, None]  # (x, y), row by row
    share = ((pixels - start) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-6)
    nearest_point = start + share.clamp(0, 1)[..., None] * along
    distance = (pixels - nearest_point).square().sum(-1).sqrt()
    return torch.where(drawn[:, None], distance, torch.inf).amin(-1)


def _tables() -> tuple[Tensor, Tensor]:
    """All strokes of a drawing in a row, padded -> points [C, P, 2]; which neighbours a stroke joins [C, P - 1]."""
    rows = [[point for stroke in strokes for point in stroke] for strokes in STROKES.values()]
    most = max(map(len, rows))
    points = torch.tensor([row + [(0.0, 0.0)] * (most - len(row)) for row in rows])
    joined = torch.zeros(len(rows), most - 1, dtype=torch.bool)
    for row, strokes in enumerate(STROKES.values()):
        place = 0
        for stroke in strokes:
            joined[row, place : place + len(stroke) - 1] = True
            place += len(stroke)
    return points, joined


_POINTS, _IN_STROKE = _tables()
