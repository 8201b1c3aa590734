"""Rewards by a check: JSON of a given shape, and code that passes unit tests. answers.py checks final answers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.rewards.child_process import check_isolation, run_python
from minirlhf.rewards.fenced import code_of

# Name of a type -> test of a JSON value
TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "any": lambda value: True,
}


def json_shape(completions: list[str], rows: list[dict]) -> list[float | None]:
    """1 for a completion that is JSON of the row's "shape", else 0. Text around a fenced block is ignored.

    None if the row has no shape, or null.

    A shape is JSON too: the name of a type in TYPES, several names with | between them, an object {key: shape}, or a
    list [shape] of any length. An object needs each key, except keys that end with ?, and may have no other key:
    {"name": "string", "age?": "integer | null", "tags": ["string"]}
    Raises: InputError if a shape is broken.
    """
    shapes = [None if row.get("shape") is None else shape_of(row) for row in rows]
    return [
        None if shape is None else float(_has_shape(text, shape))
        for text, shape in zip(completions, shapes, strict=True)
    ]


def check_shapes(rows: list[dict]) -> None:
    """Raise InputError unless every row has a shape."""
    for row in rows:
        shape_of(row)


def shape_of(row: dict) -> Any:
    """The shape of a row: JSON, or the text of JSON."""
    shape, where = row.get("shape"), _where(row)
    try:
        if isinstance(shape, str) and shape.lstrip()[:1] in ("{", "["):
            shape = json.loads(shape)
        check_shape(shape)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f'json_shape: {where}: needed a JSON shape under "shape", got {shown(shape)}: {error}'
        ) from None
    return shape


def check_shape(shape: Any) -> None:
    """Raise ValueError unless this is a shape."""
    if isinstance(shape, dict) and all(isinstance(key, str) for key in shape):
        for value in shape.values():
            check_shape(value)
    elif isinstance(shape, list) and len(shape) == 1:
        check_shape(shape[0])
    elif not (isinstance(shape, str) and all(name in TYPES for name in _names(shape))):
        raise ValueError(f"{shown(shape, 40)} is none of {', '.join(TYPES)}, {{key: shape}} and [shape]")


def matches(value: Any, shape: Any) -> bool:
    """True if a JSON value has a shape."""
    if isinstance(shape, str):
        return any(TYPES[name](value) for name in _names(shape))
    if isinstance(shape, list):
        return isinstance(value, list) and all(matches(entry, shape[0]) for entry in value)
    known = {key.removesuffix("?"): (inner, key.endswith("?")) for key, inner in shape.items()}
    if not isinstance(value, dict) or not value.keys() <= known.keys():
        return False
    return all(matches(value[key], inner) if key in value else may for key, (inner, may) in known.items())


def unit_tests(completions: list[str], rows: list[dict]) -> list[float | None]:
    """The share of the row's "tests" that the completion passes; its code is its last fenced block, or the whole text.

    "tests" is Python text, or a list of texts; each is run after the code in a child process with the limits of
    `run_python`. It passes if it runs to its end: code that exits early, or is stopped, passes nothing. A program that
    reads its own file can still cheat, as it can with any test that it can read. None if the row has no tests, or null,
    or an empty list.
    Raises: InputError if tests are no texts, or the machine cannot run an isolated program.
    """
    tests = [[] if row.get("tests") in (None, []) else tests_of(row) for row in rows]
    asked = [(code_of(text), test) for text, own in zip(completions, tests, strict=True) for test in own]
    if asked:
        check_isolation()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the order of the answers is the order of the programs
        passed = iter(list(pool.map(lambda pair: passes(*pair), asked)))
    return [sum(next(passed) for _ in own) / len(own) if own else None for own in tests]


def check_tests(rows: list[dict]) -> None:
    """Raise InputError unless every row has tests, and this machine can run them."""
    check_isolation()
    for row in rows:
        tests_of(row)


def passes(code: str, test: str) -> bool:
    """True if the code, then the test, runs to its end."""
    mark = hashlib.sha256(f"{code}\n{test}".encode(errors="replace")).hexdigest()
    program = f"{code}\n\n{test}\n\nimport sys\nsys.__stdout__.write('\\n{mark}')"
    result = run_python(program, output_bytes=1 << 24)
    return not result.error and result.stdout.endswith(f"\n{mark}")


def tests_of(row: dict) -> list[str]:
    tests = row.get("tests")
    tests = [tests] if isinstance(tests, str) else tests
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise InputError(
            f'unit_tests: {_where(row)}: needed Python text, or a list of texts, under "tests", got '
            f"{shown(row.get('tests'))}; add the tests, or choose another reward"
        )
    return tests


def _has_shape(text: str, shape: Any) -> bool:
    try:
        return matches(json.loads(code_of(text), parse_constant=_no_json), shape)
    except (ValueError, RecursionError):
        return False


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")  # Python reads NaN and Infinity


def _names(shape: str) -> list[str]:
    return [name.strip() for name in shape.split("|")]


def _where(row: dict) -> str:
    return f"{row.get('file', '')} line {row['line']}".strip() if "line" in row else shown(row.get("prompt"), 40)
