"""Exported ratings of people -> win rates, agreement of the raters, and ratings of the models.

A tie and "both bad" count as half a win for each model. Several ratings of one comparison count together as one
comparison with their mean: two people who judge the same two answers are not two independent observations.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.evaluation.human.page import FORMAT, unpack_key
from minirlhf.evaluation.intervals import wilson

CHOICES = ("left", "right", "tie", "both bad")


@dataclass(frozen=True)
class Rating:
    comparison: tuple[str, int]  # (page, number)
    rater: str
    models: tuple[str, str]  # in the order in which the files name them
    result: str  # "first" or "second" if that model wins, "tie", "both bad"
    choice: str  # as the rater saw it: "left", "right", "tie", "both bad"
    category: str | None
    at: str  # time, as text that sorts

    @property
    def score(self) -> float:
        """Of the first model."""
        return {"first": 1.0, "second": 0.0}.get(self.result, 0.5)


@dataclass(frozen=True)
class Comment:
    rater: str
    number: int  # of the comparison, from 1, as the page shows it
    models: tuple[str, str]
    text: str


@dataclass(frozen=True)
class Ratings:
    models: list[str]  # with ratings, in the order of the files
    rows: list[Rating]
    comments: list[Comment]
    identical: Counter[tuple[str, str]]  # models -> prompts whose answers are identical; nobody rates them
    notes: list[str]


def read_ratings(paths: Sequence[str]) -> Ratings:
    """Read exported files. If a rater exported a page several times, the newest rating of a comparison counts.

    Raises: InputError for a file that the page did not export.
    """
    newest: dict[tuple, Rating] = {}
    comments: dict[tuple, Comment] = {}
    identical: dict[str, Counter] = {}
    repeated: Counter[str] = Counter()
    order: dict[str, int] = {}  # model -> its place; two pages may list the models in different orders
    for path in paths:
        try:
            found, said, same, page = _read(json.loads(Path(path).read_text(encoding="utf-8-sig")), order)
        except OSError as error:
            raise InputError(f"{path}: needed a file of ratings, got: {error.strerror}; check the path") from None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            got = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{path}: needed a file that the page exported, got {got[:200]}; export it again"
            ) from None
        identical[page] = same
        for rating in found:
            place = rating.rater, rating.comparison
            repeated[rating.rater] += place in newest
            if place not in newest or newest[place].at <= rating.at:
                newest[place] = rating
        comments |= {(page, comment.rater, comment.number): comment for comment in said}
    notes = [
        f"{shown(rater)}: {n} comparisons stand in several files; the newest ratings count"
        for rater, n in repeated.items()
        if n
    ]
    if not newest:
        raise InputError("eval human: needed at least one rating, the files hold none")
    rated = {model for rating in newest.values() for model in rating.models}
    models = [model for model in order if model in rated]
    return Ratings(models, [*newest.values()], [*comments.values()], sum(identical.values(), Counter()), notes)


def _read(file: Any, order: dict[str, int]) -> tuple[list[Rating], list[Comment], Counter, str]:
    """Raises: ValueError and others for a file with another content."""
    if not isinstance(file, dict) or file.get("format") != FORMAT:
        raise ValueError(f"no file with the format {FORMAT!r}")
    key = unpack_key(file["key"])
    pages_models, page, rater = key["models"], str(file["page"]), str(file["rater"])
    for model in pages_models:
        order.setdefault(model, len(order))
    ratings, comments = [], []
    for row in file["ratings"]:
        number, choice, left = row["comparison"], row["choice"], row["left"]
        if choice not in (None, *CHOICES) or left not in (0, 1):
            raise ValueError(f"comparison {shown(number)}: choice {shown(choice)}, left {shown(left)}")
        wrote = [pages_models[_place(place)] for place in key["pairs"][_place(number)]]
        first, second = sorted(wrote, key=order.__getitem__)
        if first == second:
            raise ValueError(f"comparison {number}: one model wrote both answers")
        if row["comment"]:
            comments.append(Comment(rater, number + 1, (first, second), str(row["comment"])))
        if choice is None:  # a comment alone
            continue
        result = choice
        if choice in ("left", "right"):
            winner = wrote[left if choice == "left" else 1 - left]
            result = "first" if winner == first else "second"
        category = key["categories"][number]
        ratings.append(Rating((page, number), rater, (first, second), result, choice, category, str(row["at"])))
    same = Counter()
    for a, b, n in key["identical"]:
        same[tuple(sorted((pages_models[_place(a)], pages_models[_place(b)]), key=order.__getitem__))] += _place(n)
    return ratings, comments, same, page


def _place(value: Any) -> int:
    if type(value) is not int or value < 0:  # -1 would be the last place
        raise ValueError(f"needed an integer of at least 0, got {shown(value)}")
    return value


@dataclass(frozen=True)
class Tally:
    """The ratings of the first of two models against the second."""

    comparisons: int
    ratings: int
    results: Counter[str]  # "first", "second", "tie", "both bad" -> ratings
    share: float
    interval: tuple[float, float]  # Wilson, 95%


def tally(ratings: Iterable[Rating]) -> Tally:
    """The ratings are of one pair of models. Raises: InputError without ratings."""
    scores: dict[tuple[str, int], list[float]] = {}
    results: Counter[str] = Counter()
    for rating in ratings:
        scores.setdefault(rating.comparison, []).append(rating.score)
        results[rating.result] += 1
    wins = math.fsum(sum(each) / len(each) for each in scores.values())
    interval = wilson(wins, len(scores))
    return Tally(len(scores), results.total(), results, wins / len(scores), interval)


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Agreement of two raters beyond chance, (observed - expected) / (1 - expected). Cohen 1960.

    first, second: their choices on the same items. None if both always make one and the same choice: then chance alone
    explains full agreement.
    """
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    counts = Counter(first), Counter(second)
    expected = sum(counts[0][choice] * counts[1][choice] for choice in counts[0]) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def agreement(ratings: Iterable[Rating]) -> dict[tuple[str, str], tuple[int, float, float | None]]:
    """Pair of raters -> (comparisons that both rated, share of equal choices, kappa over the four choices)."""
    choices: dict[str, dict[tuple[str, int], str]] = {}
    for rating in ratings:
        choices.setdefault(rating.rater, {})[rating.comparison] = rating.result
    found = {}
    for pair in combinations(sorted(choices), 2):
        both = choices[pair[0]].keys() & choices[pair[1]].keys()
        if both:
            first, second = ([choices[rater][place] for place in both] for rater in pair)
            equal = sum(a == b for a, b in zip(first, second, strict=True)) / len(both)
            found[pair] = len(both), equal, cohen_kappa(first, second)
    return found


def wins_between(ratings: Iterable[Rating]) -> dict[tuple[str, str], float]:
    """(winner, loser) -> wins, over comparisons; a tie is half a win for each."""
    pairs: dict[tuple[str, str], list[Rating]] = {}
    for rating in ratings:
        pairs.setdefault(rating.models, []).append(rating)
    wins: Counter[tuple[str, str]] = Counter()
    for (a, b), rows in pairs.items():
        found = tally(rows)
        wins[a, b] += found.share * found.comparisons
        wins[b, a] += (1 - found.share) * found.comparisons
    return dict(wins)


def bradley_terry(wins: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Strengths p with P(i beats j) = p_i / (p_i + p_j), of geometric mean 1, by maximum likelihood.

    The MM algorithm of Hunter 2004: p_i <- W_i / sum_j n_ij / (p_i + p_j), where W_i counts the wins of i.
    wins: (winner, loser) -> wins; halves stand for ties.
    Raises: InputError if no finite strengths exist: a group of models has no win, or no loss, against the others.
    """
    models = list(dict.fromkeys(model for pair in wins for model in pair))
    for start in models:
        beaten, last = {start}, 0
        while len(beaten) > last:
            last = len(beaten)
            beaten |= {b for (a, b), n in wins.items() if a in beaten and n > 0}
        if missing := [model for model in models if model not in beaten]:
            raise InputError(
                f"Bradley-Terry: no finite ratings: {start} has no chain of wins to {missing[0]}; collect more ratings"
            )
    total = {a: sum(n for (winner, _), n in wins.items() if winner == a) for a in models}
    games = {(a, b): wins.get((a, b), 0) + wins.get((b, a), 0) for a in models for b in models if a != b}
    p = dict.fromkeys(models, 1.0)
    for _ in range(100_000):
        new = {a: total[a] / sum(games[a, b] / (p[a] + p[b]) for b in models if b != a) for a in models}
        scale = math.exp(sum(map(math.log, new.values())) / len(new))
        new = {a: strength / scale for a, strength in new.items()}
        change = max(abs(math.log(new[a] / p[a])) for a in models)
        p = new
        if change < 1e-12:
            break
    return p
