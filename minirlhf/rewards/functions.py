"""Reward functions of a user's own Python file, and several rewards as one.

A file that the user names on his command line is his own program: it is imported, so its code runs.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import linecache
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from minirlhf.errors import InputError
from minirlhf.foreign import message_of
from minirlhf.nearest import nearest
from minirlhf.rewards.calling import call_reward, refused
from minirlhf.rewards.scoring import Reward, score_completions


class FileReward:
    """A function of a user's file. Its errors become one line with his file and line number.

    name: FILE.py:FUNCTION.
    Raises: InputError if the file cannot be imported, or has no such function.
    """

    kind, needed = "reward", "function"

    def __init__(self, name: str) -> None:
        file, _, function = name.rpartition(":")
        if not file:
            file, function = name, ""
        self.__name__, self.path = name, Path(file)
        module = self.guarded(lambda: import_file(self.path))
        known = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        found = getattr(module, function, None) if function else None
        if not callable(found):
            hint = nearest(function, known) if function and known else ""
            raise InputError(
                f"{self.kind} {name}: needed a {self.needed} of {file}, got {function or 'no name'}; it has "
                f"{', '.join(known) or 'none'}{hint or f'; write FILE.py:{self.needed.upper()}'}"
            )
        self.function = found

    def __call__(self, prompts: list[str], completions: list[str], rows: list[dict]) -> Any:
        def answer() -> Any:
            scores = call_reward(self.function, prompts, completions, rows)
            return list(scores) if isinstance(scores, Iterator) else scores  # a generator runs here

        return self.guarded(answer)

    def guarded(self, act: Callable[[], Any]) -> Any:
        """Call `act`. An error of the user's code becomes an InputError."""
        try:
            return act()
        except (Exception, SystemExit) as error:
            raise refused(f"{self.kind} {self.__name__}", where_it_failed(error, self.path)) from None


class RewardSum:
    """The weighted sum of several rewards. A reward may return None for a completion; the others then count alone.

    weights: one for each function; default: 1 each.
    """

    label = "sum of the rewards"
    collective = True  # each function decides for itself; see `RewardModelScorer`

    def __init__(self, functions: Sequence[Reward], weights: Sequence[float] | None = None) -> None:
        self.functions = list(functions)
        self.weights = (1.0,) * len(self.functions) if weights is None else tuple(weights)
        if len(self.weights) != len(self.functions):
            got = f"{len(self.functions)} functions and {len(self.weights)} weights"
            raise InputError(f"RewardSum: needed a weight for each function, got {got}")
        self.__name__ = " + ".join(getattr(f, "__name__", type(f).__name__) for f in self.functions)

    def __call__(self, prompts: list[str], completions: list[str], rows: list[dict]) -> list[float | None]:
        columns = [score_completions(f, prompts, completions, rows, optional=True) for f in self.functions]
        return [self._sum(scores) for scores in zip(*columns, strict=True)]

    def _sum(self, scores: Sequence[float]) -> float | None:
        known = [w * score for w, score in zip(self.weights, scores, strict=True) if not math.isnan(score)]
        return sum(known) if known else None


def parts_of(reward: Reward | None) -> list[Reward]:
    """The functions of a sum, for a trainer that weighs them itself; else the reward alone; none beside none."""
    return reward.functions if isinstance(reward, RewardSum) else [reward] * (reward is not None)


def import_file(path: Path) -> ModuleType:
    """The module of a Python file. It can import its neighbours, as a program can. A file is imported once."""
    if not path.is_file():
        raise InputError(f"needed a Python file, found no {path}; check the path")
    name = str(path.resolve())
    if name in sys.modules:
        return sys.modules[name]
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, name))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def where_it_failed(
    error: BaseException, path: Path, needed: str = "a function of prompts, completions and rows"
) -> str:
    """One line: the user's file and line, the error, and the text of the line.   needed: if none of his lines ran."""
    text = " ".join(message_of(error).split())[:300]
    if isinstance(error, InputError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{path.name}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    if not own:
        return f"{type(error).__name__}: {text}; needed {needed}"
    line = linecache.getline(own[-1].filename, own[-1].lineno).strip()
    return f"{path.name}, line {own[-1].lineno}: {type(error).__name__}: {text} (in {line[:80]})"
