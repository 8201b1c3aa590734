"""How a file holds its values: JSONL, JSON values one after another, tables, plain text.

Each container has `scan(file, end, line)`. It yields the values from the file's position, each with its offset. A scan
that begins at such an offset yields the same value first, so offsets are all that a second reading needs.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from minirlhf.data.reading import bounded
from minirlhf.data.reading.bounded import STRICT, Line, checked, fault_of, lines, parsed, shallow, text_of, too_long
from minirlhf.errors import InputError, shown

CHUNK = 1 << 16  # bytes
NEAR = 64  # letters at the end of a chunk, in which a fault may be that of the cut
BLANK = re.compile(r"[ \t\n\r]*")  # of JSON
PLAIN = json.JSONDecoder(parse_int=str)  # str: int() refuses a number of 5,000 digits


class Found(NamedTuple):
    """A value of a file."""

    offset: int
    number: int  # from 1: of the line, or of the row, see `unit` of the container
    value: object  # or an InputError that names the fault of a broken value


@dataclass(frozen=True)
class JsonLines:
    """A JSON value in each line. Blank lines hold no value."""

    words: str = "JSONL"
    unit: str = "line"
    encoding: str = "UTF-8"

    def scan(self, file: BinaryIO, end: int, line: int = 1) -> Iterator[Found]:
        for found in lines(file, end, line):
            try:
                text = text_of(found, self.encoding).strip()
                if not text:
                    continue
                value = parsed(text)
            except InputError as error:
                value = error
            yield Found(found.offset, found.number, value)


@dataclass(frozen=True)
class JsonValues:
    """JSON values over several lines: the rows of one array, or objects that follow one another."""

    words: str = "JSON array"
    unit: str = "row"
    in_array: bool = True  # commas between the values and "]" at the end; the scan begins behind "["
    encoding: str = "UTF-8"

    def scan(self, file: BinaryIO, end: int, line: int = 1) -> Iterator[Found]:
        """Raises: InputError for broken JSON. It belongs to no row, because the rows behind it cannot be found."""
        text, number = Window(file, end, line), 0
        while True:
            text.skip_blank()
            if self.in_array and text.take("]"):
                text.skip_blank()
                if not text.at_end():
                    raise text.broken("Extra data")
                return
            if number and self.in_array and not text.take(","):
                raise text.broken(f"the array breaks off after row {number}" if text.at_end() else "Expecting ','")
            text.skip_blank()
            if text.at_end() and not self.in_array:
                return
            offset, number = text.offset, number + 1
            yield Found(offset, number, text.value(number, self.encoding))


class Window:
    """A part of a file as text, and a position in it."""

    def __init__(self, file: BinaryIO, end: int, line: int) -> None:
        self.file, self.left = file, end - file.tell()  # bytes not yet read
        self.offset, self.line = file.tell(), line  # of the position
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.position = "", 0
        self.chunk = min(1 << 10, CHUNK)  # small at first: a reading by position needs one row

    def grow(self) -> bool:
        """Read on, in chunks that grow. False at the end."""
        if not self.left:
            return False
        self.text = self.text[self.position :]
        self.position = 0
        self.chunk = max(min(2 * self.chunk, CHUNK), len(self.text))
        data = self.file.read(min(self.chunk, self.left))
        self.left = self.left - len(data) if data else 0
        self.text += self.decoder.decode(data, final=not self.left)
        return True

    def move(self, position: int) -> str:
        """Go to a position of the text.   Returns: the text up to it."""
        passed = self.text[self.position : position]
        self.position = position
        self.offset += len(passed) if passed.isascii() else len(passed.encode("utf-8", "surrogateescape"))
        self.line += passed.count("\n")
        return passed

    def skip_blank(self) -> None:
        while True:
            self.move(BLANK.match(self.text, self.position).end())
            if self.position < len(self.text) or not self.grow():
                return

    def starts_with(self, letter: str) -> bool:
        return self.text.startswith(letter, self.position)

    def take(self, letter: str) -> bool:
        if found := self.starts_with(letter):
            self.move(self.position + 1)
        return found

    def at_end(self) -> bool:
        return self.position == len(self.text)

    def value(self, number: int, encoding: str) -> object:
        """The JSON value at the position, or an InputError if the value's end is known, but the value is refused."""
        decoder, fault = STRICT, ""
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                near_end = error.pos > len(self.text) - NEAR or error.msg.startswith("Unterminated string")
                if not near_end or not self._grow_value(number):
                    self.move(max(error.pos, self.position))
                    raise self.broken(error.msg) from None
            except RecursionError as error:
                raise self.broken(f"row {number}: {fault_of(error)}") from None
            except ValueError as error:  # of STRICT: a key stands twice. PLAIN finds the end of the value
                decoder, fault = PLAIN, fault_of(error)
            else:
                if end < len(self.text) - NEAR or not self._grow_value(number):  # 12 may be the beginning of 12.5e3
                    return _accepted(value, self.move(end), fault, encoding)

    def _grow_value(self, number: int) -> bool:
        if len(self.text) - self.position > bounded.MAX_BYTES:
            raise too_long(f"row {number}")
        return self.grow()

    def broken(self, fault: str) -> InputError:
        place = f"line {self.line}, at {shown(self.text[self.position : self.position + 30])}"
        return InputError(f"needed whole JSON values, got broken JSON ({fault}: {place}); mend the file")


def _accepted(value: object, text: str, fault: str, encoding: str) -> object:
    try:
        checked(text, encoding)
        if fault:
            raise InputError(f"broken JSON, {fault}: {shown(text, 60)}")
        return shallow(value, text)
    except InputError as error:
        return error


@dataclass(frozen=True)
class Table:
    """CSV, TSV: a record has a cell under each name. A cell in quotes may go over several lines."""

    names: tuple[str, ...]
    delimiter: str = ","
    encoding: str = "UTF-8"
    unit = "line"

    @property
    def words(self) -> str:
        return {",": "CSV", "\t": "TSV"}.get(self.delimiter, f"CSV with {self.delimiter}") + " with header"

    def scan(self, file: BinaryIO, end: int, line: int = 1) -> Iterator[Found]:
        for offset, number, _, _, cells in records(file, end, self.delimiter, line):
            if isinstance(cells, InputError) or any(cells):  # else a blank line, or a line of delimiters
                yield Found(offset, number, self._row(cells))

    def _row(self, cells: list[str] | InputError) -> dict | InputError:
        if isinstance(cells, InputError):
            return cells
        if len(cells) != len(self.names):
            names, more = shown(self.delimiter.join(self.names)), len(cells) > len(self.names)
            advice = f"quote cells that hold {shown(self.delimiter)}" if more else "write all cells of the record"
            return InputError(f"needed {len(self.names)} cells ({names}), got {len(cells)}; {advice}")
        if tuple(cells) == self.names:
            return InputError("needed a record, got the header again; remove the line")
        try:
            return {name: checked(cell, self.encoding) for name, cell in zip(self.names, cells, strict=True)}
        except InputError as error:
            return error


class Record(NamedTuple):
    """A record of a table."""

    offset: int
    number: int  # of its first line
    end: int
    next_number: int  # of the line behind it
    cells: list[str] | InputError


def records(file: BinaryIO, end: int, delimiter: str, number: int = 1) -> Iterator[Record]:
    """The records from the file's position. After a broken record the next line begins a record."""
    csv.field_size_limit(max(bounded.MAX_BYTES, csv.field_size_limit()))
    taken: list[Line] = []  # the first and the last line of the record

    def fed() -> Iterator[str]:
        for line in lines(file, end, number):
            taken[1:] = [line]
            if line.data is None or line.end - taken[0].offset > bounded.MAX_BYTES:
                raise too_long("a record")
            text = line.data.decode("utf-8", "surrogateescape")
            yield text.removeprefix("\ufeff") if line is taken[0] else text

    reader = csv.reader(fed(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            begin = shown(taken[0].data.decode(errors="replace"), 60)
            cells = InputError(f"broken CSV, {_csv_fault(error)}: {begin}")
        except InputError as error:
            if not taken:  # the file changed
                raise
            cells = error
        if cells is None:
            return
        first, last = taken[0], taken[0] if isinstance(cells, InputError) else taken[-1]
        yield Record(first.offset, first.number, last.end, last.number + 1, cells)
        if isinstance(cells, InputError):
            file.seek(last.end)
            number = last.number + 1
            reader = csv.reader(fed(), delimiter=delimiter, strict=True)


def _csv_fault(error: csv.Error) -> str:
    return "a quote opens and does not close" if "end of data" in str(error) else str(error).partition(" - ")[0]


DOCUMENTS = {  # of plain text into documents: -> the unit, and the format in words
    "line": ("line", "plain text, a text a line"),
    "blank_line": ("document", "plain text, cut at blank lines"),
    "file": ("file", "plain text, a text a file"),
}


@dataclass(frozen=True)
class Text:
    """Plain text: a document is a line, the lines between two blank lines, or the whole file."""

    documents: str = "line"  # a name of `DOCUMENTS`
    encoding: str = "UTF-8"

    @property
    def words(self) -> str:
        return DOCUMENTS[self.documents][1]

    @property
    def unit(self) -> str:
        return DOCUMENTS[self.documents][0]

    def scan(self, file: BinaryIO, end: int, line: int = 1) -> Iterator[Found]:
        for number, document in enumerate(self._documents(lines(file, end, line)), start=1):
            number = document[0].number if self.documents == "line" else number
            yield Found(document[0].offset, number, self._value(document))

    def _documents(self, found: Iterator[Line]) -> Iterator[list[Line]]:
        document: list[Line] = []
        for line in found:
            is_blank = line.data is not None and not line.data.strip()
            if not is_blank or (document and self.documents == "file"):
                too_much = document and line.end - document[0].offset > bounded.MAX_BYTES
                if too_much:
                    document = [document[0]._replace(data=None)]
                else:
                    document.append(line)
            if document and (self.documents == "line" or (is_blank and self.documents == "blank_line")):
                yield document
                document = []
        if document:
            yield document

    def _value(self, document: list[Line]) -> dict | InputError:
        try:
            texts = [text_of(line, self.encoding) for line in document]
        except InputError as error:
            return error
        return {"text": "".join(texts).replace("\r\n", "\n").rstrip("\n")}


Container = JsonLines | JsonValues | Table | Text
