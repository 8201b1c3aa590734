"""Split a file into parts, such as training rows and test rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from minirlhf.errors import InputError

PARTS = {2: ("train", "test"), 3: ("train", "validation", "test")}


def fractions(ratio: Sequence[float]) -> tuple[float, ...]:
    """One number is the first part; two or three numbers are all parts.   Raises: InputError."""
    parts = (*ratio, 1 - ratio[0]) if len(ratio) == 1 else tuple(ratio)
    if len(parts) not in PARTS or abs(sum(parts) - 1) > 1e-6 or not all(0 < part < 1 for part in parts):
        raise InputError(
            "ratio: needed the first part, such as 0.8, or two or three parts whose sum is 1, such as 0.8,0.1,0.1; got "
            f"{','.join(map(str, ratio))}"
        )
    return parts


def joined(keys: Sequence[Sequence[str]]) -> list[str]:
    """A text for each row. Rows that share a key, directly or through other rows, get the same text."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    for first, *more in keys:
        for key in more:
            parent[root(key)] = root(first)
    return [root(first) for first, *_ in keys]


def split(texts: Sequence[str], parts: Sequence[float], seed: int) -> list[list[int]]:
    """The positions in each part, in their order. Equal texts stay together.

    A hash of seed and text orders the texts; the first fraction of the rows is the first part, and so on. So the order
    of the rows does not matter, and a new row moves few of the old rows. A group of equal texts goes where most of its
    rows belong.
    """
    groups: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        groups.setdefault(text, []).append(position)
    order = sorted(groups, key=lambda text: hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "replace")).digest())
    bounds = [len(texts) * sum(parts[: i + 1]) for i in range(len(parts))]
    found: list[list[int]] = [[] for _ in parts]
    seen = 0
    for text in order:
        middle = seen + len(groups[text]) / 2
        part = next((i for i, bound in enumerate(bounds) if middle < bound + 1e-9), len(parts) - 1)
        found[part] += groups[text]
        seen += len(groups[text])
    return [sorted(part) for part in found]
