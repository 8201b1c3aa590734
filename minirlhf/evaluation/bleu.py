"""BLEU and chrF: how many n-grams of a text stand in its references.

Both have the defaults of sacrebleu, and agree with it to 1e-6. A text may have several references.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from minirlhf.errors import InputError

ORDER = 4  # BLEU counts n-grams of 1 to 4 words
LETTERS = 6  # chrF counts n-grams of 1 to 6 letters
Words = Callable[[str], list[str]]
# mteval-v13a splits these off a word; and points, commas and dashes, depending on the digits around them
WORD_ENDS = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
ENTITIES = {"<skipped>": "", "-\n": "", "\n": " ", "&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}
# Chinese letters and punctuation as in sacrebleu, which leaves out the planes above U+FFFF
CHINESE = re.compile(
    "([\u2001-\u2a6d\u2e80-\u2eff\u2f00-\u2fdf\u2ff0-\u303f\u3100-\u312f\u31a0-\u31bf\u31c0-\u31ef\u3200-\u4db5"
    "\u4e00-\u9fbb\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef])"
)
IDEOGRAPHS = re.compile("[\u3400-\u4db5\u4e00-\u9fff]")
NO_SPACES = re.compile("[\u3040-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # kana, Thai, Lao, Burmese, Khmer


def bleu(texts: Sequence[str], references: Sequence[str | Sequence[str]], words: Words | None = None) -> float:
    """BLEU-4 of a corpus, 0 to 100.   Papineni et al. 2002.

    100 * min(1, exp(1 - r / c)) * (p1 p2 p3 p4)^(1/4).  pn is the share of n-grams that stand in a reference, each
    counted at most as often as there; c is the length of all texts, r that of the nearest references. The k-th
    precision that is 0 counts as 1 / (2^k * the number of n-grams). Texts without any 4-gram score 0.

    Args:
        references: one or several for each text.   words: a text -> its words; None: `words_for` the references.
    Raises: InputError without texts.
    """
    own = _paired("bleu", texts, references)
    words = words or words_for(ref for refs in own for ref in refs)
    counted = []
    for text, refs in zip(texts, own, strict=True):
        most, lengths = Counter(), []
        for split in map(words, refs):
            most |= _grams(split)
            lengths.append(len(split))
        split = words(text)
        counted.append(_counts(split, _nearest(lengths, len(split)), most.__getitem__))
    return _bleu_of(counted)


def self_bleu(groups: Sequence[Sequence[str]], words: Words | None = None) -> float | None:
    """BLEU of each text against the other texts of its group; 100 if all are equal. None if no group has two texts.

    Zhu et al. 2018, arXiv:1802.01886. All texts are counted as one corpus.
    """
    words = words or words_for(text for group in groups for text in group)
    counted = [counts for group in groups if len(group) > 1 for counts in _against_others(list(map(words, group)))]
    return _bleu_of(counted) if counted else None


def _against_others(splits: list[list[str]]) -> Iterator[list[int]]:
    """The counts of each text against the others. Two numbers for each n-gram suffice, so the time is linear."""
    lengths = sorted(map(len, splits))
    first: dict[tuple, tuple[int, int]] = {}  # n-gram -> (its largest count in a text, that text)
    second: Counter = Counter()  # n-gram -> its largest count in the other texts
    for i, split in enumerate(splits):
        for gram, count in _grams(split).items():
            largest, owner = first.get(gram, (0, i))
            first[gram] = (count, i) if count > largest else (largest, owner)
            second[gram] = max(second[gram], min(count, largest))

    def allowed(gram: tuple, i: int) -> int:
        largest, owner = first[gram]
        return second[gram] if owner == i else largest

    for i, split in enumerate(splits):
        place = bisect_left(lengths, len(split))
        others = lengths[max(0, place - 1) : place] + lengths[place + 1 : place + 2]
        yield _counts(split, _nearest(others, len(split)), partial(allowed, i=i))


def chrf(texts: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """chrF2 of a corpus, 0 to 100: the F-score of n-grams of 1 to 6 letters, recall weighted twice. Popović 2015.

    5 P R / (4 P + R); P and R are means over the lengths of n-grams that texts and references have. Spaces are left
    out. Of several references the best counts.   Raises: InputError without texts.
    """
    total = [0] * 3 * LETTERS
    for text, refs in zip(texts, _paired("chrf", texts, references), strict=True):
        counted = [_letter_counts(text, ref) for ref in refs]
        total = [a + b for a, b in zip(total, max(counted, key=_f_score), strict=True)]
    return _f_score(total)


def words_for(references: Iterable[str]) -> Words:
    """`letters` for scripts without spaces, `words_zh` if more than a tenth is Chinese, else `words_13a`."""
    text = "".join(references)
    size = sum(map(str.isalpha, text))
    if 10 * len(NO_SPACES.findall(text)) > size:
        return letters
    return words_zh if 10 * len(IDEOGRAPHS.findall(text)) > size else words_13a


def words_13a(text: str) -> list[str]:
    """Words and marks of a text in a script with spaces, as mteval-v13a counts them."""
    text = text.rstrip()
    for old, new in ENTITIES.items():
        text = text.replace(old, new)
    return _split_marks(f" {text} ")


def words_zh(text: str) -> list[str]:
    """Each Chinese letter or mark alone; the rest as words."""
    return _split_marks(CHINESE.sub(r" \1 ", text.strip()))


def letters(text: str) -> list[str]:
    """All letters and marks, without spaces."""
    return list("".join(text.split()))


def _split_marks(text: str) -> list[str]:
    for pattern, spaced in WORD_ENDS:
        text = pattern.sub(spaced, text)
    return text.split()


def _paired(who: str, texts: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """The references of each text as a list.   Raises: InputError unless each text has at least one."""
    own = [[refs] if isinstance(refs, str) else list(refs) for refs in references]
    if not texts or len(own) != len(texts) or not all(own):
        raise InputError(
            f"{who}: needed at least one text and a reference for each, got {len(texts)} texts and references for "
            f"{sum(map(bool, own))}; leave out texts without a reference"
        )
    return own


def _nearest(lengths: Sequence[int], size: int) -> int:
    """The length nearest to `size`; of two the shorter."""
    return min(lengths, key=lambda length: (abs(length - size), length))


def _grams(items: Sequence, least: int = 1, most: int = ORDER) -> Counter:
    sizes = range(least, most + 1)
    return Counter(tuple(items[i : i + n]) for n in sizes for i in range(len(items) - n + 1))


def _counts(split: list[str], reference: int, allowed: Callable[[tuple], int]) -> list[int]:
    """[length, length of the reference, matches of 1 to 4 words, n-grams of 1 to 4 words]."""
    matches = [0] * ORDER
    for gram, count in _grams(split).items():
        matches[len(gram) - 1] += min(count, allowed(gram))
    return [len(split), reference, *matches, *(max(0, len(split) - n) for n in range(ORDER))]


def _bleu_of(counted: list[list[int]]) -> float:
    length, reference, *counts = map(sum, zip(*counted, strict=True))
    matches, sizes = counts[:ORDER], counts[ORDER:]
    if not any(matches) or 0 in sizes:
        return 0.0
    zeros, logs = 0, min(0.0, 1 - reference / length)
    for right, size in zip(matches, sizes, strict=True):
        zeros += right == 0
        logs += math.log((right or 0.5**zeros) / size) / ORDER
    return 100 * math.exp(logs)


def _letter_counts(text: str, reference: str) -> list[int]:
    """For each length of n-grams: its number in the text, in the reference, and in both."""
    counts = []
    for n in range(1, LETTERS + 1):
        ours, theirs = (_grams("".join(part.split()), n, n) for part in (text, reference))
        both = sum(min(count, theirs[gram]) for gram, count in ours.items())
        counts += [ours.total() if theirs else 0, theirs.total(), both]
    return counts


def _f_score(counts: list[int]) -> float:
    orders = [counts[i : i + 3] for i in range(0, len(counts), 3)]
    known = [(both / ours, both / theirs) for ours, theirs, both in orders if ours and theirs]
    precision, recall = (sum(values) / len(known) for values in zip(*known, strict=True)) if known else (0.0, 0.0)
    return 500 * precision * recall / (4 * precision + recall) if precision + recall else 0.0
