"""Values of files and flags in messages. A stranger wrote them, so they may hold anything."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any


def beginning_of_repr(value: Any, most: int) -> str:
    """The beginning of repr(value). repr escapes newlines, controls, invisible letters and halves of surrogate pairs.

    A value of more than `most` letters is cut, with "..." and the whole length.
    """
    text, is_text = "".join(islice(_pieces(value, most), most + 3)), isinstance(value, str)
    if len(text) <= most + 2:  # two quotes
        return text
    size = f" ({len(value):,} {'letters' if is_text else 'entries'})" if hasattr(value, "__len__") else ""
    return f"{text[:most]}...{text[0] if is_text else ''}{size}"


def _pieces(value: Any, most: int) -> Iterator[str]:
    """repr(value) in pieces of one letter or more. Only the pieces that are asked for are made."""
    if isinstance(value, list | dict):
        yield "{" if isinstance(value, dict) else "["
        for i, part in enumerate(value):
            yield from [", "] * (i > 0)
            yield from _pieces(part, most)
            if isinstance(value, dict):
                yield ": "
                yield from _pieces(value[part], most)
        yield "}" if isinstance(value, dict) else "]"
    elif isinstance(value, int) and abs(value) >= 1 << 999:  # Python refuses to write more than 4,300 digits
        yield hex(value)
    else:
        yield repr(value[: most + 1] if isinstance(value, str) else value)
