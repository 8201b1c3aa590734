"""Canonical rows -> JSON values in a layout that other tools read. A row that a layout cannot hold is refused."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from minirlhf.data.encoding import TURNS
from minirlhf.data.formats import Dataset, read_rows
from minirlhf.data.tools.manifest import Made, as_line
from minirlhf.data.tools.sources import origin
from minirlhf.errors import InputError

ANSWER_TURNS = {"response": "response_turns", "chosen": "chosen_turns", "rejected": "rejected_turns"}
OWN = ("prompt", TURNS, *ANSWER_TURNS, *ANSWER_TURNS.values(), "tools", "label", "steps", "labels", "margin", "line",
       "file")  # fmt: skip
KINDS = {"prompts": "prompt"}  # names of layouts that are not the name of a kind
FROM = {"user": "human", "assistant": "gpt", "system": "system"}  # role -> its name in ShareGPT files


def convert_rows(
    dataset: Dataset, rows: Sequence[dict], layout: str, kind: str = "", ignored: Sequence[str] = ()
) -> tuple[list[Made], list[str]]:
    """-> (the values for the rows, a reason for each row that is left out).

    The values are read back: a value that would be read as another kind of row, or not at all, is left out.

    Args:
        rows: of the dataset, or made from its rows.   kind: of these rows, by default the dataset's.
        ignored: columns to leave out.
    """
    kind, made, refused = kind or dataset.kind, [], []
    for row in rows:
        try:
            values = converted(row, kind, layout, ignored)
            made += [Made(value, *origin(dataset, row)) for value in values]
        except InputError as error:
            refused.append((row["line"], str(error)))
    lost = unreadable([row.value for row in made], wanted_kind(kind, layout), layout)
    refused += [(made[i].line, reason) for i, reason in lost.items()]
    kept = [row for i, row in enumerate(made) if i not in lost]
    return kept, [f"{dataset.unit} {line}: {reason}" for line, reason in refused]


def unreadable(values: Sequence[dict], kind: str, layout: str) -> dict[int, str]:
    """Position -> reason, for values that a reader of the new file would not take as rows of this kind."""
    if not values:
        return {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        path.write_text(csv_text(values) if layout == "csv" else "".join(map(as_line, values)), encoding="utf-8")
        try:
            found = read_rows(path, max_refused=1.0)
        except InputError as error:
            return dict.fromkeys(range(len(values)), str(error).removeprefix(f"{path}: "))
    if found.kind != kind:
        return dict.fromkeys(range(len(values)), f"the new row would be read as {found.kind}, because of its columns")
    lines = sorted({row["line"] for row in found.rows} | {refusal.line for refusal in found.refused})
    at = {line: i for i, line in enumerate(lines)}  # a row of CSV may have several lines
    return {at[refusal.line]: f"the new row could not be read: {refusal.reason}" for refusal in found.refused}


def converted(row: dict, kind: str, layout: str, ignored: Sequence[str] = ()) -> list[dict]:
    """The values for one row; two for a pair as unpaired rows.   Raises: InputError with the reason of a refusal."""
    values, wanted = [], wanted_kind(kind, layout)
    if layout in WRITERS and (kind == "steps" or (kind == "text" and layout != "csv")):
        raise InputError(f"a row of the kind {kind} has no place in this layout; choose --layout {kind}")
    for changed in as_kind(row, kind, wanted):
        value = WRITERS.get(layout, canonical)(changed, wanted)
        others = {key: entry for key, entry in row.items() if key not in (*OWN, *ignored)}
        if clash := sorted(others.keys() & value.keys()):
            raise InputError(f"its column {clash[0]} has the name of a key of the layout {layout}; rename the column")
        values.append({**value, **others})
    return values


def layout_of(kind: str) -> str:
    """The name of a kind as a layout."""
    return "prompts" if kind == "prompt" else kind


def wanted_kind(kind: str, layout: str) -> str:
    """The kind of rows in the new file."""
    return kind if layout in WRITERS else KINDS.get(layout, layout)


def left_out(rows: Sequence[dict], kind: str, layout: str) -> list[str]:
    """The parts of rows that another kind of row has no place for: `rejected` if pairs become sft rows."""
    kept = {"prompt": "prompt", **dict.fromkeys(CANONICAL[wanted_kind(kind, layout)])}
    replaced = {"chosen", "rejected"} if "label" in kept else {"chosen"} if "response" in kept else set()
    replaced |= {"steps", "labels"} if "response" in kept else set()
    parts = ("response", "chosen", "rejected", "margin", "label", "steps", "labels")
    return [name for name in parts if name not in {*kept} | replaced and any(name in row for row in rows)]


def as_kind(row: dict, kind: str, wanted: str) -> list[dict]:
    """The row as rows of another kind."""
    if kind == wanted:
        return [row]
    if wanted == "prompt":
        return [{key: row[key] for key in ("prompt", TURNS, "tools") if key in row}]
    if kind == "preference" and wanted in ("sft", "unpaired"):
        answers = [_with_answer(row, key, label) for key, label in (("chosen", True), ("rejected", False))]
        return answers if wanted == "unpaired" else [answers[0]]
    if kind == "unpaired" and wanted == "sft":
        if not row["label"]:
            raise InputError("its label is false, so the answer is no example to learn")
        return [row]
    if kind == "steps" and wanted == "sft":
        if not all(row["labels"]):
            raise InputError("a label of its steps is false, so the answer is no example to learn")
        return [{**row, "response": "".join(row["steps"])}]
    raise InputError(f"{kind} rows cannot become {wanted} rows")


def _with_answer(row: dict, key: str, label: bool) -> dict:
    answer = {"response": row[key], "label": label}
    return {**row, **answer, **({"response_turns": row[ANSWER_TURNS[key]]} if ANSWER_TURNS[key] in row else {})}


def canonical(row: dict, kind: str) -> dict:
    """The layout of a kind: texts, and turns where the row has turns."""
    tools = {"tools": row["tools"]} if "tools" in row else {}
    if kind == "text":
        return {"text": row["response"]}
    value = {"prompt": row.get(TURNS, row["prompt"])}
    for key in CANONICAL[kind]:
        if key in row:
            value[key] = row.get(ANSWER_TURNS.get(key), row[key])
    return value | tools


def as_messages(row: dict, kind: str) -> dict:
    turns, tools = _asking(row), {"tools": row["tools"]} if "tools" in row else {}
    if kind == "preference":
        margin = {"margin": row["margin"]} if "margin" in row else {}
        pair = {key: answer if len(answer := _answer(row, key)) > 1 else answer[0] for key in ("chosen", "rejected")}
        return {"messages": turns} | pair | margin | tools
    label = {"label": row["label"]} if kind == "unpaired" else {}
    answer = [] if kind == "prompt" else _answer(row, "response")
    return {"messages": [*turns, *answer], **label, **tools}


def as_sharegpt(row: dict, kind: str) -> dict:
    """As messages, with `from` and `value`."""
    value = as_messages(row, kind)
    value["conversations"] = [_named(turn) for turn in value.pop("messages")]
    for key in ("chosen", "rejected"):
        if key in value:
            if isinstance(value[key], list):
                raise InputError(f"its {key} answer has several turns, and this layout holds a single turn")
            value[key] = _named(value[key])
    return value


def as_alpaca(row: dict, kind: str) -> dict:
    """instruction, input, output; system and history if the row is a dialogue."""
    turns, value = _asking(row), {}
    if turns and turns[0]["role"] == "system":
        value["system"] = turns[0]["content"]
        turns = turns[1:]
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise InputError(f"its turns are {', '.join(roles)}; this layout holds user and assistant in turn, user last")
    texts = [_text(turn) for turn in turns]
    if len(texts) > 1:
        value["history"] = [list(pair) for pair in zip(texts[:-1:2], texts[1::2], strict=True)]
    names = {"response": "output", "chosen": "chosen", "rejected": "rejected"}
    answers = {names[key]: _only_text(row, key) for key in CANONICAL[kind] if key in names}
    more = {key: row[key] for key in ("label", "margin") if key in row}
    return {"instruction": texts[-1], "input": "", **answers, **value, **more, **_no_tools(row)}


def as_table(row: dict, kind: str) -> dict:
    """Texts alone, for CSV."""
    if TURNS in row:
        raise InputError("it has turns, and a cell of CSV holds a text; convert it to messages")
    if kind == "text":
        return {"text": row["response"]}
    texts = {key: _only_text(row, key) for key in CANONICAL[kind] if key in ANSWER_TURNS}
    more = {key: row[key] for key in ("label", "margin") if key in row}
    return {"prompt": row["prompt"], **texts, **more, **_no_tools(row)}


def csv_text(values: Sequence[dict]) -> str:
    """CSV with a header. Its columns are those of all rows; a missing value is empty."""
    names = list(dict.fromkeys(name for value in values for name in value))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for value in values:
        if nested := [name for name, cell in value.items() if isinstance(cell, dict | list)]:
            raise InputError(f"csv: column {nested[0]} holds lists or objects, and a cell holds a text")
        writer.writerow({name: str(cell).lower() if isinstance(cell, bool) else cell for name, cell in value.items()})
    return text.getvalue()


def _asking(row: dict) -> list[dict]:
    """The turns before the answer. A prompt that is text is a user turn."""
    return row.get(TURNS) or ([{"role": "user", "content": row["prompt"]}] if row["prompt"] else [])


def _answer(row: dict, key: str) -> list[dict]:
    return row.get(ANSWER_TURNS[key]) or [{"role": "assistant", "content": row[key]}]


def _only_text(row: dict, key: str) -> str:
    if ANSWER_TURNS[key] in row:
        raise InputError(f"its {key} answer has turns with more than text; convert it to messages")
    return row[key]


def _text(turn: dict) -> str:
    if more := sorted(turn.keys() - {"role", "content"}):
        raise InputError(f"a turn has {more[0]}, and this layout holds text alone; convert it to messages")
    return turn["content"]


def _no_tools(row: dict) -> dict:
    if "tools" in row:
        raise InputError("it has tools, and this layout has none; convert it to messages")
    return {}


def _named(turn: dict) -> dict:
    if turn["role"] not in FROM:
        raise InputError(f"it has a {turn['role']} turn, and this layout is written without tools; convert to messages")
    return {"from": FROM[turn["role"]], "value": _text(turn)}


# kind -> keys beside the prompt
CANONICAL = {
    "sft": ("response",),
    "preference": ("chosen", "rejected", "margin"),
    "unpaired": ("response", "label"),
    "steps": ("steps", "labels"),
    "prompt": (),
    "text": (),
}
WRITERS: dict[str, Callable[[dict, str], dict]] = {
    "messages": as_messages,
    "sharegpt": as_sharegpt,
    "alpaca": as_alpaca,
    "csv": as_table,
}
LAYOUTS = ("sft", "preference", "unpaired", "steps", "prompts", "text", *WRITERS)
