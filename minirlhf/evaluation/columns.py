"""Texts side by side in a terminal. Widths are in columns: a wide letter has two, a combining mark has none."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence

LINES = 4  # of a text; the end of a longer text is shown
JOINERS = "\u200c\u200d"  # invisible letters that Persian, Hindi and emoji need


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
    lines = ["  ".join(_padded(name, width) for name in header).rstrip(), "  ".join(["-" * width] * len(header))]
    for row in rows:
        cells = [wrapped(_end(printable(text), LINES * width) or "(empty)", width) for text in row]
        for i in range(max(map(len, cells))):
            line = "  ".join(_padded(cell[i] if i < len(cell) else "", width) for cell in cells)
            lines.append(line.rstrip())
        lines.append("")
    return "\n".join(lines).rstrip()


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with columns as wide as their texts: the first column is aligned left, all other columns right."""
    widths = [max(map(columns_of, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for first, *others in [header, ["-" * width for width in widths], *rows]:
        right = [" " * (width - columns_of(text)) + text for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([_padded(first, widths[0]), *right]).rstrip())
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """A printable text in at most `width` columns; "..." stands for the middle of a longer text."""
    if columns_of(text) <= width:
        return text
    end, start = _end(text, (width - 3) // 2), text
    while columns_of(start) > width - 3 - columns_of(end):
        start = start[:-1]
    return f"{start}...{end}"


def columns_of(text: str) -> int:
    """The number of terminal columns of a printable text."""
    return sum(_columns_of_letter(letter) for letter in text)


def printable(text: str) -> str:
    """The text in one line. Letters that a terminal would obey, and halves of surrogate pairs, are escaped."""
    words = " ".join(text.split())
    return "".join(x if x.isprintable() or x in JOINERS else repr(x)[1:-1] for x in words)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns. A line ends at a space, or inside a word that is wider than a line."""
    lines: list[str] = []
    for word in text.split():
        if lines and columns_of(lines[-1]) + 1 + columns_of(word) <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if columns_of(lines[-1]) + _columns_of_letter(letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _columns_of_letter(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf") or "\u1160" <= letter <= "\u11ff":  # inner parts of Hangul
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _end(text: str, columns: int) -> str:
    """The end of a text, in at most that many columns."""
    if columns_of(text) <= columns:
        return text
    start = len(text)
    while start and (columns := columns - _columns_of_letter(text[start - 1])) >= 0:
        start -= 1
    while start < len(text) and _columns_of_letter(text[start]) == 0:  # marks of a letter that is cut off
        start += 1
    return text[start:]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - columns_of(text))
