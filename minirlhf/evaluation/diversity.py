"""Variety of texts: distinct n-grams, and repetition inside a text. Chinese and Japanese letters count as words."""

from __future__ import annotations

import re
from collections.abc import Iterable

from minirlhf.evaluation.texts import distinct_n

LETTER = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def spaced(text: str) -> str:
    """The text with a space around each Chinese or Japanese letter."""
    return LETTER.sub(r" \1 ", text)


def distinct(texts: Iterable[str], n: int) -> float | None:
    """Different n-grams of words / all n-grams in the texts, 0 to 1; None if no text has n words.   Li et al. 2016."""
    return distinct_n(map(spaced, texts), n)


def repetition(texts: Iterable[str], n: int = 4) -> float | None:
    """The mean share of n-grams in a text that stand in it earlier: 0 without any repetition, near 1 in a loop.

    Welleck et al. 2020, arXiv:1908.04319 (seq-rep-n). A text of fewer than n words has no n-gram and is not counted;
    None if no text has one.
    """
    shares = [distinct_n([text], n) for text in map(spaced, texts)]
    known = [1 - share for share in shares if share is not None]
    return sum(known) / len(known) if known else None
