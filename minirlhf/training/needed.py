"""The type of a setting in words."""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

TYPES = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path", NoneType: "none"}


def needed(hint: Any) -> str:
    """The type `hint` in words, for error messages and `--help`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(needed, args))
    if origin is Literal:
        return "one of " + ", ".join("none" if choice is None else str(choice) for choice in args)
    if origin is list or (origin is tuple and args[-1] is ...):
        return f"a list (each {needed(args[0])})"
    return f"a list of {len(args)} ({', '.join(map(needed, args))})" if origin is tuple else TYPES[hint]
