"""How a reward function is called: its arguments by position or by name, its coroutines, its time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from threading import Thread
from typing import Any

from minirlhf.data.columns import names_of
from minirlhf.errors import InputError
from minirlhf.foreign import copied
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
    given = dict(zip(NAMES, (list(prompts), list(completions), copied(list(rows))), strict=True))
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
    return awaited(reward(**arguments, **{name: _column(given["rows"], name) for name in columns}))


def awaited(answer: Any) -> Any:
    """The answer of a function. If it is a coroutine, or a list of coroutines: their results, in the same order.

    The coroutines of a list run at the same time, in an event loop of their own, which ends with them.
    """
    several = isinstance(answer, list | tuple) and any(map(inspect.isawaitable, answer))
    if not several and not inspect.isawaitable(answer):
        return answer

    async def wait() -> Any:
        try:
            if not several:
                return await answer
            return await asyncio.gather(*(each if inspect.isawaitable(each) else _known(each) for each in answer))
        except asyncio.CancelledError as error:  # is no Exception: a caller would not name the user's file
            raise RuntimeError("the coroutine was cancelled").with_traceback(error.__traceback__) from None

    return in_thread(lambda: asyncio.run(wait()))  # a notebook runs a loop already, and a thread has only one


async def _known(value: Any) -> Any:
    return value


class TookTooLong(Exception):
    """A function has not answered in time."""


def in_thread(act: Callable[[], Any], seconds: float | None = None) -> Any:
    """The answer, or the error, of a function that another thread calls.

    A function that takes longer goes on in its thread, because no thread can be ended; the program does not wait for it
    at its end.   Raises: TookTooLong.
    """
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:  # SystemExit too: the caller decides
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    done, _ = wait_for([future], timeout=seconds)
    if not done:
        raise TookTooLong
    return future.result()


class Timed:
    """A reward function that must answer within some seconds, by the clock.

    Raises: InputError, when it is called, if it takes longer.
    """

    def __init__(self, reward: Callable, seconds: float) -> None:
        self.reward, self.seconds = reward, seconds
        self.__name__ = getattr(reward, "__name__", type(reward).__name__)

    def __call__(self, prompts: list[str], completions: list[str], rows: list[dict]) -> Any:
        try:
            return in_thread(lambda: call_reward(self.reward, prompts, completions, rows), self.seconds)
        except TookTooLong:
            needed = f"needed the scores of {len(completions)} completions within {self.seconds:g} s, got none"
            raise refused(f"reward {self.__name__}", f"{needed}; raise --reward_timeout, or make it faster") from None


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
