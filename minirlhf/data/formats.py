"""JSON values of a data file -> rows of one of three kinds, and a reason for each row that is left out.

The rows of a `Dataset` are

    kind "sft"          {"prompt": str, "response": str, "line": int, ...}
    kind "preference"   {"prompt": str, "chosen": str, "rejected": str, "line": int, ...}
    kind "prompt"       {"prompt": str, "line": int, ...}

"line" is the source line from 1 (in a JSON array: the row number), and ... are all other keys of the source row,
unchanged; columns.py says which of them are refused. A prompt may be empty, an answer may not. A prompt made from turns
ends with the plain chat layout's `Assistant:`, and its row keeps the turns as "prompt_turns" for tokenizers with a chat
template.

`LAYOUTS` lists the ways to write a row. A new layout is a new row of that table.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from minirlhf.data.columns import Columns, names_of
from minirlhf.data.encoding import TURNS, first_three
from minirlhf.data.reading import read_values
from minirlhf.data.rows import with_type
from minirlhf.errors import InputError
from minirlhf.foreign import SURROGATE
from minirlhf.text.chat import canonical_role, render_chat


@dataclass(frozen=True)
class Refusal:
    """A source row that was left out, and why."""

    line: int
    reason: str
    unit: str = "line"  # or "row", see `Source`

    def __str__(self) -> str:
        return f"{self.unit} {self.line}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """The rows of a file (see the top of this module) and the refused rows."""

    path: str
    kind: str  # "sft", "preference" or "prompt"
    layout: str  # the keys of the source rows, in words
    rows: list[dict]
    refused: list[Refusal]
    notes: tuple[str, ...] = ()  # columns and turns that nothing reads
    unit: str = "line"  # what the "line" of a row counts: lines, or rows of an array

    def summary(self) -> str:
        """A line of counts, the notes, and the first three refused rows."""
        counts = f"{self.kind} rows from {self.layout}, {len(self.rows)} kept, {len(self.refused)} refused"
        return "\n".join(f"{self.path}: {line}" for line in [counts, *self.notes, *first_three(self.refused)])


def read_rows(path: str | os.PathLike, *, max_refused: float = 0.01, ignore_columns: tuple[str, ...] = ()) -> Dataset:
    """Read, check and convert all rows of a file. The first valid row decides the layout of all rows.

    Args:
        path:           JSONL or a JSON array in UTF-8, plain or gzipped.
        max_refused:    fraction of the rows, 0 to 1, that may be refused.
        ignore_columns: columns and keys of turns to leave unused, although they have a meaning; see columns.py.
    Returns: a Dataset with at least one row.
    Raises: InputError if the file cannot be read, no row is usable, more than `max_refused` of the rows are refused, or
        a column has a meaning that nothing uses.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"read_rows: needed the path of a file, got {_got(path)}; rows in memory need no reading")
    path = os.fspath(path)
    if not 0 <= max_refused <= 1:
        raise InputError(f"max_refused: needed a fraction from 0 to 1, got {max_refused}; 0.01 is 1% of the rows")
    layout, rows, refused, columns, unit = None, [], [], Columns(), "line"
    for unit, number, value in read_values(path):
        try:
            row_layout, row = _convert(value, columns, f"{unit} {number}")
            if rows and row_layout != layout:
                since = f"{unit} {rows[0]['line']}"
                raise InputError(f"this row is {row_layout.name}, but the file is {layout.name} since {since}")
        except InputError as error:
            refused.append(Refusal(number, str(error), unit))
            continue
        layout = row_layout
        rows.append(row | {"line": number})

    columns.check(path, ignore_columns)
    total = len(rows) + len(refused)
    if total == 0:
        raise InputError(f"{path}: needed at least one row, got an empty file; write one JSON object per line")
    if not rows:
        known = ", ".join(dict.fromkeys(_braces(layout.keys) for layout in LAYOUTS))
        raise InputError(f"{path}: needed a usable row, all {total} were refused ({refused[0]}); rows may be {known}")
    if len(refused) / total > max_refused:
        first, enough = "; ".join(map(str, refused[:3])), math.ceil(100 * len(refused) / total) / 100
        raise InputError(
            f"{path}: needed at most {max_refused:.2%} of rows refused, got {len(refused)} of {total} ({first}); "
            f"mend these rows, or go on without them: --max_refused {enough}"
        )
    return Dataset(path, layout.kind, layout.name, rows, refused, tuple(columns.notes(layout.kind)), unit)


def _convert(source: object, columns: Columns, where: str) -> tuple[Layout, dict]:
    """A JSON value -> (its layout, its row).   Raises: InputError with the reason why the row is refused."""
    if isinstance(source, InputError):
        raise source
    if not isinstance(source, dict):
        raise InputError(f"needed an object with named keys, got {_got(source)}")
    layout = _layout_of(source)
    columns.look(source, layout.keys, layout.kind, where)
    texts = layout.convert(source, layout.keys)
    for key, text in texts.items():
        if key == TURNS:
            continue
        if key != "prompt" and not text.strip():
            raise InputError(f"{key}: empty response")
        if SURROGATE.search(text):
            raise InputError(f"{key}: needed Unicode text, got half of a surrogate pair")
    if layout.kind == "preference" and texts["chosen"].strip() == texts["rejected"].strip():
        raise InputError("chosen and rejected are identical")
    margin = source.get("margin")
    if margin is not None and not (type(margin) in (int, float) and abs(margin) <= sys.float_info.max):
        raise InputError(f"margin: needed a finite number, got {_got(margin)}")
    unread = (*TEXT_KEYS, TURNS, *(("margin",) if margin is None else ()))
    rest = {key: value for key, value in source.items() if key not in unread}
    return layout, rest | texts


def _layout_of(source: dict) -> Layout:
    """The row of `LAYOUTS` with the source's keys; a key whose value is null counts as missing."""
    keys = tuple(key for key in TEXT_KEYS if source.get(key) is not None)
    if not keys:
        raise InputError(f"needed one of the keys {', '.join(TEXT_KEYS)}, got {names_of(source) or 'none'}")
    for layout in LAYOUTS:
        if keys == layout.keys and layout.applies(source):
            return layout
    nearest = min(LAYOUTS, key=lambda layout: len(set(layout.keys) ^ set(keys))).keys
    missing = [f"missing {key}" for key in nearest if key not in keys]
    unexpected = [f"unexpected {key}" for key in keys if key not in nearest]
    raise InputError(f"keys fit no layout; the nearest is {_braces(nearest)}: {', '.join(missing + unexpected)}")


def _prompt(turns: list[dict]) -> dict:
    return {"prompt": render_chat(turns, add_generation_prompt=True), TURNS: turns}


def _answers_apart(row: dict, keys: tuple[str, ...]) -> dict:
    """The first key holds the prompt, as text or turns. Each further key holds an answer."""
    first, *answers = keys
    is_text = first == "prompt" and isinstance(row["prompt"], str)
    prompt = {"prompt": row["prompt"]} if is_text else _prompt(_turns(row[first], first))
    return prompt | {key: _answer(row[key], key) for key in answers}


def _answer_last(row: dict, keys: tuple[str, ...]) -> dict:
    """One dialogue. The last assistant turn answers all turns before it. Turns after it are not used."""
    turns = _turns(row[keys[0]], keys[0])
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise InputError(f"{keys[0]}: needed an assistant turn, got {len(turns)} turns without one")
    return {**_prompt(turns[:last]), "response": turns[last]["content"]}


def _answers_inside(row: dict, keys: tuple[str, ...]) -> dict:
    """Two whole dialogues, as text or turns, that differ in their answers.

    The prompt is the longest common beginning that leaves each side at least one turn. The assistant turns that remain
    (nearly always a single turn) are the answer. So two sides form a pair even if one side only adds an assistant turn.
    """
    sides = [_hh_turns(row[key], key) if isinstance(row[key], str) else _turns(row[key], key) for key in keys]
    for key, turns in zip(keys, sides, strict=True):
        if not turns or turns[-1]["role"] != "assistant":
            came = f"a {turns[-1]['role']} turn" if turns else "no turns"
            raise InputError(f"{key}: needed an assistant turn at the end, got {came}")
    chosen, rejected = sides
    longest = min(len(chosen), len(rejected)) - 1
    common = next((index for index in range(longest) if chosen[index] != rejected[index]), longest)
    if any(turn["role"] != "assistant" for turn in chosen[common:] + rejected[common:]):
        raise InputError(f"prompts differ at turn {common + 1}")
    answers = {key: _answer(turns[common:], key) for key, turns in zip(keys, sides, strict=True)}
    return _prompt(chosen[:common]) | answers


class Layout(NamedTuple):
    """A way to write a row: its keys, and a function that makes a prompt and answers of their values."""

    keys: tuple[str, ...]  # of `TEXT_KEYS`, in their order
    kind: str  # "sft", "preference" or "prompt"
    convert: Callable[[dict, tuple[str, ...]], dict]  # (source row, keys) -> {"prompt": str, ...}
    words: str = ""  # a name to print instead of the keys
    applies: Callable[[dict], bool] = lambda source: True  # tells layouts with the same keys apart

    @property
    def name(self) -> str:
        return self.words or _braces(self.keys)


def _has_dialogue_texts(row: dict) -> bool:
    return isinstance(row["chosen"], str)


TEXT_KEYS = ("prompt", "messages", "conversations", "response", "chosen", "rejected")
LAYOUTS = (  # the first row that fits is taken
    Layout(("prompt", "response"), "sft", _answers_apart),
    Layout(("prompt", "chosen", "rejected"), "preference", _answers_apart),
    Layout(("prompt",), "prompt", _answers_apart),
    Layout(("messages",), "sft", _answer_last),
    Layout(("conversations",), "sft", _answer_last),
    Layout(("messages", "chosen", "rejected"), "preference", _answers_apart),
    Layout(("conversations", "chosen", "rejected"), "preference", _answers_apart),
    Layout(("chosen", "rejected"), "preference", _answers_inside, "HH-RLHF dialogues", _has_dialogue_texts),
    Layout(("chosen", "rejected"), "preference", _answers_inside),
)


def _answer(value: object, key: str) -> str:
    """An answer's text, from a string or from one or more assistant turns."""
    if isinstance(value, str):
        return value
    turns = _turns(value, key)
    for number, turn in enumerate(turns, start=1):
        if turn["role"] != "assistant":
            raise InputError(f"{key}: turn {number}: needed assistant turns beside a prompt, got a {turn['role']} turn")
    return "\n\n".join(turn["content"] for turn in turns if turn["content"].strip())


def _turns(value: object, key: str) -> list[dict]:
    """A message or a list of messages -> [{"role": "user" | "assistant" | "system", "content": str}, ...]."""
    if not isinstance(value, dict | list):
        raise InputError(f"{key}: needed text or turns, got {_got(value)}")
    turns = []
    for number, message in enumerate([value] if isinstance(value, dict) else value, start=1):
        try:
            if not isinstance(message, dict):
                raise InputError(f"needed an object with role and content, got {_got(message)}")
            role, content = _either(message, "role", "from"), _either(message, "content", "value")
            turns.append({"role": canonical_role(role), "content": _content(content)})
        except InputError as error:
            raise InputError(f"{key}: turn {number}: {error}") from None
    return turns


def _either(message: dict, key: str, other: str) -> object:
    """The value of a key or of its other name."""
    value, second = message.get(key), message.get(other)
    if value is not None and second is not None and value != second:
        raise InputError(f"needed {key} or {other}, got both: {_got(value)} and {_got(second)}")
    return second if value is None else value


def _content(content: object) -> str:
    """A string unchanged, or parts {"type": "text", "text" | "value": ...} joined."""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        is_part = isinstance(content, list) and isinstance(part, dict) and part.get("type") == "text"
        texts.append(_either(part, "text", "value") if is_part else part)
        if not isinstance(texts[-1], str):
            raise InputError(f"needed text as content, got {_got(texts[-1])}")
    return "".join(texts)


def _hh_turns(text: str, key: str) -> list[dict]:
    """Turns of an HH-RLHF dialogue. "Human:" begins a turn only after a blank line; elsewhere it is text."""
    head, *pieces = re.split(r"\n\n(Human|Assistant):", "\n\n" + text.lstrip())
    if head.strip() or not pieces:
        raise InputError(f"{key}: needed a dialogue that begins with '\\n\\nHuman:', or a prompt key; got {_got(text)}")
    pairs = zip(pieces[::2], pieces[1::2], strict=True)
    return [{"role": canonical_role(role.lower()), "content": content.strip()} for role, content in pairs]


def _got(value: object) -> str:
    return "null" if value is None else with_type(value)


def _braces(keys: tuple[str, ...]) -> str:
    return "{" + ", ".join(keys) + "}"
