"""A data file -> rows of one of six kinds, and a reason for each row that is left out.

The rows of a `Dataset` are

    kind "sft"          {"prompt": str, "response": str, ...}
    kind "preference"   {"prompt": str, "chosen": str, "rejected": str, ...}    "margin": number, if the source has it
    kind "unpaired"     {"prompt": str, "response": str, "label": bool, ...}
    kind "steps"        {"prompt": str, "steps": [str], "labels": [bool], ...}
    kind "prompt"       {"prompt": str, ...}    "answer": str, if the source has a final answer to check
    kind "text"         {"prompt": "", "response": str, ...}

Each row has "line", its line of the source from 1 (in a JSON array: the row number), and "file" if the source has
several files. ... are the columns that no layout reads, unchanged; columns.py says which of them are refused. A prompt
may be empty, an answer may not.

A prompt made from turns is text in the plain chat layout that ends with `Assistant:`, and its row keeps the turns as
"prompt_turns" for tokenizers with a chat template. An answer that is more than a plain text (several turns, tool calls,
reasoning, a weight) keeps its turns as "response_turns", "chosen_turns" or "rejected_turns". "tools" lists the tools.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from minirlhf.data.columns import Asked, Columns, check_asked, names_of
from minirlhf.data.formats.convert import Fit, Wishes, convert, renamed_columns
from minirlhf.data.formats.kinds import kind_of
from minirlhf.data.formats.turns import got
from minirlhf.data.reading import Source, Values, open_values
from minirlhf.data.rows import first_three
from minirlhf.errors import InputError, shown

KNOWN = (
    "{prompt, response}, {instruction, input, output}, {messages}, {conversations}, {prompt, chosen, rejected}, "
    "{prompt, completion, label}, {prompt, steps, labels}, {prompt}, {text}; docs/data.md has more"
)
LARGE = 1 << 25  # bytes; the rows of a larger source stay on the disk


@dataclass(frozen=True)
class Refusal:
    """A source row that was left out, and why."""

    line: int
    reason: str
    unit: str = "line"  # what `line` counts, see `Source`
    file: str = ""  # if the source has several files

    def __str__(self) -> str:
        return f"{self.file}{': ' if self.file else ''}{self.unit} {self.line}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """The rows of a source (see the top of this module) and the refused rows."""

    path: str
    kind: str  # "sft", "preference", "unpaired", "steps", "prompt" or "text"
    layout: str  # the keys of the source rows, in words
    rows: Sequence[dict]
    refused: list[Refusal]
    notes: tuple[str, ...] = ()  # columns and turns that nothing reads, and other readings of the file
    unit: str = "line"  # what the "line" of a row counts: lines, or rows of an array
    asked: Asked = Asked({}, ())  # the columns that `columns_map` and `ignore_columns` name and the source lacks

    def summary(self) -> str:
        """A line of counts, the notes, and the first three refused rows."""
        counts = f"{self.kind} rows from {self.layout}, {len(self.rows)} kept, {len(self.refused)} refused"
        return "\n".join(f"{self.path}: {line}" for line in [counts, *self.notes, *first_three(self.refused)])


@dataclass
class RowsOnDisk(Sequence):
    """The canonical rows of a large source. Each access reads and converts a value again."""

    values: Values
    wishes: Wishes
    places: array = field(default_factory=lambda: array("q"))  # of each row: the `Source.at` of its value
    lines: array = field(default_factory=lambda: array("q"))
    parts: array = field(default_factory=lambda: array("i"))  # which canonical row of the value, and which file
    files: array = field(default_factory=lambda: array("i"))

    def add(self, source: Source, count: int) -> None:
        for part in range(count):
            self.places.append(source.at)
            self.lines.append(source.number)
            self.parts.append(part)
            self.files.append(self.values.files.index(source.file))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._row(index, self.values.at(self.places[index]))

    def __iter__(self) -> Iterator[dict]:
        """All rows, in one pass through the files."""
        index = 0
        for source in self.values:
            while index < len(self) and self.places[index] == source.at:
                yield self._row(index, source.value)
                index += 1

    def _row(self, index: int, value: object) -> dict:
        file = self.values.files[self.files[index]]
        rows = convert(value, self.wishes, file in tables(self.values))[2]
        return located(rows[self.parts[index]], self.lines[index], file, self.values)


def tables(values: Values) -> set[str]:
    """The files that are tables: their cells are text, numbers too."""
    return {part.name for part in values.parts if "with header" in part.words}


def located(row: dict, line: int, file: str, values: Values) -> dict:
    """The row with its line, and with its file if the source has several files."""
    return row | {"line": line} | ({"file": file} if len(values.files) > 1 else {})


def read_rows(
    source: str | os.PathLike | Sequence,
    *,
    max_refused: float = 0.01,
    ignore_columns: tuple[str, ...] = (),
    columns_map: Mapping[str, str] | None = None,
    as_kind: str | None = None,
    encoding: str | None = None,
    max_rows: int | None = None,
    pairs: str = "best_worst",
    documents: str = "line",
    one_of_several: bool = False,
) -> Dataset:
    """Read, check and convert all rows of a source. The first valid row decides the layout of all rows.

    Args:
        source:         files, see `open_values`.   encoding: of their text.
        max_refused:    fraction of the rows, 0 to 1, that may be refused.
        ignore_columns: columns and keys of turns to leave unused, although they have a meaning; see columns.py.
        columns_map:    {"prompt": "ask"} reads the column `ask` as `prompt`.
        as_kind:        the kind of rows to make, a name of `KINDS`; None lets the layout decide.
        max_rows:       read no more rows than this.
        pairs:          of several answers with scores: "best_worst" makes a pair of two of them, "all" every pair.
        documents:      of plain text, each "line", each part up to a "blank_line", or each "file" is a row.
        one_of_several: the source may lack columns that `columns_map` and `ignore_columns` name, because another
                        source may have them. The caller reads all sources, and `check_asked` looks at them together.
    Returns: a Dataset with at least one row.
    Raises: InputError if a file cannot be read, no row is usable, more than `max_refused` of the rows are refused, or
        a column has a meaning that nothing uses.
    """
    files = [source] if isinstance(source, str | os.PathLike) else source
    if not isinstance(files, Sequence) or not files or not all(isinstance(file, str | os.PathLike) for file in files):
        raise InputError(f"read_rows: needed the path of a file, got {got(source)}; rows in memory need no reading")
    if not 0 <= max_refused <= 1:
        raise InputError(f"max_refused: needed a fraction from 0 to 1, got {max_refused}; 0.01 is 1% of the rows")
    if pairs not in ("best_worst", "all"):
        raise InputError(f"pairs: needed best_worst or all, got {shown(pairs)}")
    wishes = Wishes(kind_of(as_kind), renamed_columns(columns_map or {}), tuple(ignore_columns), pairs == "all")
    values = open_values(source, encoding=encoding, as_text=as_kind == "text", documents=documents)
    path, columns = ", ".join(map(os.fspath, files)), Columns()
    reading = Reading(values, wishes, columns, max_rows)
    asked = columns.asked(wishes.ignored, list(wishes.renamed))
    if not one_of_several or not len(reading.rows):
        check_asked({path: asked})
    columns.check(path)
    reading.check(path, max_refused)
    found = reading.kind, reading.layout, reading.rows, reading.refused, reading.notes(), reading.unit
    return Dataset(path, *found, asked)


class Reading:
    """One pass through the values of a source."""

    def __init__(self, values: Values, wishes: Wishes, columns: Columns, max_rows: int | None) -> None:
        self.values, self.wishes, self.columns = values, wishes, columns
        self.rows: list[dict] | RowsOnDisk = RowsOnDisk(values, wishes) if values.size > LARGE else []
        self.refused: list[Refusal] = []
        self.fit: Fit | None = None  # of the first valid row
        self.kinds: dict[str, None] = {}  # of all valid rows
        self.since = self.unit = "line"
        self.read = 0  # valid rows
        in_tables = tables(values)
        for source in values:
            if max_rows is not None and self.read >= max_rows:
                break
            self.unit = source.unit
            try:
                self._take(source, source.file in in_tables)
            except InputError as error:
                file = source.file if len(values.files) > 1 else ""
                self.refused.append(Refusal(source.number, str(error), source.unit, file))

    def _take(self, source: Source, of_table: bool) -> None:
        where = f"{source.unit} {source.number}"
        where = f"{source.file}: {where}" if len(self.values.files) > 1 else where
        self.columns.names |= dict.fromkeys(source.value) if isinstance(source.value, dict) else {}
        fit, row, found = convert(source.value, self.wishes, of_table)
        if self.fit is None:
            self.fit, self.since = fit, where
        if not fit.goes_with(self.fit):
            raise InputError(f"this row is {fit.name}, but the file is {self.fit.name} since {self.since}")
        self.columns.look(row, fit.layout, self.wishes.kind, found, where)
        self.kinds.setdefault(self.wishes.kind or fit.layout.kind)
        self.read += 1
        self.columns.bad += not found
        if isinstance(self.rows, RowsOnDisk):
            self.rows.add(source, len(found))
        else:
            self.rows += [located(each, source.number, source.file, self.values) for each in found]

    @property
    def kind(self) -> str:
        return "prompt" if len(self.kinds) > 1 else next(iter(self.kinds))

    @property
    def layout(self) -> str:
        """The layout in words, with the columns that it reads in some rows."""
        more = [name for name in self.columns.used if name not in (*self.fit.keys, "margin")]
        return self.fit.name + (f" with {names_of(more)}" if more and not self.fit.layout.words else "")

    def check(self, path: str, max_refused: float) -> None:
        """Raise InputError without a usable row, and if more than `max_refused` of the rows are refused."""
        refused, total = self.refused, self.read + len(self.refused)
        if total == 0:
            raise InputError(f"{path}: needed at least one row, got an empty file; write one JSON object per line")
        if not len(self.rows):
            why = f"all {total} were refused ({refused[0]})" if refused else "no label is good"
            raise InputError(f"{path}: needed a usable row, {why}; rows may be {KNOWN}")
        if len(refused) / total > max_refused:
            first, enough = "; ".join(map(str, refused[:3])), math.ceil(100 * len(refused) / total) / 100
            raise InputError(
                f"{path}: needed at most {max_refused:.2%} of rows refused, got {len(refused)} of {total} ({first}); "
                f"mend these rows, or go on without them: --max_refused {enough}"
            )

    def notes(self) -> tuple[str, ...]:
        """Lines for the user: the format, other readings of the file, columns without an effect."""
        layout, notes = self.fit.layout, [*self.values.notes]
        if self.values.format not in ("JSONL", "JSON array"):
            notes.append(f"read as {self.values.format}")
        if layout.other and self.wishes.kind is None:
            notes.append(f"read as {layout.kind} rows; {layout.other}")
        if len(self.kinds) > 1:
            notes.append("some lists of turns end with the user: all are prompts; --as sft learns the others")
        return (*notes, *self.columns.notes(self.kind))
