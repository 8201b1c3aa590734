"""Which container a text is in: its content decides. The file's name decides only what the content leaves open."""

from __future__ import annotations

import io
import json
import re
from itertools import islice
from types import UnionType
from typing import BinaryIO, NamedTuple

from minirlhf.data.reading import bounded
from minirlhf.data.reading.bounded import checked
from minirlhf.data.reading.containers import Container, JsonLines, JsonValues, Table, Text, records
from minirlhf.data.reading.files import endings
from minirlhf.data.reading.wrapped import wrapped
from minirlhf.errors import InputError, shown

HEAD = 1 << 16  # bytes behind the first line that are looked at
JSON_ENDINGS, TABLE_ENDINGS = {"json", "jsonl", "ndjson"}, {"csv", "tsv"}
DELIMITERS = ",\t;"
# The first line of some tables of Excel names the delimiter.
SEPARATOR = re.compile(r"\"?sep=([^\w\"]?)\"?", re.IGNORECASE)
# A file that is not named .csv or .tsv is a table only if its header has one of these names.
COLUMNS = (
    "id prompt instruction input output context history system question query answer response completion chosen "
    "rejected label text content title document summary rating score margin role category messages"
)


class Region(NamedTuple):
    """The values of a file: how they are written, where they begin and end, and the line of their beginning."""

    container: Container
    start: int
    end: int
    line: int = 1


class Beginning(NamedTuple):
    """The first line with text, and the lines behind it, as far as they are looked at."""

    offset: int
    number: int
    head: bytes
    others: list[str]
    endings: set[str]  # of the file's name

    @property
    def text(self) -> str:
        return self.head.partition(b"\n")[0].decode("utf-8", "replace").strip("\ufeff \t\r\n")


def recognise(file: BinaryIO, start: int, end: int, name: str, encoding: str, as_text: bool, documents: str) -> Region:
    """Look at the text from `start` to `end`.

    Args:
        as_text: what is not JSON is plain text, tables too.
        documents: how plain text becomes documents; see `Text`.
    Raises: InputError for a table without a header.
    """
    beginning = _beginning(file, start, end, name)
    if beginning is None:
        return Region(JsonLines("no values"), start, end)
    if values := _json_values(file, beginning, end, name, encoding, as_text):
        return values
    if _is_json_lines(beginning, as_text):
        return Region(JsonLines(encoding=encoding), start, end)
    if not as_text and (table := _table(file, beginning, end, encoding)):
        return table
    by_name = beginning.endings & JSON_ENDINGS and not as_text
    return Region(JsonLines(encoding=encoding) if by_name else Text(documents, encoding), start, end)


def _beginning(file: BinaryIO, start: int, end: int, name: str) -> Beginning | None:
    file.seek(start)
    offset, number, head = start, 1, b""
    while offset < end and not head:
        chunk = file.read(min(HEAD, end - offset))
        head = chunk.lstrip(b" \t\r\n\v\f")
        number += chunk[: len(chunk) - len(head)].count(b"\n")
        offset += len(chunk) - len(head)
    if not head:
        return None
    file.seek(offset)
    most = bounded.MAX_BYTES if head.startswith(b"{") else HEAD  # the first object tells JSONL from other JSON
    head = file.readline(min(most, end - offset))
    rest = file.read(min(HEAD, end - file.tell()))
    others = rest.decode("utf-8", "replace").split("\n")
    if file.tell() < end:
        del others[-1]  # its end is missing
    is_whole = head.endswith(b"\n")
    return Beginning(
        offset, number, head + rest, [row for row in others if row.strip()] if is_whole else [], endings(name)
    )


def _is_json_lines(beginning: Beginning, as_text: bool) -> bool:
    """True if half of the lines are objects or lists, the first line looks like an object, or all lines are JSON."""
    rows = [beginning.text, *beginning.others]
    if 2 * sum(_is_json(row, dict | list) for row in rows) >= len(rows):
        return True
    if as_text:
        return False
    if beginning.text.startswith("{") and beginning.text.endswith("}"):  # {'a': 1}, or a fault inside
        return True
    return not beginning.endings & TABLE_ENDINGS and all(map(_is_json, rows))


def _json_values(
    file: BinaryIO, beginning: Beginning, end: int, name: str, encoding: str, as_text: bool
) -> Region | None:
    """The region of a JSON array, also of one in an object, or of objects that go over several lines. Else None."""
    head = beginning.head.removeprefix(b"\xef\xbb\xbf")
    in_array, start = head[:1] == b"[", beginning.offset + len(beginning.head) - len(head)
    if not in_array and head[:1] != b"{":
        return None
    if not in_array and (found := wrapped(file, start, end, beginning.number, name, encoding)):
        return Region(JsonValues(found.words, encoding=encoding), found.start, found.end, found.line)
    if not in_array and _begins_with_object(beginning.text):
        return None
    if in_array and beginning.others and _is_json(beginning.text):  # lists, each in its line
        return None
    values = JsonValues(encoding=encoding) if in_array else JsonValues("JSON objects", "row", False, encoding)
    found = Region(values, start + in_array, end, beginning.number)
    file.seek(found.start)
    scan, first = values.scan(file, end), None
    try:
        first = next(scan, None)
        second = next(scan, None)
    except InputError:  # a broken file, or text such as "[1] Title" and "{so}"
        if not in_array:
            return found if first else None
        is_cut = head[1:].lstrip()[:1] in (b"", b"{", b"[", b'"') or beginning.endings & JSON_ENDINGS
        return found if is_cut and not as_text else None
    if not in_array and second is None:
        return found._replace(container=JsonValues("one JSON object", "file", False, encoding))
    return found


def _table(file: BinaryIO, beginning: Beginning, end: int, encoding: str) -> Region | None:
    """The region of the records of a table. None for plain text."""
    if separator := SEPARATOR.fullmatch(beginning.text):
        start = beginning.offset + len(beginning.head.partition(b"\n")[0]) + 1
        return _table_at(file, min(start, end), end, separator[1] or "\t", beginning.number + 1, encoding)
    by_name = bool(beginning.endings & TABLE_ENDINGS)
    delimiters = DELIMITERS + "|" * by_name  # elsewhere | is that of a table in Markdown
    widths = {delimiter: _width(beginning.head, delimiter, by_name) for delimiter in delimiters}
    delimiter = "\t" if "tsv" in beginning.endings else max(widths, key=widths.get)
    if not by_name and widths[delimiter] < 2:
        return None
    return _table_at(file, beginning.offset, end, delimiter, beginning.number, encoding)


def _table_at(file: BinaryIO, start: int, end: int, delimiter: str, line: int, encoding: str) -> Region:
    """The region of the records of a table whose header stands at `start`."""
    file.seek(start)
    header = next(records(file, end, delimiter, line), None)
    if header is None:
        raise InputError(f"line {line}: needed a header, got the end of the file; write the names of the columns")
    try:
        names = _names(header.cells, encoding)
    except InputError as error:
        raise InputError(f"line {header.number}: {error}") from None
    return Region(Table(names, delimiter, encoding), header.end, end, header.next_number)


def _width(head: bytes, delimiter: str, by_name: bool) -> int:
    """The number of columns if the text is a table with this delimiter, else 0."""
    found = [record.cells for record in islice(records(io.BytesIO(head), len(head), delimiter), 50)]
    widths = [len(cells) for cells in found if not isinstance(cells, InputError) and cells]
    if not widths or isinstance(found[0], InputError):
        return 0
    is_even = sum(width == widths[0] for width in widths) * 2 > len(found)
    has_names = not set(COLUMNS.split()).isdisjoint(cell.strip().lower() for cell in found[0])
    return widths[0] if by_name or (is_even and has_names and len(widths) > 1) else 0


def _names(cells: list[str] | InputError, encoding: str) -> tuple[str, ...]:
    """The names of the columns.   Raises: InputError if the cells look like a first record, or stand twice."""
    if isinstance(cells, InputError):
        raise cells
    names = [checked(cell, encoding).strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"needed a header with different names, got {shown(twice)} twice; rename a column")
    if set(COLUMNS.split()).isdisjoint(name.lower() for name in names) and (
        wrong := next(filter(_is_no_name, names), None)
    ):
        advice = "write the names of the columns into the first line, such as prompt,response"
        raise InputError(f"needed a header, got {shown(wrong)} as the name of a column; {advice}")
    return tuple(names)


def _is_no_name(cell: str) -> bool:
    is_number = cell.replace(".", "", 1).replace("-", "", 1).isdecimal()
    return is_number or len(cell) > 64 or "\n" in cell or cell[-1] in ".?!。？！"


def _begins_with_object(text: str) -> bool:
    try:
        return isinstance(json.JSONDecoder().raw_decode(text)[0], dict)
    except RecursionError:
        return True
    except ValueError:
        return False


def _is_json(text: str, kind: type | UnionType = object) -> bool:
    try:
        return isinstance(json.loads(text), kind)
    except RecursionError:
        return True
    except ValueError as error:  # a number of 5,000 digits is JSON
        return not isinstance(error, json.JSONDecodeError)
