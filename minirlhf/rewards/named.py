"""The rewards that `--reward` knows by a name."""

from __future__ import annotations

from collections.abc import Callable

from minirlhf.rewards.answers import check_answers, exact_match
from minirlhf.rewards.scoring import Reward
from minirlhf.rewards.shaping import repetition, tags
from minirlhf.rewards.verifiers import check_shapes, check_tests, json_shape, unit_tests

NAMED: dict[str, Reward] = {
    "exact_match": exact_match,  # the column "answer"
    "json_shape": json_shape,  # the column "shape"
    "unit_tests": unit_tests,  # the column "tests"
    "repetition": repetition,
    "tags": tags,
}
# Reward -> its column, and a check of rows before the first stage
CHECKS: dict[Reward, tuple[str, Callable[[list[dict]], None]]] = {
    exact_match: ("answer", check_answers),
    json_shape: ("shape", check_shapes),
    unit_tests: ("tests", check_tests),
}


def check_rows(reward: Reward, rows: list[dict], alone: bool) -> None:
    """Raise InputError unless a named reward can judge completions of the rows. If it is alone, each row needs its
    column; else other rewards judge the rows without the column. A column that is null is none.
    """
    if reward in CHECKS:
        column, check = CHECKS[reward]
        check(rows if alone else [row for row in rows if row.get(column) is not None])
