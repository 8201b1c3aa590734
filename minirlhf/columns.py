"""Texts in the columns of a terminal: a wide letter takes two columns, a combining mark takes none.

`clusters` is the one place that counts: a letter with its marks, or an emoji of several parts, is one cluster. No text
is cut inside a cluster.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence

JOINER = "\u200d"
JOINERS = "\u200c" + JOINER  # invisible letters that Persian, Hindi and emoji need
AS_EMOJI = "\ufe0f"  # a sign before it is drawn as an emoji, two columns wide
SIGNS = ("So", "Sm", "Po", "Nd")  # categories of such signs: hearts, arrows, exclamation marks, digits on keys
SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"


def columns_of(text: str) -> int:
    """The number of terminal columns of a printable text."""
    return len(text) if text.isascii() else sum(width for _, width in clusters(text))


def clusters(text: str) -> Iterator[tuple[str, int]]:
    """Each letter of a printable text with its marks -> (cluster, columns)."""
    cluster, width = "", 0
    for letter in text:
        own = _columns_of_letter(letter)
        if letter == AS_EMOJI and width == 1 and unicodedata.category(cluster[0]) in SIGNS:
            width = 2
        is_part = width == 2 and (cluster.endswith(JOINER) or letter in SKIN_TONES)  # of an emoji
        if cluster and own and not is_part:
            yield cluster, width
            cluster, width = "", 0
        cluster, width = cluster + letter, width or own
    if cluster:
        yield cluster, width


def printable(text: str) -> str:
    """The text in one line. Letters that a terminal would obey, and halves of surrogate pairs, are escaped."""
    words = " ".join(text.split())
    return "".join(x if x.isprintable() or x in JOINERS else repr(x)[1:-1] for x in words)


def padded(text: str, width: int, right: bool = False) -> str:
    """The text with spaces up to `width` columns. right: the text stands at the right end."""
    spaces = " " * (width - columns_of(text))
    return spaces + text if right else text + spaces


def beginning(text: str, columns: int) -> str:
    """The beginning of a printable text, in at most that many columns."""
    return text[: _length(clusters(text), columns)]


def ending(text: str, columns: int) -> str:
    """The end of a printable text, in at most that many columns."""
    return text[len(text) - _length(reversed(list(clusters(text))), columns) :]


def shortened(text: str, width: int) -> str:
    """A printable text in at most `width` columns; "..." stands for the middle of a longer text."""
    if columns_of(text) <= width:
        return text
    end = ending(text, (width - 3) // 2)
    return f"{beginning(text, width - 3 - columns_of(end))}...{end}"


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns. A line ends at a space, or inside a word that is wider than a line."""
    lines: list[str] = []
    for word in text.split():
        if lines and columns_of(lines[-1]) + 1 + columns_of(word) <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for cluster, columns in clusters(word):
            if columns_of(lines[-1]) + columns > width:
                lines.append("")
            lines[-1] += cluster
    return lines


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with columns as wide as their texts: the first column is aligned left, all other columns right."""
    widths = [max(map(columns_of, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for first, *others in [header, ["-" * width for width in widths], *rows]:
        right = [padded(text, width, right=True) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([padded(first, widths[0]), *right]).rstrip())
    return "\n".join(lines)


def in_colour() -> bool:
    """True on a terminal, unless the user sets NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _length(parts: Iterator[tuple[str, int]], columns: int) -> int:
    """The number of letters in the first clusters that fit into `columns`."""
    letters = 0
    for cluster, width in parts:
        if (columns := columns - width) < 0:
            break
        letters += len(cluster)
    return letters


def _columns_of_letter(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf") or "\u1160" <= letter <= "\u11ff":  # inner parts of Hangul
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
