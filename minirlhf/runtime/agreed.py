"""Something that only the main process does: its result, or its error, reaches all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minirlhf.errors import InputError
from minirlhf.runtime.distributed import gather, is_main


def agreed(choose: Callable[[], Any]) -> Any:
    """The main process's result, a JSON value, on all processes. All of them raise the main process's InputError."""
    result, problem = None, ""
    if is_main():
        try:
            result = choose()
        except InputError as error:
            problem = str(error)
    result, problem = gather((result, problem))[0]
    if problem:
        raise InputError(problem)
    return result
