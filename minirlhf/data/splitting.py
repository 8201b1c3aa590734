"""Training rows and held-out rows."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import groupby

from minirlhf.data.chosen import choose
from minirlhf.errors import InputError

HELD_OUT = 0.05  # share of a user's prompts that is held out for evaluation
EVERY = 20


def split_rows(rows: Sequence[dict], held_out: float = HELD_OUT, seed: int = 0) -> tuple[Sequence, Sequence]:
    """(training rows, held-out rows). A checksum of its text decides, so no prompt is on both sides.

    Args:
        held_out: the share of the prompts to hold out, below 1, or a number of rows; 0 holds out no row.
        seed:     another seed holds out other prompts.

    If this holds out no row, or more than four times the share (few prompts with many rows each), the last rows of the
    file are held out instead; then a prompt may be on both sides. A single row is always on both sides.
    Raises: InputError for a negative number, or one that leaves no row to train on.
    """
    check_held_out(held_out)
    positions = [position(row["prompt"] or row.get("response", ""), seed) for row in rows]
    chosen = _share(positions, held_out) if held_out < 1 else _number(positions, int(held_out))
    sides = [[i for i, is_held in enumerate(chosen) if is_held is side] for side in (False, True)]
    return choose(rows, sides[0] or range(len(rows))), choose(rows, sides[1])


def check_held_out(held_out: float) -> None:
    """Raise InputError unless this is a share from 0 to below 1, or a whole number of rows."""
    if not (0 <= held_out < 1 or held_out >= 1 and float(held_out).is_integer()):
        raise InputError(f"held_out: needed a share from 0 to below 1, or a whole number of rows, got {held_out}")


def position(text: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on the text and the seed alone. A prompt below the share is held out."""
    checksum = zlib.crc32(text.encode(), seed % 2**32)
    return (checksum % EVERY + checksum / 2**32) / EVERY  # below 0.05 if the checksum is a multiple of 20


def _share(positions: Sequence[float], share: float) -> list[bool]:
    chosen = [place < share for place in positions]
    if share and not 0 < sum(chosen) <= 4 * share * len(positions):
        last = max(1, int(share * len(positions)))
        chosen = [i >= len(positions) - last for i in range(len(positions))]
    return chosen


def _number(positions: Sequence[float], number: int) -> list[bool]:
    """Whole prompts in the order of their positions, as far as they have at most `number` rows together."""
    if number >= len(positions):
        raise InputError(f"held_out: needed fewer rows than the {len(positions):,} of the file, got {number:,}")
    held: set[int] = set()
    order = sorted(range(len(positions)), key=positions.__getitem__)
    for _, rows in groupby(order, key=positions.__getitem__):
        prompt = list(rows)
        if len(held) + len(prompt) <= number:
            held.update(prompt)
    return [i in held if held else i >= len(positions) - number for i in range(len(positions))]
