"""Measures of texts alone."""

from __future__ import annotations

from collections.abc import Iterable


def distinct_n(texts: Iterable[str], n: int = 2) -> float:
    """Different n-grams of words over all n-grams of the whole set (Li et al. 2016, arXiv:1510.03055); 0 if none.

    Over the set and not text by text: a model that writes one good text again and again has many repeated n-grams.
    """
    grams = []
    for text in texts:
        words = text.split()
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
