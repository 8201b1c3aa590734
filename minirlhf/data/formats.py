"""Read a data file into rows of one shape, and name every row that cannot be used.

A file is JSONL or one JSON array, gzipped or not; its content decides, not its name. The rows of a `Dataset` are

    kind "sft"          {"prompt": str, "response": str, "line": int, ...}
    kind "preference"   {"prompt": str, "chosen": str, "rejected": str, "line": int, ...}
    kind "prompt"       {"prompt": str, "line": int, ...}

where "line" is the source line (in an array: the row number) from 1, and ... are all other keys of the source row, as
they came. A prompt may be empty, an answer may not. Prompts made from turns end with the plain chat layout's
`Assistant:`, and the row keeps the turns before the answer as "prompt_turns", for tokenizers with a chat template.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import StringIO
from itertools import chain

from minirlhf.errors import InputError
from minirlhf.text.chat import canonical_role, render_chat

MAX_BYTES = 1 << 28  # of one line or one array once unpacked: a small .gz can hold gigabytes
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell half a pair, UTF-8 and so the tokenizer cannot
TURNS = "prompt_turns"  # a key of ours
TEXT_KEYS = ("prompt", "messages", "conversations", "response", "chosen", "rejected")


@dataclass(frozen=True)
class Refusal:
    """A source row that was left out: where it stands, and why."""

    line: int
    reason: str
    unit: str = "line"  # "row" in an array, whose rows have no lines of their own

    def __str__(self) -> str:
        return f"{self.unit} {self.line}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """The rows of one file (see the top of this module) and what was refused."""

    path: str
    kind: str  # "sft", "preference" or "prompt"
    layout: str  # what the source rows looked like, in words
    rows: list[dict]
    refused: list[Refusal]

    def summary(self) -> str:
        """One line of counts, then one line for each refused row."""
        counts = f"{self.kind} rows from {self.layout}, {len(self.rows)} kept, {len(self.refused)} refused"
        return "\n".join(f"{self.path}: {line}" for line in [counts, *self.refused])


def read_rows(path: str | os.PathLike, *, max_refused: float = 0.01) -> Dataset:
    """Read, recognise, check and convert all rows of one file, whose layout is that of its first valid row.

    Args:
        path:        JSONL or a JSON array in UTF-8, plain or gzipped.
        max_refused: share of rows, 0 to 1, that may be refused.
    Returns: a Dataset with at least one row.
    Raises: InputError if the file cannot be read, no row is usable, or more than `max_refused` of the rows are refused.
    """
    path = os.fspath(path)
    if not 0 <= max_refused <= 1:
        raise InputError(f"max_refused: needed a share from 0 to 1, got {max_refused}; 0.01 is 1% of the rows")
    kind, layout, rows, refused = "", "", [], []
    for unit, number, source in _source_rows(path):
        try:
            row_kind, row_layout, row = _convert(source)
            if rows and row_layout != layout:
                raise InputError(f"this row is {row_layout}, but the file is {layout} since {unit} {rows[0]['line']}")
        except InputError as error:
            refused.append(Refusal(number, str(error), unit))
            continue
        kind, layout = row_kind, row_layout
        rows.append(row | {"line": number})

    total = len(rows) + len(refused)
    if total == 0:
        raise InputError(f"{path}: needed at least one row, got an empty file; write one JSON object per line")
    if not rows:
        known = ", ".join(map(_braces, LAYOUTS))
        raise InputError(f"{path}: needed a usable row, all {total} were refused ({refused[0]}); rows may be {known}")
    if len(refused) / total > max_refused:
        first, enough = "; ".join(map(str, refused[:3])), math.ceil(100 * len(refused) / total) / 100
        raise InputError(
            f"{path}: needed at most {max_refused:.2%} of rows refused, got {len(refused)} of {total} ({first}); "
            f"mend these rows, or go on without them: --max_refused {enough}"
        )
    return Dataset(path, kind, layout, rows, refused)


def _source_rows(path: str) -> Iterator[tuple[str, int, object]]:
    """Yield ("line" or "row", number, JSON value). A broken JSONL line comes as the InputError that names its fault."""
    lines = ((number, line) for number, line in _lines(path) if line.strip())
    first = next(lines, (0, ""))
    if first[1].lstrip().startswith("["):
        yield from (("row", number, value) for number, value in enumerate(_array(path, chain([first], lines)), start=1))
        return
    for number, line in chain([first] if first[0] else [], lines):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            value = InputError(f"broken JSON, {getattr(error, 'msg', error)}: {reprlib.repr(line.strip())}")
        yield "line", number, value


def _array(path: str, lines: Iterable[tuple[int, str]]) -> list:
    """The rows of a file that is one JSON array; a fault in it has no row to blame, so it stops the file."""
    text, last = StringIO(), 0
    for number, line in lines:
        text.write("\n" * (number - last - 1) + line)  # blank lines back in: the parser counts them
        last = number
        _check_size(path, number, text.tell())
    try:
        return json.loads(text.getvalue())
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
        got = f"a broken one after line {number} ({error})"
        raise InputError(f"{path}: needed a whole gzip file, got {got}; fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: needed a readable data file, got: {error.strerror}; check the path") from None


def _check_size(path: str, number: int, size: int) -> None:
    if size > MAX_BYTES:
        needed = f"needed lines or one array of at most {MAX_BYTES:,} bytes, got more"
        raise InputError(f"{path}: line {number}: {needed}; write JSONL, one row per line")


def _convert(source: object) -> tuple[str, str, dict]:
    """One JSON value -> (kind, layout in words, row). Every InputError from here on is the reason of a refusal."""
    if isinstance(source, InputError):
        raise source
    if not isinstance(source, dict):
        raise InputError(f"needed an object with named keys, got {_got(source)}")
    keys = tuple(key for key in TEXT_KEYS if source.get(key) is not None)
    if not keys:
        raise InputError(f"needed one of the keys {', '.join(TEXT_KEYS)}, got {', '.join(source) or 'none'}")
    if keys not in LAYOUTS:
        nearest = min(LAYOUTS, key=lambda layout: len(set(layout) ^ set(keys)))
        missing = [f"missing {key}" for key in nearest if key not in keys]
        unexpected = [f"unexpected {key}" for key in keys if key not in nearest]
        raise InputError(f"keys fit no layout; the nearest is {_braces(nearest)}: {', '.join(missing + unexpected)}")
    kind, convert = LAYOUTS[keys]
    texts = convert(source, keys)
    for key, text in texts.items():
        if key == TURNS:
            continue
        if key != "prompt" and not text.strip():
            raise InputError(f"{key}: empty response")
        if SURROGATE.search(text):
            raise InputError(f"{key}: needed Unicode text, got half of a surrogate pair")
    if kind == "preference" and texts["chosen"].strip() == texts["rejected"].strip():
        raise InputError("chosen and rejected are identical")
    if kind == "sft" and source.get("label") is False:
        # Rows of unpaired preferences look like SFT rows; imitating their bad half would train the opposite.
        raise InputError("label is false: an answer marked as bad is nothing to imitate")
    is_hh = keys == ("chosen", "rejected") and isinstance(source["chosen"], str)
    rest = {key: value for key, value in source.items() if key not in (*TEXT_KEYS, TURNS)}
    return kind, "HH-RLHF dialogues" if is_hh else _braces(keys), rest | texts


def _prompt(turns: list[dict]) -> dict:
    return {"prompt": render_chat(turns, add_generation_prompt=True), TURNS: turns}


def _answers_apart(row: dict, keys: tuple[str, ...]) -> dict:
    """The prompt, as text or turns, stands under the first key; each further key holds an answer."""
    dialogue, *answers = keys
    is_text = dialogue == "prompt" and isinstance(row["prompt"], str)
    prompt = {"prompt": row["prompt"]} if is_text else _prompt(_turns(row[dialogue], dialogue))
    return prompt | {key: _answer(row[key], key) for key in answers}


def _answer_last(row: dict, keys: tuple[str, ...]) -> dict:
    """One dialogue: the last assistant turn answers all that stands before it. Turns after it are not used."""
    turns = _turns(row[keys[0]], keys[0])
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise InputError(f"{keys[0]}: needed an assistant turn, got {len(turns)} turns without one")
    return {**_prompt(turns[:last]), "response": turns[last]["content"]}


def _answers_inside(row: dict, keys: tuple[str, ...]) -> dict:
    """Two whole dialogues, as text or turns, alike up to their answers.

    The prompt is the longest common run of turns that leaves each side at least one; the assistant turns that remain,
    mostly one, are the answer. So a side that only adds an assistant turn to the other is still a pair.
    """
    sides = [_hh_turns(row[key], key) if isinstance(row[key], str) else _turns(row[key], key) for key in keys]
    for key, turns in zip(keys, sides, strict=True):
        if not turns or turns[-1]["role"] != "assistant":
            came = f"a {turns[-1]['role']} turn" if turns else "no turns"
            raise InputError(f"{key}: needed an assistant turn at the end, got {came}")
    chosen, rejected = sides
    longest = min(len(chosen), len(rejected)) - 1
    common = next((place for place in range(longest) if chosen[place] != rejected[place]), longest)
    if any(turn["role"] != "assistant" for turn in chosen[common:] + rejected[common:]):
        raise InputError(f"prompts differ at turn {common + 1}")
    answers = {key: _answer(turns[common:], key) for key, turns in zip(keys, sides, strict=True)}
    return _prompt(chosen[:common]) | answers


LAYOUTS: dict[tuple[str, ...], tuple[str, Callable[[dict, tuple[str, ...]], dict]]] = {
    ("prompt", "response"): ("sft", _answers_apart),
    ("prompt", "chosen", "rejected"): ("preference", _answers_apart),
    ("prompt",): ("prompt", _answers_apart),
    ("messages",): ("sft", _answer_last),
    ("conversations",): ("sft", _answer_last),
    ("messages", "chosen", "rejected"): ("preference", _answers_apart),
    ("conversations", "chosen", "rejected"): ("preference", _answers_apart),
    ("chosen", "rejected"): ("preference", _answers_inside),
}


def _answer(value: object, key: str) -> str:
    """The text of a string, or of one or more assistant turns."""
    if isinstance(value, str):
        return value
    turns = _turns(value, key)
    for number, turn in enumerate(turns, start=1):
        if turn["role"] != "assistant":
            raise InputError(f"{key}: turn {number}: needed assistant turns beside a prompt, got a {turn['role']} turn")
    return "\n\n".join(turn["content"] for turn in turns if turn["content"].strip())


def _turns(value: object, key: str) -> list[dict]:
    """[{"role": "user" | "assistant" | "system", "content": str}, ...] from one or more messages in either spelling."""
    if not isinstance(value, dict | list):
        raise InputError(f"{key}: needed text or turns, got {_got(value)}")
    turns = []
    for number, message in enumerate([value] if isinstance(value, dict) else value, start=1):
        try:
            if not isinstance(message, dict):
                raise InputError(f"needed an object with role and content, got {_got(message)}")
            role = canonical_role(message.get("role", message.get("from")))
            turns.append({"role": role, "content": _content(message.get("content", message.get("value")))})
        except InputError as error:
            raise InputError(f"{key}: turn {number}: {error}") from None
    return turns


def _content(content: object) -> str:
    """A string as it is, or its parts {"type": "text", "text" | "value": ...} joined."""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        is_part = isinstance(content, list) and isinstance(part, dict) and part.get("type") == "text"
        texts.append(part.get("text", part.get("value")) if is_part else part)
        if not isinstance(texts[-1], str):
            raise InputError(f"needed text as content, got {_got(texts[-1])}")
    return "".join(texts)


def _hh_turns(text: str, key: str) -> list[dict]:
    """Turns of an HH-RLHF dialogue. Only a blank line before it makes a marker: "Human:" inside a turn is text."""
    head, *pieces = re.split(r"\n\n(Human|Assistant):", "\n\n" + text.lstrip())
    if head.strip() or not pieces:
        raise InputError(f"{key}: needed a dialogue that begins with '\\n\\nHuman:', or a prompt key; got {_got(text)}")
    pairs = zip(pieces[::2], pieces[1::2], strict=True)
    return [{"role": canonical_role(role.lower()), "content": content.strip()} for role, content in pairs]


def _got(value: object) -> str:
    return f"{type(value).__name__} {reprlib.repr(value)}" if value is not None else "null"


def _braces(keys: tuple[str, ...]) -> str:
    return "{" + ", ".join(keys) + "}"
