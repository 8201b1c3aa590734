"""Lines and JSON values of strangers, with bounds on their size and depth."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from minirlhf.errors import InputError, shown
from minirlhf.foreign import without_repeats

MAX_BYTES = 1 << 26  # of one value. As Python objects, 64 MB of JSON such as [[],[],...] take up to 1.4 GB
MAX_DEPTH = 100  # lists and objects inside one another
BAD_BYTE = re.compile("[\udc80-\udcff]")  # the letters into which "surrogateescape" decodes bytes that are no text


class Line(NamedTuple):
    """A line of a file."""

    offset: int  # of its first byte
    end: int  # of its last byte, the line end included
    number: int  # from 1
    data: bytes | None  # None: more than MAX_BYTES


def lines(file: BinaryIO, end: int, number: int = 1) -> Iterator[Line]:
    """The lines from the file's position to the byte `end`.   number: of the first line."""
    offset = file.tell()
    while offset < end:
        data = file.readline(min(MAX_BYTES + 1, end - offset))
        if not data:
            raise InputError("needed a file that stays as it is, got a file that became shorter; start again")
        after, last = offset + len(data), data
        while len(data) > MAX_BYTES and after < end and last and not last.endswith(b"\n"):  # pass over a long line
            last = file.readline(min(1 << 20, end - after))
            after += len(last)
        yield Line(offset, after, number, None if len(data) > MAX_BYTES else data)
        offset, number = after, number + 1


def text_of(line: Line, encoding: str = "UTF-8") -> str:
    """The line's text, with its line end.   Raises: InputError for a line that is too long or is no text."""
    if line.data is None:
        raise too_long("a line")
    return checked(line.data.decode("utf-8", "surrogateescape").removeprefix("\ufeff"), encoding)


def checked(text: str, encoding: str) -> str:
    """The text.   Raises: InputError if it holds a byte that is no text in the encoding, or a NUL."""
    if not text.isascii() and (bad := BAD_BYTE.search(text)):
        byte = text[bad.start()].encode("utf-8", "surrogateescape")[0]
        advice = f"name the file's encoding: {proposal(text.encode('utf-8', 'surrogateescape'))}"
        raise InputError(f"needed {encoding}, got the byte 0x{byte:02x} in {shown(text.strip(), 40)}; {advice}")
    if "\0" in text:
        raise InputError(f"needed text, got a NUL byte in {shown(text.strip(), 40)}; remove it")
    return text


def too_long(subject: str) -> InputError:
    return InputError(f"needed at most {MAX_BYTES:,} bytes, got {subject} of more; cut it into several rows")


def proposal(data: bytes) -> str:
    """The likely encoding of bytes that are no UTF-8, as a flag.

    In GB18030 the bytes of Chinese letters stand in pairs, so runs of bytes above 0x7f are nearly always even. In
    Latin-1 such bytes stand alone.
    """
    runs = re.findall(rb"[\x80-\xff]+", data)
    if sum(len(run) % 2 == 0 for run in runs) * 2 > len(runs) and "\ufffd" not in data.decode("gb18030", "replace"):
        return "--encoding gb18030 (or latin-1)"
    return "--encoding latin-1 (or gb18030)"


STRICT = json.JSONDecoder(object_pairs_hook=without_repeats)  # NaN is read: its column may have no use


def parsed(text: str) -> object:
    """The JSON value of a text.   Raises: InputError that names the fault."""
    try:
        value = STRICT.decode(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"broken JSON, {fault_of(error)}: {shown(text, 60)}") from None
    return shallow(value, text)


def fault_of(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"more than {MAX_DEPTH} lists and objects inside one another"
    return str(getattr(error, "msg", error)).partition(";")[0]


def shallow(value: object, text: str) -> object:
    """The value.   Raises: InputError if it nests too deep: other code goes through values by recursion."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:  # nearly always
        return value
    level, depth = [value], 0
    while level := [part for part in level if isinstance(part, list | dict)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise InputError(f"broken JSON, {fault_of(RecursionError())}: {shown(text, 60)}")
        level = [child for part in level for child in (part.values() if isinstance(part, dict) else part)]
    return value
