"""Regular expressions in tokenizer.json. One of a stranger may need hours for a short text, or end in a panic.

The tokenizers library tries each way to match, up to ten million; then it panics. Some letters, each repeated, show
such an expression: with an honest one the time grows with the text's length, with a runaway one with a power of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import tokenizers

from minirlhf.errors import InputError, shown

LENGTHS = (40, 60, 90, 130, 200, 300, 400)  # letters of a trial: the time of the first bad one stays small
MOST = 0.1  # seconds of processor time for a trial; an honest expression takes a hundredth of it
LETTERS = "aA1 \n\t-_.\u00e9\u6f22"
MOST_LETTERS = 64


def check_regexes(backend: tokenizers.Tokenizer, content: dict) -> None:
    """Raise InputError if an expression of the tokenizer runs away.

    content: the JSON of its file.
    """
    patterns = [*_regexes([content.get("normalizer"), content.get("pre_tokenizer"), content.get("decoder")])]
    letters = [letter for pattern in patterns for letter in pattern if letter.isalnum()]
    for letter in list(dict.fromkeys([*LETTERS, *letters]))[:MOST_LETTERS] if patterns else ():
        for length in LENGTHS:
            for text in (letter * length + "!", (letter + "b") * (length // 2) + "!"):
                if fault := _fault(backend, text):
                    found = ", ".join(shown(pattern) for pattern in patterns[:3])
                    raise InputError(f"a regular expression runs away, {found}: {length} times {shown(letter)} {fault}")


def _fault(backend: tokenizers.Tokenizer, text: str) -> str | None:
    started = time.thread_time()  # other threads may be at work
    try:
        backend.decode(backend.encode(text).ids)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic is no Exception
        return f"end in {shown(str(error))}"
    return f"take more than {MOST} s" if time.thread_time() - started > MOST else None


def _regexes(value: Any) -> Iterator[str]:
    """All texts under "Regex" in a JSON value."""
    if isinstance(value, dict):
        found = value.get("Regex")
        yield from [found] if isinstance(found, str) else []
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _regexes(part)
