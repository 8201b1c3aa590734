"""Rows of every layout, broken in random ways: each is kept whole, or refused or listed by name."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import re

import pytest

from minirlhf.data.formats import read_rows
from minirlhf.errors import InputError

# Each text is a word of its own, so the test can find it again. Its first letter says who speaks.


def said(role, text, **more):
    return {"role": role, "content": text, **more}


def human(text, **more):
    return {"from": "human", "value": text, **more}


def gpt(text, **more):
    return {"from": "gpt", "value": text, **more}


CALL = {"type": "function", "function": {"name": "look", "arguments": {"word": "u91x"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "s92x"}}]
MOSS = {
    "Human": "<|Human|>: u1x<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: a2x<eot>\n",
    "Commands": '<|Commands|>: Search("a3x")<eoc>\n',
    "Tool Responses": "<|Results|>: s4x<eor>\n",
    "MOSS": "<|MOSS|>: a5x<eom>\n",
}
ROWS = [
    {"prompt": "u1x", "response": "a2x"},
    {"prompt": "u1x", "completion": "a2x", "system": "s3x", "history": [["u4x", "a5x"]], "id": "n6x"},
    {"instruction": "u1x", "input": "u2x", "output": "a3x"},
    {"instruction": "u1x", "context": "u2x", "response": "a3x", "category": "n4x"},
    {"instruction": "u1x", "input": "u2x", "output": "n3x", "chosen": "a4x", "rejected": "r5x"},
    {"id": "n1x", "instruction": "u2x", "instances": [{"input": "u3x", "output": "a4x"}], "is_classification": False},
    {"question": "u1x", "std_answer": "n2x", "class": "n3x"},
    {"conversation_id": "n7x", "meta_instruction": "s8x", "num_turns": 1, "chat": {"turn_1": MOSS}},
    {"conversations": [{"from": "system", "value": "s1x"}, human("u2x"), gpt("a3x"), human("u4x"), gpt("a5x")]},
    {
        "messages": [
            said("user", [{"type": "text", "value": "u1x"}], loss_weight=0.0),
            said("assistant", "a2x", weight=1),
        ]
    },
    {
        "messages": [
            said("user", "u1x"),
            said("assistant", "a2x", weight=0),
            said("user", "u3x"),
            said("assistant", "a4x"),
        ]
    },
    {"messages": [said("user", "u1x"), said("assistant", "", tool_calls=[CALL]), said("tool", "s2x", name="look")]},
    {
        "conversations": [
            human("u1x"),
            {"from": "function_call", "value": '{"name": "look", "arguments": {"word": "a2x"}}'},
            {"from": "observation", "value": "s3x"},
            gpt("a4x"),
        ],
        "tools": json.dumps(TOOLS),
    },
    ["u1x", "a2x"],
    ["u1x", "a2x", "u3x"],
    [said("user", "u1x"), said("assistant", "a2x", reasoning_content="a3x")],
    {"conversation": [{"human": "u1x", "assistant": "a2x"}, {"human": "u3x", "assistant": "a4x"}]},
    {"chosen": "\n\nHuman: u1x\n\nAssistant: a2x", "rejected": "\n\nHuman: u1x\n\nAssistant: r3x"},
    {"prompt": "Human: u1x Assistant:", "chosen": "a2x"},
    {"prompt": "\n\nHuman: u1x\n\nAssistant: a2x\n\nHuman: u3x\n\nAssistant:", "response": "a4x"},
    {"prompt": "u1x", "chosen": "a2x", "rejected": "r3x", "margin": 0.5},
    {"prompt": "u1x", "chosen": [said("user", "u1x"), said("assistant", "a2x")], "rejected": "r3x"},
    {"conversations": [human("u1x")], "chosen": gpt("a2x"), "rejected": gpt("r3x")},
    {
        "chosen": [said("user", "u1x"), said("assistant", "a2x")],
        "rejected": [said("user", "u1x"), said("assistant", "r3x")],
    },
    {"question": "u1x", "answer1": "r2x", "answer2": "a3x", "preference": 2},
    {"prompt": "u1x", "response_0": "a2x", "response_1": "r3x", "better_response_id": 0},
    {"prompt": "u1x", "answers": ["r2x", "a3x"], "scores": [1.0, 2.0]},
    {"prompt": "u1x", "answers": ["a2x", "r3x"], "ranks": [1, 2]},
    {"instruction": "u1x", "completions": [{"text": "a2x", "score": 3}, {"text": "r3x", "score": 1}]},
    {"prompt": "u1x", "completion": "a2x", "label": True},
    {"messages": [said("user", "u1x"), said("assistant", "a2x")], "label": "bad"},
    {"instruction": "u1x", "input": "", "output": "a2x", "kto_tag": "thumbs_up"},
    {"prompt": "u1x", "completions": ["a2x", "a3x"], "labels": [True, False]},
    {"question": "u1x", "answer": "a2x\n#### 72"},
    {"problem": "u1x", "solution": "a2x", "answer": "n3x"},
    {"prompt": "u1x", "answer": 72},
    {"prompt": [said("user", "u1x")]},
    {"text": "a1x", "url": "n2x"},
]
NAMES = (
    "prompt instruction question query input output response completion chosen rejected answer text messages from "
    "conversations system history context tools label labels steps scores margin weight name id source role content "
    "value tool_calls reasoning_content loss_weight train"
)
ROLES = "user human User prompter assistant gpt bot chatgpt system tool observation function_call narrator"
VALUES = [
    *[None, "", " ", "n70x", "bad", "true", "n71x\n\nAssistant: n72x", 0, 1, -1, 2, 0.5, True, False, float("nan")],
    *[
        float("inf"),
        10**400,
        [],
        {},
        ["n73x"],
        [["n74x", "n75x"]],
        {"n76x": "n77x"},
        [None],
        "\ud800",
        "[",
        "{}",
        "[1]",
    ],
    *[said("user", "u78x"), [said("assistant", "a79x")], [said("user", "u80x"), said("assistant", "a81x")]],
]


def places(value, path=()):
    """The paths of all parts of a value."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def mutated(rng, row):
    """A copy of a row with one to three faults."""
    row = copy.deepcopy(row)
    for _ in range(rng.choice([1, 1, 2, 3])):
        *way, last = rng.choice([path for path in places(row) if path] or [(None,)])
        if last is None:
            return rng.choice(VALUES)
        parent = row
        for key in way:
            parent = parent[key]
        fault = rng.choice(["drop", "change", "rename", "double", "nest", "order", "role", "add"])
        if fault == "drop":
            del parent[last]
        elif fault == "change":
            parent[last] = copy.deepcopy(rng.choice(VALUES))
        elif fault == "nest":
            parent[last] = rng.choice(
                [[parent[last]], {"value": parent[last]}, {"role": "user", "content": parent[last]}]
            )
        elif fault == "double":
            index = {} if isinstance(parent, dict) else None
            if index is None:
                parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[last]))
            else:
                parent[rng.choice(NAMES.split())] = copy.deepcopy(parent[last])
        elif fault == "order" and isinstance(parent, list):
            rng.shuffle(parent)
        elif isinstance(parent, dict) and fault == "role":
            parent[rng.choice(["role", "from"])] = rng.choice(ROLES.split())
        elif isinstance(parent, dict) and fault == "rename":
            parent[rng.choice(NAMES.split())] = parent.pop(last)
        elif isinstance(parent, dict):
            parent[rng.choice(NAMES.split())] = copy.deepcopy(rng.choice(VALUES))
    return row


def leaves(value, keys=frozenset()):
    """(the keys that lead to it, text) of all texts of a value."""
    if isinstance(value, str):
        yield keys, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, keys | {name})
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, keys)


def words(text):
    """The words like u12x in a text."""
    return set(re.findall(r"[a-z]\d+x", text))


def speakers(value, found, speaker=None):
    """found: word -> those who say it, as the source has it: "user" or "assistant" or "rejected"."""
    if isinstance(value, str):
        for word in words(value):
            found.setdefault(word, set()).add(speaker)
    elif isinstance(value, list):
        for part in value:
            speakers(part, found, speaker)
    elif isinstance(value, dict):
        role = str(value.get("role", value.get("from"))).lower()
        role = "user" if role in ("user", "human", "prompter", "system", "tool", "observation") else role
        for name, part in value.items():
            speakers(part, found, role if role in ("user",) and name in ("content", "value") else speaker)


def check(source, dataset):
    """The oracle: no text is lost without a word, and nobody says the words of another."""
    texts = " ".join([dataset.summary(), *(text for _, text in leaves(list(dataset.rows)))])
    notes = " ".join(dataset.notes)
    named = {
        name for note in dataset.notes if note.startswith("not read: ") for name in note[10:].split(" (")[0].split(", ")
    }
    after = "go on after the last assistant turn" in notes
    for keys, text in leaves(source):
        lost = words(text) - words(texts)
        assert not lost or after or keys & named, f"{lost} of {source} are lost in {dataset}"
    said_by: dict = {}
    speakers(source, said_by)
    users = {word for word, who in said_by.items() if who == {"user"}}
    for row in dataset.rows:
        for key in ("response", "chosen", "rejected"):
            if dataset.kind != "prompt" and f"{key}_turns" not in row and isinstance(row.get(key), str):
                assert not words(row[key]) & users, f"{key} of {source} has words of the user in {row}"
        if dataset.kind in ("preference",) and isinstance(source, dict) and {"chosen", "rejected"} <= source.keys():
            mine, other = (set().union(*(words(t) for _, t in leaves(source[k]))) for k in ("chosen", "rejected"))
            assert not words(row["chosen"]) & (other - mine), f"{source} -> {row}"
        if dataset.kind == "unpaired":
            (label,) = [
                source[k] for k in ("label", "kto_tag") if isinstance(source, dict) and source.get(k) is not None
            ][:1]
            good = str(label).strip().lower().replace("_", " ") in ("true", "1", "1.0", "good", "thumbs up")
            assert row["label"] == good, f"{source} -> {row}"


def try_file(path, text, sources, units=("line", "row")):
    """Read a file. It is refused by name, or its rows are checked."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        dataset = read_rows(path, max_refused=1.0, pairs="all")
    except InputError as error:
        assert str(error).startswith(str(path)) and len(str(error)) < 2500
        return False
    for number, source in sources.items() if dataset.unit in units else ():
        if rows := [row for row in dataset.rows if row["line"] == number]:
            object.__setattr__(dataset, "rows", rows)
            check(source, dataset)
    return True


def mutate_rows(path, count, seed):
    rng, kept = random.Random(seed), 0
    for _ in range(count):
        row = mutated(rng, rng.choice(ROWS))
        kept += try_file(path, json.dumps([row]), {1: row})
    return kept


def test_mutated_rows_are_kept_whole_or_refused(tmp_path):
    kept = mutate_rows(tmp_path / "data.json", 500, 0)
    assert 100 < kept < 400  # both happen


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_mutated_rows(tmp_path, seed):
    mutate_rows(tmp_path / "data.json", 10_000, seed)


def test_rows_of_the_layouts_are_kept(tmp_path):
    for row in ROWS:
        assert try_file(tmp_path / "data.json", json.dumps([row]), {1: row}), row


def table(rows, delimiter=","):
    """The rows as CSV: what is no text is JSON in its cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    return text.getvalue()


CONTAINERS = {  # a file's form -> rows -> its text
    "jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "array": json.dumps,
    "array over lines": lambda rows: json.dumps(rows, indent=1),
    "objects over lines": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows),
    "under data": lambda rows: json.dumps({"version": 1, "data": rows}),
    "under data and train": lambda rows: json.dumps({"data": {"train": rows}, "n": len(rows)}, indent=1),
    "csv": table,
    "csv of Excel": lambda rows: "sep=;\n" + table(rows, ";"),
    "tsv": lambda rows: table(rows, "\t"),
}


def rows_in(text):
    """Number -> row of a text that is still JSON: an array, alone or as the only list of an object."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    while (
        isinstance(value, dict)
        and len(lists := [part for part in value.values() if isinstance(part, list | dict)]) == 1
    ):
        value = lists[0]
    return dict(enumerate(value, start=1)) if isinstance(value, list) else {}


def mutated_bytes(rng, text):
    text = bytearray(text.encode())
    for _ in range(rng.choice([1, 2, 5])):
        place = rng.randrange(len(text))
        fault = rng.choice(["cut", "drop", "put", "copy", "swap"])
        if fault == "cut":
            del text[place:]
            return bytes(text)
        if fault == "drop":
            del text[place : place + rng.choice([1, 1, 5, 50])]
        elif fault == "put":
            text[place:place] = rng.choice(
                [b'"', b"{", b"}", b"[", b",", b"\n", b"\x00", b"\xff", b"\\", b"null", b"\r\n"]
            )
        elif fault == "copy":
            text[place:place] = text[place : place + rng.choice([1, 10, 100])]
        else:
            text[place] = rng.randrange(256)
        if not text:
            break
    return bytes(text)


def mutate_files(path, count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        base, form = rng.choice([row for row in ROWS if isinstance(row, dict)]), rng.choice([*CONTAINERS])
        text = mutated_bytes(rng, CONTAINERS[form]([base] * rng.choice([1, 3, 10])))
        if form != "jsonl":
            try_file(path, text, rows_in(text), units=("row",))
            continue
        sources = {}
        for number, line in enumerate(text.split(b"\n"), start=1):
            try:
                sources[number] = json.loads(line)
            except ValueError:
                continue
        try_file(path, text, sources, units=("line",))  # rows of an array have other numbers


def test_mutated_files_are_read_or_refused(tmp_path):
    mutate_files(tmp_path / "data.jsonl", 150, 0)


@pytest.mark.slow
def test_many_mutated_files(tmp_path):
    mutate_files(tmp_path / "data.jsonl", 10_000, 1)
