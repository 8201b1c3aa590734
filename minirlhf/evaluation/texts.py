"""Measures of texts alone."""

from __future__ import annotations

from collections.abc import Iterable


def distinct_n(texts: Iterable[str], n: int = 2) -> float | None:
    """Number of different n-grams of words, divided by that of all n-grams in the texts; None without n-grams.

    Li et al. 2016, arXiv:1510.03055. All texts are counted together, so a model that repeats one good text scores low.
    """
    grams = []
    for text in texts:
        words = text.split()
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
