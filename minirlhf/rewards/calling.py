"""How a reward function takes its arguments: by position, or by the names that its parameters have."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from minirlhf.data.columns import names_of
from minirlhf.errors import InputError
from minirlhf.runtime import ending

NAMES = ("prompts", "completions", "rows")


def call_reward(reward: Callable, prompts: list[str], completions: list[str], rows: list[dict]) -> Any:
    """Call a reward function as its signature asks -> its answer. It gets copies, so it can change no row of the run.

    reward(p, c, r)                        three parameters of names that no row has: by position
    reward(completions), reward(*, rows)   some of the names prompts, completions, rows, in any order: by name
    reward(completions, answer, **kwargs)  another name is a column of the rows: a list with one value per completion;
                                           **kwargs gets the rest of prompts, completions and rows
    A parameter with a default value keeps it, unless it has one of the three names. An async function is awaited.
    Raises: InputError if a parameter names a column that a row does not have.
    """
    given = dict(zip(NAMES, (list(prompts), list(completions), [dict(row) for row in rows]), strict=True))
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have no signature
        return awaited(reward(*given.values()))
    names = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    open_ended = len(names) < len(parameters)  # it has **kwargs
    required = {p.name for p in parameters if p.name in names and p.default is p.empty}
    columns = required - given.keys()
    by_position = any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in parameters)
    by_position |= not (names & given.keys() or open_ended)
    by_position |= bool(columns) and len(required) == 3 and not any(name in row for row in rows for name in columns)
    if by_position:
        return awaited(reward(*given.values()))
    arguments = {name: value for name, value in given.items() if open_ended or name in names}
    return awaited(reward(**arguments, **{name: _column(rows, name) for name in columns}))


def awaited(answer: Any) -> Any:
    """The answer of a function. If it is a coroutine, or a list of coroutines: their results."""
    several = isinstance(answer, list | tuple) and any(map(inspect.isawaitable, answer))
    if not several and not inspect.isawaitable(answer):
        return answer

    async def wait() -> Any:
        if not several:
            return await answer
        return [await each if inspect.isawaitable(each) else each for each in answer]

    with ThreadPoolExecutor(1) as thread:  # a notebook runs a loop already, and a thread has only one
        return thread.submit(asyncio.run, wait()).result()


def refused(what: str, why: str) -> InputError:
    """The error of a reward or judge that cannot be used. In a run it names the step and the last good checkpoint."""
    run = ending.step and ending.step()
    return InputError(f"{run}: {what}: {why}" if run else f"{what}: {why}")


def _column(rows: list[dict], name: str) -> list:
    for row in rows:
        if name not in row:
            raise InputError(
                f"the parameter {name} is neither prompts, completions nor rows, and a row has no column {name}; it "
                f"has {names_of(map(str, row)) or 'none'}; rename the parameter, or give it a default value"
            )
    return [row[name] for row in rows]
