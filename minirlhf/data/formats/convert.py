"""A JSON value -> its layout and its canonical rows, or the reason why it is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from minirlhf.data.columns import PLACES, has_meaning, is_empty, names_of
from minirlhf.data.encoding import TURNS
from minirlhf.data.formats.converters import LIST
from minirlhf.data.formats.kinds import CONVERSIONS
from minirlhf.data.formats.layouts import LAYOUTS, Layout, filling
from minirlhf.data.formats.row import Row
from minirlhf.data.formats.turns import got
from minirlhf.errors import InputError
from minirlhf.foreign import SURROGATE
from minirlhf.nearest import nearest

ANSWERS = ("response", "chosen", "rejected")
OURS = ("prompt", "messages", "conversations", *ANSWERS, "tools", TURNS, *(f"{name}_turns" for name in ANSWERS))
OPTIONAL = ("system", "history", "input", "context", "tools", "margin")  # columns that are read beside a layout's
NUMBERS = re.compile(r"margin|(.*_)?(score|rating|reward)(_.*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Wishes:
    """The user's wishes about reading; see `read_rows`."""

    kind: str | None
    renamed: dict[str, str]  # column -> its new name
    ignored: tuple[str, ...]
    every_pair: bool


class Fit(NamedTuple):
    """A layout, and the column that fills each of its slots."""

    layout: Layout
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.layout.words or braces(self.keys)

    def goes_with(self, other: Fit) -> bool:
        """True if both may stand in one file. Lists of turns may end with the user or with the assistant."""
        return self == other or self.keys == other.keys == (LIST,)


def renamed_columns(columns_map: Mapping[str, str]) -> dict[str, str]:
    """{"prompt": "ask"} -> {"ask": "prompt"}."""
    known = [*dict.fromkeys(name for layout in LAYOUTS for slot in layout.slots for name in filling(slot)), *OPTIONAL]
    for name in columns_map:
        if name not in known:
            raise InputError(f"map: needed a name that a layout reads, got {name!r}{nearest(str(name), known)}")
    renamed = {column: name for name, column in columns_map.items()}
    if len(renamed) < len(columns_map):
        raise InputError("map: needed a column for each name, got a column for two names; name each column once")
    return renamed


def convert(value: object, wishes: Wishes, of_table: bool) -> tuple[Fit, Row, list[dict]]:
    """A value -> (its layout, the row after reading, its canonical rows).

    of_table: the value is a record of a table; its cells are text, numbers too.
    Raises: InputError with the reason why the row is refused.
    """
    if isinstance(value, InputError):
        raise value
    if isinstance(value, list) and value:
        value = {LIST: value}
    if not isinstance(value, dict):
        raise InputError(f"needed an object with named keys, got {got(value)}")
    columns = _with_names(value, wishes.renamed)
    row = Row(with_numbers(columns) if of_table else columns, wishes.ignored, wishes.every_pair)
    fit, change = _fit_of(row, wishes.kind)
    found = fit.layout.convert(row, fit.keys)
    found = found if isinstance(found, list) else [found]
    found = [new for old in found for new in change(old)] if change else found
    for texts in found:
        _check(texts)
    rest = {name: value for name, value in columns.items() if name not in (*row.read, *OURS, *PLACES)}
    rest = {name: value for name, value in rest.items() if not is_empty(value) or not _is_ours(name)}
    return fit, row, [rest | texts for texts in found]


def _is_ours(name: str) -> bool:
    return name == "margin" or has_meaning(name)


def _with_names(columns: dict, renamed: dict[str, str]) -> dict:
    """The columns of a row under the names of `columns_map`."""
    if twice := [new for old, new in renamed.items() if old in columns and new in columns and new not in renamed]:
        raise InputError(f"map: {twice[0]} is a column too; give it another name, or map that one")
    return {renamed.get(name, name): value for name, value in columns.items()}


def with_numbers(columns: dict) -> dict:
    """The cells of a table, with numbers where numbers belong. An empty cell of such a column is absent."""
    columns = dict(columns)
    for name in filter(NUMBERS.fullmatch, columns):
        columns[name] = columns[name] or None
        with suppress(ValueError, TypeError):
            columns[name] = float(columns[name])
    return columns


def _fit_of(row: Row, kind: str | None) -> tuple[Fit, Callable[[dict], list[dict]] | None]:
    """(the layout of a row, a change to the kind that the user wants)."""
    fits = _fits(row)
    natural = next(fits, None)
    if natural is None:
        raise InputError(_no_layout(row))
    if kind in (None, natural.layout.kind):
        return natural, None
    if change := CONVERSIONS.get((natural.layout.kind, kind)):
        return natural, change
    if other := next((fit for fit in fits if fit.layout.kind == kind), None):
        return other, None
    raise InputError(f"as_kind: needed a row that holds {kind}, got {natural.name}")


def _fits(row: Row) -> Iterator[Fit]:
    for layout in LAYOUTS:
        if keys := layout.keys(row):
            yield Fit(layout, keys)


def _no_layout(row: Row) -> str:
    near = max(LAYOUTS, key=lambda layout: _likeness(layout, row))
    if _likeness(near, row)[0] <= 0:
        names = "prompt, messages, conversations, response, chosen, rejected, instruction, question, text"
        lists = [name for name, value in row.columns.items() if isinstance(value, list) and value]
        lists = [name for name in lists if isinstance(row.columns[name][0], dict)]
        advice = f"; if {names_of(lists)} holds the rows, write this list alone into the file" if lists else ""
        got = names_of(row.columns) or "none"
        return f"needed one of the keys {names}, got {got}; or name the keys with --map{advice}"
    slots = [filling(slot) for slot in near.slots]
    missing = [f"missing {slot[0]}" for slot in slots if not any(name in row.columns for name in slot)]
    return f"keys fit no layout; the nearest is {braces(slot[0] for slot in slots)}: {', '.join(missing)}"


def _likeness(layout: Layout, row: Row) -> tuple[int, int]:
    """(is any slot filled, minus the number of empty slots); a layout that does not apply is unlike."""
    filled = sum(any(name in row.columns for name in filling(slot)) for slot in layout.slots)
    return int(0 < filled < len(layout.slots)), filled - len(layout.slots)


def _check(texts: dict) -> None:
    """Raise InputError for an answer without text, for two equal answers, or for texts that are no Unicode."""
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


def braces(names: Iterable[str]) -> str:
    return "{" + ", ".join(names) + "}"
