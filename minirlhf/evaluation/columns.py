"""Texts side by side in a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from minirlhf.columns import ending, padded, printable, wrapped

LINES = 4  # of a text; the end of a longer text is shown


def side_by_side(
    prompts: Sequence[str], before: Sequence[str], after: Sequence[str], n: int = 5, width: int | None = None
) -> str:
    """Three columns: n different prompts, evenly spaced, and their completions before and after. width: of a column."""
    first: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        first.setdefault(prompt, i)
    places = list(first.values())
    n = min(n, len(places))
    shown = [places[k * (len(places) - 1) // max(1, n - 1)] for k in range(n)]
    return in_columns(["prompt", "before", "after"], [[prompts[i], before[i], after[i]] for i in shown], width)


def in_columns(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """A header, then rows of texts in columns of `width`; by default the columns fill the terminal, at least 8 each."""
    width = width or max(8, (shutil.get_terminal_size((80, 24)).columns + 2) // len(header) - 2)
    lines = ["  ".join(padded(name, width) for name in header).rstrip(), "  ".join(["-" * width] * len(header))]
    for row in rows:
        cells = [wrapped(ending(printable(text), LINES * width) or "(empty)", width) for text in row]
        for i in range(max(map(len, cells))):
            line = "  ".join(padded(cell[i] if i < len(cell) else "", width) for cell in cells)
            lines.append(line.rstrip())
        lines.append("")
    return "\n".join(lines).rstrip()
