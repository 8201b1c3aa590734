"""Labels, scores, ranks and verdicts of people, checked when a row is read."""

from __future__ import annotations

import re
import sys
from itertools import combinations

from minirlhf.data.formats.turns import got
from minirlhf.errors import InputError

GOOD = "true 1 1.0 good yes up thumbsup 👍 positive desirable like liked correct right accepted chosen +"
BAD = "false 0 0.0 bad no down thumbsdown 👎 negative undesirable dislike disliked incorrect wrong rejected -"
LABELS = dict.fromkeys(GOOD.split(), True) | dict.fromkeys(BAD.split(), False)
PAIR_KEY = re.compile(r"(answer|response|output|completion|conversation)(_?)([012ab])", re.IGNORECASE)
SUFFIXES = (("0", "1"), ("1", "2"), ("a", "b"))
WORDS = {"first": 0, "left": 0, "second": 1, "right": 1}


def label_of(value: object, key: str) -> bool:
    """True for a good answer: true, 1, "good", "up" and the like."""
    word = re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    if word not in LABELS:
        raise InputError(f"{key}: needed true or false, 0 or 1, good or bad, up or down, got {got(value)}")
    return LABELS[word]


def step_label(value: object) -> bool:
    """A number is refused: 1 is right in some data sets, and neutral or a rating in others."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and not re.fullmatch(r"[\d.]+", value.strip()):
        return label_of(value, "labels")
    raise InputError(f"labels: needed true or false for each step, got {got(value)}")


def number(value: object, key: str) -> int | float:
    """A finite number."""
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise InputError(f"{key}: needed a finite number, got {got(value)}")
    return value


def pair_of(columns: dict) -> tuple[str, str] | None:
    """The names of the two answers of a row: answer1 and answer2, response_a and response_b, ..."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in columns:
        if match := PAIR_KEY.fullmatch(name):
            found.setdefault((match[1].lower(), match[2]), {})[match[3].lower()] = name
    pairs = [(names[a], names[b]) for names in found.values() for a, b in SUFFIXES if sorted(names) == [a, b]]
    return pairs[0] if len(pairs) == 1 and len(found) == 1 else None


def verdict_of(value: object, pair: tuple[str, str], key: str) -> int:
    """0: the first answer of the pair is better; 1: the second."""
    suffixes = [name[-1].lower() for name in pair]
    number = isinstance(value, int | float) and not isinstance(value, bool) and value in (0, 1, 2)
    text = str(int(value)) if number else value.strip().lower() if isinstance(value, str) else ""
    if text in WORDS:
        return WORDS[text]
    match = re.fullmatch(r"(?:[a-z]+[ _-]?)?([012])|(?:[a-z]+[ _-])?([ab])", text)
    suffix = (match[1] or match[2]) if match else None
    if suffix not in suffixes:
        ties = "; an undecided row has no preference" if text in ("tie", "equal", "both", "same", "neither") else ""
        raise InputError(f"{key}: needed the better answer, {pair[0]} or {pair[1]}, got {got(value)}{ties}")
    return suffixes.index(suffix)


def ranked_pairs(scores: list[float], every: bool, key: str) -> list[tuple[int, int]]:
    """(better, worse) indices: the best and the worst answer, or every pair with different scores."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    pairs = [(a, b) for a, b in combinations(order, 2) if scores[a] > scores[b]]
    if not pairs:
        raise InputError(f"{key}: needed two answers with different scores, got {got(scores)}")
    return pairs if every else [(order[0], order[-1])]
