"""Training rows and held-out rows."""

from __future__ import annotations

import zlib

HELD_OUT_SHARE = 20  # one prompt in so many of a user's file is kept for evaluation


def split_rows(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows): one prompt in 20, by a checksum of its text, so that no prompt is on both sides.

    Where that leaves one side empty or holds out more than a fifth (few prompts with many rows each), the last 20th of
    the rows is held out instead; a file of one row stands on both sides.
    """
    kept, held = [], []
    for row in rows:
        (held if zlib.crc32(row["prompt"].encode()) % HELD_OUT_SHARE == 0 else kept).append(row)
    if not held or 5 * len(held) > len(rows):
        last = max(1, len(rows) // HELD_OUT_SHARE)
        kept, held = rows[:-last] or rows, rows[-last:]
    return kept, held
