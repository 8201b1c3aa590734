"""`minirlhf eval human`: ask people which of two answers is better, and read their ratings.

minirlhf eval human A.jsonl B.jsonl --output page.html   # a page for any browser; it names no model
minirlhf eval human --analyse ratings-*.json             # win rates, agreement, ratings of the models

A row of A.jsonl has "prompt" and "completion" (or "response"), and may have "model" and "category".
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from minirlhf.columns import aligned, printable, shortened, wrapped
from minirlhf.data.tools.manifest import write_new
from minirlhf.errors import InputError, shown
from minirlhf.evaluation.human.analysis import (
    Comment,
    Rating,
    Ratings,
    agreement,
    bradley_terry,
    read_ratings,
    tally,
    wins_between,
)
from minirlhf.evaluation.human.page import compare, page_of, read_answers

WIDTH = 80  # columns
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def write_page(files: list[str], output: Path, question: str, seed: int, max_rows: int | None) -> str:
    """Write the page; -> a report for the terminal.   Raises: InputError if the file exists."""
    if output.exists():
        raise InputError(f"{output}: exists already; choose another --output")
    answers, notes = read_answers(files)
    found = compare(answers, seed=seed, max_rows=max_rows)
    html = page_of(found, question)
    write_new(output, html.encode())
    prompts = len({row.prompt for row in found.rows})
    size = f"{len(html.encode()) / 1e6:.1f} MB"
    written = f"{output}: {len(found.rows)} comparisons of {len(found.models)} models on {prompts} prompts, {size}"
    return "\n".join([*notes, *found.notes, written, "open it in a browser, rate, and export the ratings"])


def report(ratings: Ratings) -> str:
    """All tables. Letters stand for the models, so that the tables fit 80 columns."""
    letter = {model: LETTERS[i] if i < len(LETTERS) else str(i + 1) for i, model in enumerate(ratings.models)}
    raters = {rating.rater for rating in ratings.rows}
    comparisons = {rating.comparison for rating in ratings.rows}
    counts = f"raters: {len(raters)}, comparisons: {len(comparisons)}, ratings: {len(ratings.rows)}"
    legend = "\n".join(f"{letter[model]} = {printable(model)}" for model in letter)
    parts = [counts, legend, _win_rates(ratings.rows, letter), _strengths(ratings.rows, letter)]
    parts += [_agreement(ratings.rows), _sides(ratings.rows)]
    parts += [
        f"not rated, because the answers are identical: {n} prompts of {letter.get(a, printable(a))} and "
        f"{letter.get(b, printable(b))}"
        for (a, b), n in ratings.identical.items()
    ]
    parts += ratings.notes
    if ratings.comments:
        ordered = sorted(ratings.comments, key=lambda comment: (comment.rater, comment.number))
        parts.append("comments\n" + "\n".join(_comment(comment, letter) for comment in ordered))
    return "\n\n".join(part for part in parts if part)


def _win_rates(rows: list[Rating], letter: dict[str, str]) -> str:
    lines = []
    for pair in sorted({rating.models for rating in rows}, key=lambda pair: [*map(list(letter).index, pair)]):
        of_pair = [rating for rating in rows if rating.models == pair]
        categories = sorted({rating.category for rating in of_pair if rating.category is not None})
        groups = [("all", of_pair)]
        groups += [(name, [rating for rating in of_pair if rating.category == name]) for name in categories]
        for name, group in groups:
            found = tally(group)
            first = f"{letter[pair[0]]} over {letter[pair[1]]}, {shortened(printable(name), 12)}"
            counts = [found.results[result] for result in ("first", "second", "tie", "both bad")]
            low, high = found.interval
            share = [f"{found.share:.3f}", f"{low:.3f} to {high:.3f}"]
            lines.append([first, *map(str, [found.comparisons, *counts]), *share])
    header = ["", "n", "won", "lost", "tie", "bad", "win rate", "95% interval"]
    return f"{aligned(header, lines)}\nn counts comparisons; won, lost, tie and bad count ratings"


def _strengths(rows: list[Rating], letter: dict[str, str]) -> str:
    if len(letter) < 3:
        return ""
    try:
        found = bradley_terry(wins_between(rows))
    except InputError as error:
        return "\n".join(wrapped(str(error), WIDTH))
    ranked = sorted(found, key=found.__getitem__, reverse=True)
    rows = [[letter[model], f"{400 * math.log10(found[model]):+.0f}", f"{found[model]:.3f}"] for model in ranked]
    return "Bradley-Terry\n" + aligned(["", "rating", "strength"], rows)


def _agreement(rows: list[Rating]) -> str:
    found = agreement(rows)
    if not found:
        return ""
    lines = [
        [
            f"{shortened(printable(a), 20)} and {shortened(printable(b), 20)}",
            str(n),
            f"{equal:.3f}",
            "-" if kappa is None else f"{kappa:.3f}",
        ]
        for (a, b), (n, equal, kappa) in found.items()
    ]
    return aligned(["agreement of raters", "n", "equal", "kappa"], lines)


def _sides(rows: list[Rating]) -> str:
    """A rater who reads only one side prefers that side."""
    sides = [rating.choice for rating in rows if rating.choice in ("left", "right")]
    if not sides:
        return ""
    return f"the left answer won {sides.count('left')} of {len(sides)} ratings with a winner"


def _comment(comment: Comment, letter: dict[str, str]) -> str:
    models = " and ".join(letter.get(model, printable(model)) for model in comment.models)
    first = f"{printable(comment.rater)}, comparison {comment.number}, {models}:"
    lines = wrapped(f"{first} {printable(comment.text)}", WIDTH - 4)
    return "\n    ".join([f"  {lines[0]}", *lines[1:]])


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "minirlhf eval human", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("files", nargs="*", metavar="FILE", help="answers: two models or more, in one file or several")
    top.add_argument("--output", type=Path, metavar="PAGE", help="the page to write, such as page.html")
    top.add_argument("--question", default="Which answer is better?", help="the question on the page")
    top.add_argument("--max_rows", type=int, metavar="N", help="at most N prompts, chosen at random")
    top.add_argument("--seed", type=int, default=0, help="of the order of comparisons and of that choice")
    top.add_argument("--analyse", nargs="+", metavar="RATINGS", help="read exported ratings instead")
    return top


def main(arguments: list[str]) -> None:
    asked = parser().parse_args(arguments)
    if asked.analyse:
        if asked.files or asked.output:
            raise InputError("--analyse: reads ratings and writes nothing; drop --output and the files of answers")
        return print(report(read_ratings(asked.analyse)))
    if not asked.files or not asked.output:
        raise InputError("eval human: needed files of answers and --output PAGE, or --analyse RATINGS; see --help")
    if asked.max_rows is not None and asked.max_rows < 1:
        raise InputError(f"--max_rows: needed at least 1, got {shown(asked.max_rows)}")
    print(write_page(asked.files, asked.output, asked.question, asked.seed, asked.max_rows))
