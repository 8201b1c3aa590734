"""A data file's bytes -> its JSON values, each with its line number.

A file is JSONL or one JSON array, in UTF-8, gzipped or not. The content decides, not the file's name.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import chain
from typing import NamedTuple

from minirlhf.errors import InputError, shown
from minirlhf.foreign import without_repeats

MAX_BYTES = 1 << 28  # of a line or an array after unpacking: a small .gz can hold gigabytes


class Source(NamedTuple):
    """A JSON value of a file."""

    unit: str  # "line", or "row" in an array: the rows of an array have no lines of their own
    number: int  # from 1
    value: object  # for a broken line of JSONL: an InputError that names the fault


def read_values(path: str) -> Iterator[Source]:
    """The JSON values of a file, one at a time.

    Raises: InputError, with file and line, if the file cannot be read, is not UTF-8, or is a broken array or gzip file.
    """
    lines = ((number, line) for number, line in _lines(path) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        for number, value in enumerate(_array(path, chain([first], lines)), start=1):
            yield Source("row", number, value)
        return
    for number, line in chain([first], lines):
        try:
            value = json.loads(line, object_pairs_hook=without_repeats)
        except (ValueError, RecursionError) as error:
            fault = str(getattr(error, "msg", error)).partition(";")[0]
            value = InputError(f"broken JSON, {fault}: {shown(line.strip(), 60)}")
        yield Source("line", number, value)


def _array(path: str, lines: Iterable[tuple[int, str]]) -> list:
    """The values of a file that is one JSON array. A fault in it belongs to no row, so the file is refused."""
    text, last = StringIO(), 0
    for number, line in lines:
        text.write("\n" * (number - last - 1) + line)  # blank lines too: the parser counts them
        last = number
        _check_size(path, number, text.tell())
    try:
        return json.loads(text.getvalue(), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: needed one JSON array, got broken JSON ({error}); mend the file") from None


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield (number, text) line by line, so that a gzipped file is never unpacked as a whole."""
    number = 0
    try:
        with open(path, "rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            while data := file.readline(MAX_BYTES + 1):
                number += 1
                _check_size(path, number, len(data))
                yield number, data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x}"
        raise InputError(f"{path}: line {number}: needed UTF-8, got {byte}; save the file as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        got = f"a file broken after line {number} ({error})"
        raise InputError(f"{path}: needed a whole gzip file, got {got}; fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: needed a readable data file, got: {error.strerror}; check the path") from None


def _check_size(path: str, number: int, size: int) -> None:
    if size > MAX_BYTES:
        needed = f"needed lines or one array of at most {MAX_BYTES:,} bytes, got more"
        raise InputError(f"{path}: line {number}: {needed}; write JSONL, one row per line")
