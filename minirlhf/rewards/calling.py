"""How a reward function takes its arguments: by position, or by the names that its parameters have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from minirlhf.errors import InputError

NAMES = ("prompts", "completions", "rows")


def call_reward(reward: Callable, prompts: list[str], completions: list[str], rows: list[dict]) -> Any:
    """Call a reward function as its signature asks -> its answer.

    reward(p, c, r)                        three parameters of any names: by position
    reward(completions), reward(*, rows)   some of the names prompts, completions, rows, in any order: by name
    reward(completions, answer, **kwargs)  another name is a column of the rows: a list with one value per completion;
                                           **kwargs gets those of the three names that are left
    A parameter with a default value keeps it, unless it has one of the three names.
    Raises: InputError if a parameter names a column that a row does not have.
    """
    given = dict(zip(NAMES, (prompts, completions, rows), strict=True))
    parameters = _parameters(reward)
    if parameters is None:
        return reward(*given.values())
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    keeps = {p.name for p in parameters if p.default is not p.empty}
    arguments = given if len(named) < len(parameters) else {name: given[name] for name in named if name in given}
    columns = {name: _column(rows, name) for name in named if name not in given and name not in keeps}
    return reward(**arguments, **columns)


def _parameters(reward: Callable) -> list[inspect.Parameter] | None:
    """The parameters of a function that takes its arguments by name; None if it takes them by position."""
    try:
        parameters = list(inspect.signature(reward).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have no signature
        return None
    by_position = any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in parameters)
    names = {p.name for p in parameters}
    takes_names = names & {*NAMES} or any(p.kind is p.VAR_KEYWORD for p in parameters)
    return parameters if takes_names and not by_position else None


def _column(rows: list[dict], name: str) -> list:
    if lacking := next((row for row in rows if name not in row), None):
        raise InputError(
            f"the parameter {name} is neither prompts, completions nor rows, and a row has no column {name}: "
            f"{', '.join(map(str, lacking))}; rename the parameter, or give it a default value"
        )
    return [row[name] for row in rows]
