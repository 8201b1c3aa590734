"""Training rows and held-out rows."""

from __future__ import annotations

import zlib

HELD_OUT_EVERY = 20  # one prompt in 20 of a user's file is held out for evaluation


def split_rows(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows). A checksum of its text holds out a prompt in 20, so no prompt is on both sides.

    If this holds out no row, or more than a fifth of the rows (few prompts with many rows each), the last 20th of the
    rows is held out instead; then a prompt may be on both sides. A single row is always on both sides.
    """
    training, held_out = [], []
    for row in rows:
        (held_out if zlib.crc32(row["prompt"].encode()) % HELD_OUT_EVERY == 0 else training).append(row)
    if not held_out or 5 * len(held_out) > len(rows):
        last = max(1, len(rows) // HELD_OUT_EVERY)
        training, held_out = rows[:-last] or rows, rows[-last:]
    return training, held_out
