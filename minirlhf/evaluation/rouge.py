"""ROUGE-1, ROUGE-2 and ROUGE-L: words that a text shares with its reference, one by one, in pairs and in order.

For texts in a to z and digits it agrees with rouge-score to 1e-6, without stemming. rouge-score drops all other
letters. Here Chinese and kana count letter by letter, Cyrillic, Arabic and others by words.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from minirlhf.errors import InputError

# Latin letters with accents separate words, as in rouge-score
WORDS = re.compile(
    r"[a-z0-9]+|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W\d_a-z\u00aa-\u024f\u1e00-\u1eff]+"
)
MEASURES = ("rouge_1", "rouge_2", "rouge_l")


def rouge(texts: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """The mean F1, 0 to 1, of each measure of `MEASURES`. Of several references the best counts.   Lin 2004.

    Raises: InputError without texts, or for a text without a reference.
    """
    own = [[refs] if isinstance(refs, str) else list(refs) for refs in references]
    if not texts or len(own) != len(texts) or not all(own):
        raise InputError(f"rouge: needed a reference for each text, got {len(texts)} texts; leave out the others")
    scores = []
    for text, refs in zip(texts, own, strict=True):
        scores.append([max(values) for values in zip(*(_scores(words(text), words(ref)) for ref in refs), strict=True)])
    return {name: sum(values) / len(values) for name, values in zip(MEASURES, zip(*scores, strict=True), strict=True)}


def words(text: str) -> list[str]:
    """Words in small letters, without marks; each Chinese or Japanese letter is a word."""
    return WORDS.findall(text.lower())


def _scores(ours: list[str], theirs: list[str]) -> tuple[float, float, float]:
    """F1 of single words, of pairs of words, and of the longest common subsequence."""
    pairs = list(zip(ours, ours[1:], strict=False)), list(zip(theirs, theirs[1:], strict=False))
    single, double = ((Counter(a) & Counter(b)).total() for a, b in ((ours, theirs), pairs))
    return (
        _f1(single, len(ours), len(theirs)),
        _f1(double, len(pairs[0]), len(pairs[1])),
        _f1(longest_common(ours, theirs), len(ours), len(theirs)),
    )


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0


def longest_common(first: Sequence, second: Sequence) -> int:
    """The length of the longest common subsequence.

    Each item of `first` lists its positions in `second` from last to first; the longest common subsequence is the
    longest increasing subsequence of these lists (Hunt and Szymanski 1977). So equal words alone cost time.
    """
    places: dict = {}
    for i, item in enumerate(second):
        places.setdefault(item, []).insert(0, i)
    ends: list[int] = []  # ends[k]: the least last position of an increasing subsequence of length k + 1
    for item in first:
        for place in places.get(item, ()):
            k = bisect_left(ends, place)
            ends[k : k + 1] = [place]
    return len(ends)
