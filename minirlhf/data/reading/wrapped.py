"""A JSON file that wraps its rows in an object: {"version": 1, "data": [...]}, {"data": {"train": [...]}}."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from minirlhf.data.reading.containers import Window
from minirlhf.errors import InputError, shown

# Names under which people put lists of rows. No layout of a row reads a column with such a name.
NAMES = (
    "data dataset datasets rows row examples items records samples entries results train training validation valid val "
    "dev test eval default"
)
DEEPEST = 3  # objects around a list
MOST = 20  # keys beside the list that a message names


class Wrapped(NamedTuple):
    """The list of the rows."""

    start: int  # behind its "["
    end: int  # behind its "]"
    line: int
    words: str  # the name of the list, and what stands beside it


class Entry(NamedTuple):
    """A value of the object."""

    path: tuple[str, ...]
    start: int
    end: int
    line: int
    count: int | None  # of objects, if the value is a list that begins with one; None for any other value


def wrapped(file: BinaryIO, start: int, end: int, line: int, name: str, encoding: str) -> Wrapped | None:
    """The rows of a file that is one object with one list of rows. None for any other file, and for a broken one.

    Raises: InputError for several lists, because nobody can say which of them is meant.
    """
    file.seek(start)
    text = Window(file, end, line)
    text.skip_blank()
    try:
        entries = list(_entries(text, (), encoding))
        text.skip_blank()
        is_whole = text.at_end()
    except InputError:
        return None
    lists = [entry for entry in entries if entry.count]
    if not is_whole or not any(set(entry.path) <= set(NAMES.split()) for entry in lists):
        return None
    if len(lists) > 1:
        keys = "".join(f"[{json.dumps(key, ensure_ascii=False)}]" for key in lists[0].path)
        into = re.sub(r"\W", "_", "_".join(lists[0].path)) + ".json"
        into = f"rows_{into}" if os.path.lexists(into) else into  # it may be this very file
        write = f"import json; json.dump(json.load(open({name!r}, 'rb')){keys}, open({into!r}, 'x'))"
        advice = f"write each into a file of its own{f', in Python: {write}' if _is_plain(name, encoding) else ''}"
        found = ", ".join(f"{'.'.join(entry.path)} ({entry.count:,} objects)" for entry in lists[:MOST])
        raise InputError(f"needed one list of rows, got {len(lists)}: {found}; {advice}")
    beside = [".".join(entry.path) for entry in entries if entry is not lists[0]]
    words = f"JSON array under {'.'.join(lists[0].path)}"
    if beside:
        words += f" (not read beside it: {', '.join(shown(key)[1:-1] for key in beside[:MOST])})"
    return Wrapped(*lists[0][1:4], words)


def _is_plain(name: str, encoding: str) -> bool:
    """True for a file that `json.load` reads: in Unicode, and neither packed nor standard input."""
    if not os.path.isfile(name) or not encoding.upper().startswith("UTF"):
        return False
    with open(name, "rb") as file:
        return file.read(2) != b"\x1f\x8b"


def _entries(text: Window, path: Sequence[str], encoding: str) -> Iterator[Entry]:
    """The values of the object at the position, and of the objects in it."""
    text.take("{")
    text.skip_blank()
    closed = text.take("}")
    while not closed:
        text.skip_blank()
        key = text.value(0, encoding)
        text.skip_blank()
        if not isinstance(key, str) or not text.take(":"):
            raise text.broken("Expecting ':'")
        text.skip_blank()
        inner = (*path, key)
        if text.take("["):
            yield Entry(inner, *_list(text, encoding))
        elif text.starts_with("{") and len(inner) < DEEPEST:
            yield from _entries(text, inner, encoding)
        else:
            text.value(0, encoding)
            yield Entry(inner, 0, 0, 0, None)
        text.skip_blank()
        closed = text.take("}")
        if not closed and not text.take(","):
            raise text.broken("Expecting ','")


def _list(text: Window, encoding: str) -> tuple[int, int, int, int | None]:
    """-> (start, end, line, number of objects; None if the first value is none) of the list at the position."""
    start, line, count, is_rows = text.offset, text.line, 0, True
    text.skip_blank()
    while not text.take("]"):
        if count and not text.take(","):
            raise text.broken("Expecting ','")
        text.skip_blank()
        value = text.value(count, encoding)
        is_rows = is_rows and (count > 0 or isinstance(value, dict | InputError))
        count += 1
        text.skip_blank()
    return start, text.offset, line, count if is_rows else None
