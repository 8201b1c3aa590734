"""Facts about the rows of a file: counts, lengths, duplicates, languages, and rows that another file has too."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from minirlhf.data.encoding import encode_rows
from minirlhf.data.formats import Dataset
from minirlhf.data.tools.texts import ANSWERS, answers, normalised, question, script_of, words_of
from minirlhf.foreign import beginning_of_repr
from minirlhf.text.tokenizer import Tokenizer

IGNORED = "case, width, spaces and final punctuation"  # by `normalised`
BAR = 30  # columns of the longest bar of a histogram
LONGEST = 1 << 20  # tokens; a longer text is counted as this long
AT_ONCE = 1000  # rows that are tokenised at once


class Lengths(NamedTuple):
    """Of each row that can be encoded."""

    prompts: list[int]
    whole: list[int]  # prompt and its longest answer
    refused: list[str]  # rows that cannot be encoded


def lengths(dataset: Dataset, tokenizer: Tokenizer | None) -> Lengths:
    """In tokens, as training reads the rows; without a tokenizer in letters."""
    found, keys = Lengths([], [], []), ANSWERS[dataset.kind]
    for start in range(0, len(dataset.rows), AT_ONCE):
        rows = [dataset.rows[i] for i in range(len(dataset.rows))[start : start + AT_ONCE]]
        if tokenizer:
            texts = [{**row, **dict(zip(keys, answers(row, dataset.kind), strict=True))} for row in rows]
            encoded = encode_rows(
                tokenizer, texts, keys, context=LONGEST, max_refused=1.0, source=dataset.path, unit=dataset.unit
            )
            found.refused.extend(encoded.refused)
            pairs = [(row.prompt, row.responses) for row in encoded.rows]
        else:
            pairs = [(row["prompt"], answers(row, dataset.kind)) for row in rows]
        for prompt, texts in pairs:
            found.prompts.append(len(prompt))
            found.whole.append(len(prompt) + max(map(len, texts), default=0))
    return found


def histogram(values: Sequence[int]) -> list[str]:
    """Lines with a bar for each power of two: 0, 1, 2-3, 4-7, 8-15, ..."""
    counts = Counter(value.bit_length() for value in values)
    lines = []
    for bits in range(min(counts), max(counts) + 1):
        low, high = 1 << bits >> 1, (1 << bits) - 1
        bar = "#" * -(-BAR * counts[bits] // max(counts.values()))
        name = f"{low:,}" if low == high else f"{low:,}-{high:,}"
        lines.append(f"{name:>17}  {counts[bits]:>9,}  {bar}".rstrip())
    return lines


def quantile(values: Sequence[int], part: float) -> int:
    """The smallest value that at least this part of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(part * 1000) * len(ordered) // 1000) - 1)]


def place(row: dict) -> str:
    """Its line; with its file if the rows come from several files."""
    return f"{row['line']} of {row['file']}" if "file" in row else str(row["line"])


class Twice(NamedTuple):
    """Rows whose text an earlier row has."""

    count: int
    examples: list[tuple[str, str]]  # (place of the first row, place of a later row), at most three


def duplicates(rows: Sequence[dict], texts: Iterable[Iterable[str]]) -> Twice:
    """texts: those of each row that are compared."""
    first: dict[bytes, str] = {}
    later = []
    for row, parts in zip(rows, texts, strict=True):
        key = hashlib.sha256(repr([*parts]).encode("utf-8", "replace")).digest()  # 32 bytes, however long the text
        if key in first:
            later.append((first[key], place(row)))
        first.setdefault(key, place(row))
    return Twice(len(later), later[:3])


def languages(rows: Sequence[dict], kind: str) -> Counter:
    """Script of the question and the answers -> rows."""
    return Counter(script_of("\n".join([question(row), *answers(row, kind)])) for row in rows)


def same_answers(rows: Sequence[dict], kind: str) -> tuple[int, list[tuple[str, int]]]:
    """(rows whose answer also stands under another question, the three most frequent answers of this kind)."""
    asked = defaultdict(set)
    count: Counter = Counter()
    for row in rows:
        for answer in answers(row, kind)[:1]:
            asked[normalised(answer)].add(normalised(question(row)))
            count[normalised(answer)] += 1
    shared = Counter({answer: count[answer] for answer, questions in asked.items() if len(questions) > 1})
    return shared.total(), shared.most_common(3)


class Overlap(NamedTuple):
    """A row that the other file has too."""

    place: str
    other: str  # its place in the other file
    why: str  # "same question" or "13 words in common: ..."


def contamination(dataset: Dataset, other: Dataset, n: int) -> list[Overlap]:
    """Rows whose question stands in the other file, or that share n words in a row with it.

    Only questions and answers are compared: system turns and templates stand in many rows. Rows under n words are
    compared by their question alone.
    """
    questions: dict[str, str] = {}
    grams: dict[tuple[str, ...], str] = {}
    for row in other.rows:
        questions.setdefault(normalised(question(row)), place(row))
        for gram in _grams(row, other.kind, n):
            grams.setdefault(gram, place(row))
    found = []
    for row in dataset.rows:
        if (same := questions.get(normalised(question(row)))) is not None:
            found.append(Overlap(place(row), same, "same question"))
        elif gram := next((gram for gram in _grams(row, dataset.kind, n) if gram in grams), None):
            words = beginning_of_repr(" ".join(gram), 60)
            found.append(Overlap(place(row), grams[gram], f"{n} words in common: {words}"))
    return found


def _grams(row: dict, kind: str, n: int) -> list[tuple[str, ...]]:
    found = []
    for text in (question(row), *answers(row, kind)):
        words = words_of(text)
        found += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return found


def report(dataset: Dataset, tokenizer: Tokenizer | None, context: int | None) -> str:
    """All facts about one file, in lines for the terminal."""
    rows, kind, unit = dataset.rows, dataset.kind, dataset.unit
    reasons = Counter(refusal.reason for refusal in dataset.refused)
    lines = [dataset.summary()]
    if len(dataset.refused) > 3:
        lines += [f"  refused {count:,} times: {reason}" for reason, count in reasons.most_common(5)]
    found = lengths(dataset, tokenizer)
    if found.whole:
        numbers = " ".join(f"{name} {quantile(found.whole, part):,}" for name, part in
                           (("median", 0.5), ("95%", 0.95), ("longest", 1.0)))  # fmt: skip
        lines += [f"length in {'tokens' if tokenizer else 'letters'}, prompt and longest answer: {numbers}"]
        lines += histogram(found.whole)
    lines += found.refused[:3]
    if context:
        cut = sum(length > context for length in found.whole)
        full = sum(length >= context for length in found.prompts)
        lines.append(f"at a context of {context:,}: {cut:,} rows are too long; in {full:,} of them the prompt alone is")
    texts = [[row["prompt"], *answers(row, kind)] for row in rows]
    same = [("rows that stand twice", texts), (f"the same without {IGNORED}", [map(normalised, row) for row in texts])]
    if kind != "text":
        lines.append(f"empty prompts: {sum(not row['prompt'].strip() for row in rows):,}")
        same.append(("prompts that stand twice", [row[:1] for row in texts]))
    for name, keys in same:
        twice = duplicates(rows, keys)
        where = "; ".join(f"{unit} {later} as {unit} {first}" for first, later in twice.examples)
        lines.append(f"{name}: {twice.count:,}" + f" ({where})" * bool(where))
    shared, most = same_answers(rows, kind)
    often = "; ".join(f"{beginning_of_repr(answer, 40)} {count:,} times" for answer, count in most)
    lines.append(f"answers that stand under several questions: {shared:,}" + f" ({often})" * bool(often))
    if kind == "unpaired":
        lines.append(f"labels: {sum(row['label'] for row in rows):,} good of {len(rows):,}")
    counted = ", ".join(f"{name} {count:,}" for name, count in languages(rows, kind).most_common())
    lines.append(f"language by script: {counted}")
    return "\n".join(lines)
