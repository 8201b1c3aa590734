"""Checks of rows, batches and prompts that a caller passes. They run once, before other code reads the values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from numbers import Integral

from minirlhf.data.columns import names_of
from minirlhf.errors import InputError, shown
from minirlhf.foreign import SURROGATE
from minirlhf.runtime.distributed import world_size


def first_three(refused: Sequence) -> list[str]:
    """The first three refused rows, and the number of the others."""
    more = [f"and {len(refused) - 3:,} more refused"] if len(refused) > 3 else []
    return [*map(str, refused[:3]), *more]


def indexed(who: str, rows: object) -> Sequence[dict]:
    """The rows with a length and an index. An object with both (a map-style Dataset of torch) is kept: its end is its
    length, because its index may raise nothing beyond it.
    """
    check_sized(who, rows, '[{"prompt": text, ...}, ...]')
    return rows if hasattr(rows, "__getitem__") else list(rows)


def check_row(who: str, number: int, row: object, keys: Iterable[str]) -> None:
    """Raise InputError unless the row is a dict with texts under these keys."""
    if not isinstance(row, dict):
        got = with_type(row)
        raise InputError(f"{who}: row {number}: needed a dict with texts, got {got}; convert the rows first")
    for key in keys:
        if not isinstance(row.get(key), str):
            got = with_type(row[key]) if key in row else f"only {names_of(map(str, row)) or 'an empty dict'}"
            raise InputError(f"{who}: row {number}: needed text under {key!r}, got {got}; convert the rows first")
        if SURROGATE.search(row[key]):
            raise InputError(f"{who}: row {number}: {key}: needed Unicode text, got half of a surrogate pair")


def check_batch(batch: object, kind: type, row_kind: type, answers: int) -> None:
    """Raise InputError unless this is a list of draws (`kind`) of rows of ids with so many answers."""
    wrong = [draw for draw in batch if not isinstance(draw, kind)] if isinstance(batch, Sequence) else [batch]
    if wrong or (not batch and world_size() == 1):  # one of several processes may have no row
        came = article(wrong[0]) if wrong else "no row"
        raise InputError(f"step: needed a batch of Batches(rows, ...), got {came}; see docs/runs.md")
    check_encoded("step", [draw.row for draw in batch], row_kind, answers)


def check_encoded(who: str, rows: object, kind: type, answers: int = 0) -> None:
    """Raise InputError unless these are rows of ids, each of them a `kind` with so many answers or more."""
    needed = "the rows of encode_rows(...).rows"
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        check_sized(who, rows, needed)
        raise InputError(f"{who}: needed {needed}, got {article(rows)}; write [rows[i] for i in range(len(rows))]")
    if wrong := [row for row in rows if not isinstance(row, kind)]:
        raise InputError(f"{who}: needed {needed}, got {with_type(wrong[0])} in them; call encode_rows first")
    if fewer := next((row for row in rows if len(row.responses) < answers), None):
        raise InputError(
            f"{who}: needed rows with a number of answers of at least {answers}, got {len(fewer.responses)}; name the "
            "answers in encode_rows"
        )


def check_prompts(who: str, prompts: object, vocabulary: int, context: int) -> None:
    """Raise InputError unless these are lists of ids that the model knows, each with room for a token after it."""
    check_sized(who, prompts, "a list of prompts")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, list | tuple):
            advice = "write prompt.tolist()" if hasattr(prompt, "tolist") else "use tokenizer.encode_prompts(texts)"
            raise InputError(f"{who}: needed lists of ids, got {with_type(prompt)} as prompt {i}; {advice}")
        if not prompt:
            raise InputError(f"{who}: prompt {i} is empty; tokenizer.encode_prompts(texts) gives each a token")
        if wrong := [token for token in prompt if not isinstance(token, Integral)]:
            came = f"{with_type(wrong[0])} in prompt {i}"
            raise InputError(f"{who}: needed lists of ids, got {came}; use tokenizer.encode_prompts(texts)")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise InputError(
                f"{who}: prompt {i} has ids up to {max(prompt)}, the model's vocabulary holds {vocabulary}; is it "
                "another model's tokenizer?"
            )
        if len(prompt) >= context:
            raise InputError(
                f"{who}: the {len(prompt)} tokens of prompt {i} leave no room in the context of {context}; shorten it"
            )


def check_sized(who: str, rows: object, needed: str = "a list of rows", order: type = Collection) -> None:
    """Raise InputError unless the rows have a length, and an index or the type `order`."""
    kind, advice = article(rows), ""
    if "DataLoader" in {base.__name__ for base in type(rows).__mro__}:
        advice = "it makes batches of its own; give its dataset"
    elif isinstance(rows, str | bytes | Mapping) or rows is None or isinstance(rows, int | float):
        kind, advice = with_type(rows), "put the rows into a list"
    elif isinstance(rows, Iterator):
        advice = "it can be read only once, and its length is unknown; write list(rows)"
    elif not hasattr(rows, "__len__"):
        advice = "it has no length; write a list of its rows"
    elif not (hasattr(rows, "__getitem__") or isinstance(rows, order)):
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
