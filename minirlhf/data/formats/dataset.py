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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minirlhf.data.columns import Columns, has_meaning, names_of
from minirlhf.data.encoding import TURNS, first_three
from minirlhf.data.formats.kinds import CONVERSIONS, kind_of
from minirlhf.data.formats.layouts import LAYOUTS, LIST, Layout
from minirlhf.data.formats.row import Row
from minirlhf.data.formats.turns import got
from minirlhf.data.reading import read_values
from minirlhf.errors import InputError
from minirlhf.foreign import SURROGATE
from minirlhf.nearest import nearest

ANSWERS = ("response", "chosen", "rejected")
OURS = ("prompt", "messages", "conversations", *ANSWERS, "tools", TURNS, *(f"{name}_turns" for name in ANSWERS))
OPTIONAL = ("system", "history", "input", "context", "tools", "margin")


@dataclass(frozen=True)
class Refusal:
    """A source row that was left out, and why."""

    line: int
    reason: str
    unit: str = "line"  # or "row", see `Source`
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

    def summary(self) -> str:
        """A line of counts, the notes, and the first three refused rows."""
        counts = f"{self.kind} rows from {self.layout}, {len(self.rows)} kept, {len(self.refused)} refused"
        return "\n".join(f"{self.path}: {line}" for line in [counts, *self.notes, *first_three(self.refused)])


@dataclass(frozen=True)
class Wishes:
    """The user's wishes about reading; see `read_rows`."""

    kind: str | None
    renamed: dict[str, str]  # column -> its new name
    ignored: tuple[str, ...]
    every_pair: bool


def read_rows(
    source: str | os.PathLike,
    *,
    max_refused: float = 0.01,
    ignore_columns: tuple[str, ...] = (),
    columns_map: Mapping[str, str] | None = None,
    as_kind: str | None = None,
    encoding: str | None = None,
    max_rows: int | None = None,
    pairs: str = "best_worst",
) -> Dataset:
    """Read, check and convert all rows of a file. The first valid row decides the layout of all rows.

    Args:
        source:         see `reading`.   encoding: of its text; None recognises UTF-8 and UTF-16.
        max_refused:    fraction of the rows, 0 to 1, that may be refused.
        ignore_columns: columns and keys of turns to leave unused, although they have a meaning; see columns.py.
        columns_map:    {"prompt": "ask"} reads the column `ask` as `prompt`.
        as_kind:        the kind of rows to make, a name of `KINDS`; None lets the layout decide.
        max_rows:       read no more rows than this.
        pairs:          of several answers with scores: "best_worst" makes a pair of two of them, "all" every pair.
    Returns: a Dataset with at least one row.
    Raises: InputError if the file cannot be read, no row is usable, more than `max_refused` of the rows are refused, or
        a column has a meaning that nothing uses.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"read_rows: needed the path of a file, got {got(source)}; rows in memory need no reading")
    path = os.fspath(source)
    if not 0 <= max_refused <= 1:
        raise InputError(f"max_refused: needed a fraction from 0 to 1, got {max_refused}; 0.01 is 1% of the rows")
    if pairs not in ("best_worst", "all"):
        raise InputError(f"pairs: needed best_worst or all, got {pairs!r}")
    wishes = Wishes(kind_of(as_kind), _renamed(columns_map or {}), tuple(ignore_columns), pairs == "all")
    first, kinds, rows, refused, columns, unit = None, set(), [], [], Columns(), "line"
    read = 0
    for unit, number, value in read_values(path):
        if max_rows is not None and read >= max_rows:
            break
        try:
            fit, found = _convert(value, columns, f"{unit} {number}", wishes)
            if first is not None and fit != first[0] and not _are_lists(fit, first[0]):
                raise InputError(f"this row is {_name(fit)}, but the file is {_name(first[0])} since {first[1]}")
        except InputError as error:
            refused.append(Refusal(number, str(error), unit))
            continue
        first = first or (fit, f"{unit} {number}")
        kinds.add(wishes.kind or fit[0].kind)
        read += 1
        columns.bad += not found
        rows.extend(row | {"line": number} for row in found)
    columns.check(path, wishes.ignored, list(wishes.renamed))
    _check_counts(path, rows, refused, read, max_refused)
    layout = first[0][0]
    notes = columns.notes(layout.kind)
    if layout.other and wishes.kind is None:
        notes = [f"read as {layout.kind} rows; {layout.other}", *notes]
    if len(kinds) > 1:
        notes.append("some lists of turns end with the user: all are prompts; --as sft learns the others")
    kind = "prompt" if len(kinds) > 1 else kinds.pop()
    more = [name for name in columns.used if name not in (*first[0][1], "margin")]
    layout = _name(first[0]) + (f" with {names_of(more)}" if more else "")
    return Dataset(path, kind, layout, rows, refused, tuple(notes), unit)


def _check_counts(path: str, rows: list, refused: list[Refusal], read: int, max_refused: float) -> None:
    total = read + len(refused)
    if total == 0:
        raise InputError(f"{path}: needed at least one row, got an empty file; write one JSON object per line")
    if not rows:
        known = ", ".join(dict.fromkeys(_braces(slot.split("|")[0] for slot in layout.slots) for layout in LAYOUTS))
        why = f"all {total} were refused ({refused[0]})" if refused else "no label is good"
        raise InputError(f"{path}: needed a usable row, {why}; rows may be {known}")
    if len(refused) / total > max_refused:
        first, enough = "; ".join(map(str, refused[:3])), math.ceil(100 * len(refused) / total) / 100
        raise InputError(
            f"{path}: needed at most {max_refused:.2%} of rows refused, got {len(refused)} of {total} ({first}); "
            f"mend these rows, or go on without them: --max_refused {enough}"
        )


def _renamed(columns_map: Mapping[str, str]) -> dict[str, str]:
    """{"prompt": "ask"} -> {"ask": "prompt"}."""
    known = [*dict.fromkeys(name for layout in LAYOUTS for slot in layout.slots for name in slot.split("|")), *OPTIONAL]
    for name in columns_map:
        if name not in known:
            raise InputError(f"map: needed a name that a layout reads, got {name!r}{nearest(str(name), known)}")
    renamed = {column: name for name, column in columns_map.items()}
    if len(renamed) < len(columns_map):
        raise InputError("map: needed a column for each name, got a column for two names; name each column once")
    return renamed


def _convert(source: object, columns: Columns, where: str, wishes: Wishes) -> tuple[tuple, list[dict]]:
    """A JSON value -> ((its layout, the columns of the layout), its canonical rows).

    Raises: InputError with the reason why the row is refused.
    """
    if isinstance(source, InputError):
        raise source
    if isinstance(source, list) and source:
        source = {LIST: source}
    if not isinstance(source, dict):
        raise InputError(f"needed an object with named keys, got {got(source)}")
    columns.names |= dict.fromkeys(source)
    source = _with_names(source, wishes.renamed)
    row = Row(source, wishes.ignored, wishes.every_pair)
    layout, keys, change = _layout_of(row, wishes.kind)
    found = layout.convert(row, keys)
    found = found if isinstance(found, list) else [found]
    found = [new for old in found for new in (change(old) if change else [old])]
    for texts in found:
        _check(texts)
    columns.look(row, layout, wishes.kind, found, where)
    rest = {key: value for key, value in source.items() if key not in row.read and key not in OURS}
    rest = {key: value for key, value in rest.items() if value is not None or not (has_meaning(key) or key == "margin")}
    return (layout, keys), [rest | texts for texts in found]


def _with_names(source: dict, renamed: dict[str, str]) -> dict:
    """The columns of a row under the names of `columns_map`."""
    if twice := [new for old, new in renamed.items() if old in source and new in source and new not in renamed]:
        raise InputError(f"map: {twice[0]} is a column too; give it another name, or map that one")
    return {renamed.get(name, name): value for name, value in source.items()}


def _layout_of(row: Row, kind: str | None) -> tuple[Layout, tuple[str, ...], object]:
    """(the layout of a row, the columns that fill it, a change to the kind that the user wants or None)."""
    fits = [(layout, keys) for layout in LAYOUTS if (keys := layout.keys(row)) is not None]
    if not fits:
        raise InputError(_no_layout(row))
    natural, keys = fits[0]
    if kind in (None, natural.kind):
        return natural, keys, None
    if change := CONVERSIONS.get((natural.kind, kind)):
        return natural, keys, change
    if other := next((fit for fit in fits if fit[0].kind == kind), None):
        return *other, None
    raise InputError(f"as_kind: needed a row that holds {kind}, got {_name((natural, keys))}")


def _no_layout(row: Row) -> str:
    near = max(LAYOUTS, key=lambda layout: _likeness(layout, row))
    if _likeness(near, row)[0] <= 0:
        names = "prompt, messages, conversations, response, chosen, rejected, instruction, question, text"
        return f"needed one of the keys {names}, got {names_of(row.columns) or 'none'}; or name the keys with --map"
    slots = [slot.split("|") for slot in near.slots]
    missing = [f"missing {slot[0]}" for slot in slots if not any(name in row.columns for name in slot)]
    return f"keys fit no layout; the nearest is {_braces(slot[0] for slot in slots)}: {', '.join(missing)}"


def _likeness(layout: Layout, row: Row) -> tuple[int, int]:
    filled = sum(any(name in row.columns for name in slot.split("|")) for slot in layout.slots)
    return (filled if filled < len(layout.slots) else 0), -len(layout.slots)


def _check(texts: dict) -> None:
    """Raise InputError for an answer without text, or for texts that are no Unicode."""
    for key in ANSWERS:
        if key in texts and not texts[key].strip():
            raise InputError(f"{key}: empty response")
    for key, value in texts.items():
        if any(map(SURROGATE.search, _texts(value))):
            raise InputError(f"{key}: needed Unicode text, got half of a surrogate pair")
    if "rejected" in texts and texts["chosen"].strip() == texts["rejected"].strip():
        raise InputError("chosen and rejected are identical")


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in parts for text in _texts(part)]


def _are_lists(fit: tuple, other: tuple) -> bool:
    """Lists of turns may end with the user or with the assistant in one file."""
    return fit[1] == other[1] == (LIST,)


def _name(fit: tuple) -> str:
    layout, keys = fit
    return layout.words or _braces(keys)


def _braces(keys) -> str:
    return "{" + ", ".join(keys) + "}"
