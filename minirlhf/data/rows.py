"""The rows that a caller passes are checked once, before they are read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from minirlhf.data.columns import names_of
from minirlhf.errors import InputError, shown
from minirlhf.foreign import SURROGATE


def listed(who: str, rows: object, keys: Iterable[str]) -> list[dict]:
    """The rows as a list of dicts.

    keys: each row has a text under these names.

    An object with a length and an index (a map-style Dataset of torch) is read by index: its end is its length, because
    its index may raise nothing beyond it.
    """
    check_sized(who, rows, '[{"prompt": text, ...}, ...]')
    found = list(rows) if isinstance(rows, Collection) else [rows[i] for i in range(len(rows))]
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            got = with_type(row)
            raise InputError(f"{who}: row {number}: needed a dict with texts, got {got}; convert the rows first")
        for key in keys:
            if not isinstance(row.get(key), str):
                got = with_type(row[key]) if key in row else f"only {names_of(map(str, row)) or 'an empty dict'}"
                raise InputError(f"{who}: row {number}: needed text under {key!r}, got {got}; convert the rows first")
            if SURROGATE.search(row[key]):
                raise InputError(f"{who}: row {number}: {key}: needed Unicode text, got half of a surrogate pair")
    return found


def check_encoded(who: str, rows: object, kind: type) -> None:
    """Raise InputError unless these are rows of ids, each of them a `kind`."""
    needed = "the rows of encode_rows(...).rows"
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        check_sized(who, rows, needed)
        raise InputError(f"{who}: needed {needed}, got {article(rows)}; write [rows[i] for i in range(len(rows))]")
    for row in rows:
        if not isinstance(row, kind):
            raise InputError(f"{who}: needed {needed}, got {with_type(row)} in them; call encode_rows first")


def check_sized(who: str, rows: object, needed: str = "a list of rows") -> None:
    """Raise InputError unless the rows have a length and an index or an order."""
    kind, advice = article(rows), ""
    if "DataLoader" in {base.__name__ for base in type(rows).__mro__}:
        advice = "it makes batches of its own; give its dataset"
    elif isinstance(rows, str | bytes | Mapping) or rows is None or isinstance(rows, int | float):
        kind, advice = with_type(rows), "put the rows into a list"
    elif isinstance(rows, Iterator):
        advice = "it can be read only once, and its length is unknown; write list(rows)"
    elif not hasattr(rows, "__len__"):
        advice = "it has no length; write a list of its rows"
    elif not (hasattr(rows, "__getitem__") or isinstance(rows, Collection)):
        advice = "it has no index; write a list of its rows"
    elif type(rows).__name__ == "DataFrame":
        advice = 'its index is a column; write rows.to_dict("records")'
    if advice:
        raise InputError(f"{who}: needed {needed}, got {kind}; {advice}")


def article(value: object) -> str:
    """A value's type, for a message: "a generator"."""
    return f"{'an' if type(value).__name__[0].lower() in 'aeiou' else 'a'} {type(value).__name__}"


def with_type(value: object) -> str:
    """A value with its type, for a message."""
    return "None" if value is None else f"{type(value).__name__} {shown(value)}"
