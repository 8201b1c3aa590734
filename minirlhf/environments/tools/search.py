"""Search in a local file: its passages, ranked by BM25."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from os import PathLike

from minirlhf.data.reading import open_values
from minirlhf.data.tools.texts import words_of
from minirlhf.environments.tools.failure import ToolError
from minirlhf.errors import InputError

K1, B = 1.5, 0.75  # of BM25: how fast repeated words lose weight, and how much long passages lose
MOST_RESULTS = 10
MOST_BYTES = 1 << 28  # of a file: its words are held in memory


def search_in(path: str | PathLike, *, results: int = 3, letters: int = 400) -> Callable[[str], str]:
    """The tool `search` over the passages of a file.

    A passage is a part of a text file up to a blank line, or a row of JSONL, JSON or a table: the texts of its columns.

    Args:
        results: passages in an answer, at most 10.
        letters: of a passage that are shown; the passage is cut around the first word of the query.
    Raises: InputError for a file that is missing, broken, empty or larger than 256 MB, or for results out of range.
    """
    if not 1 <= results <= MOST_RESULTS or letters < 20:
        raise InputError(f"search_in: needed 1 to 10 results of at least 20 letters, got {results} and {letters}")
    index = Index(passages_of(path))

    def search(query: str) -> str:
        """Search the documents. The answer lists the best passages.

        Args:
            query: a few words
        """
        words = words_of(query)
        if not words:
            raise ToolError("needed words to search for, got none")
        best = index.best(words, results)
        found = [f"[{rank}] {excerpt(index.passages[i], words, letters)}" for rank, i in enumerate(best, start=1)]
        return "\n".join(found) or "nothing found"

    return search


def passages_of(path: str | PathLike) -> list[str]:
    values = open_values(path, documents="blank_line")
    if values.size > MOST_BYTES:
        raise InputError(f"{path}: needed at most {MOST_BYTES >> 20} MB to search in, got {values.size >> 20} MB")
    passages = []
    for source in values:
        if isinstance(source.value, InputError):
            raise InputError(f"{source.file}, {source.unit} {source.number}: {source.value}; correct or drop it")
        passages.append(" ".join(" ".join(texts_of(source.value)).split()))
    if not any(map(words_of, passages)):
        raise InputError(f"{path}: needed passages to search in, got no text")
    return passages


def texts_of(value: object) -> list[str]:
    """All texts and numbers inside a JSON value, in their order."""
    if isinstance(value, dict | list):
        return [text for part in (value.values() if isinstance(value, dict) else value) for text in texts_of(part)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


class Index:
    """An inverted index: word -> {number of the passage: count of the word}."""

    def __init__(self, passages: list[str]) -> None:
        self.passages, self.postings = passages, defaultdict(dict)
        self.lengths = []
        for i, passage in enumerate(passages):
            words = words_of(passage)
            self.lengths.append(len(words))
            for word, count in Counter(words).items():
                self.postings[word][i] = count
        self.mean_length = sum(self.lengths) / len(passages)

    def best(self, words: list[str], count: int) -> list[int]:
        """The numbers of the best passages. Passages of equal score stand in the order of the file.

        score(d) = sum over the query's words w of log(1 + (N - n_w + 1/2) / (n_w + 1/2))
                   * f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|))
        f: count of w in d;   n_w: passages that have w;   N: passages. Robertson and Zaragoza 2009, Eq. 3.15, with the
        idf of Lucene, which is never negative.
        """
        scores: Counter[int] = Counter()
        for word in dict.fromkeys(words):
            found = self.postings.get(word, {})
            idf = math.log(1 + (len(self.passages) - len(found) + 0.5) / (len(found) + 0.5))
            for i, f in found.items():
                scores[i] += idf * f * (K1 + 1) / (f + K1 * (1 - B + B * self.lengths[i] / self.mean_length))
        return sorted(scores, key=lambda i: (-scores[i], i))[:count]


def excerpt(passage: str, words: list[str], letters: int) -> str:
    """The passage, or its part around the first word of the query; "..." marks a cut."""
    if len(passage) <= letters:
        return passage
    lower = passage.casefold()
    first = min((at for word in words if (at := lower.find(word)) >= 0), default=0)
    start = max(0, min(first - letters // 4, len(passage) - letters))
    end = start + letters
    return "..." * (start > 0) + passage[start:end].strip() + "..." * (end < len(passage))
