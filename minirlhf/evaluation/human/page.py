"""Answers of several models -> one HTML page that asks people which of two answers is better.

The page names no model. It holds the names in a key that a person cannot read at a glance; the browser copies the key
into the exported file, and `analysis.py` reads it.
"""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

from minirlhf.data.reading import open_values
from minirlhf.errors import InputError, shown
from minirlhf.foreign import SURROGATE

FORMAT = "minirlhf ratings 1"
TEMPLATE = Path(__file__).with_name("page.html")
ANSWER = ("completion", "response")  # keys of an answer
MOST_KEY = 1 << 26  # bytes of an unpacked key


@dataclass
class Answers:
    """The answers of one model in one file."""

    name: str
    texts: dict[tuple[str, int], str] = field(default_factory=dict)  # (prompt, its number among equals) -> answer
    seen: Counter[str] = field(default_factory=Counter)  # prompt -> number of answers
    categories: dict[str, str] = field(default_factory=dict)  # prompt -> category


@dataclass(frozen=True)
class Comparison:
    prompt: str
    models: tuple[int, int]  # places in the list of models; the first wrote answers[0]
    answers: tuple[str, str]
    category: str | None


@dataclass(frozen=True)
class Comparisons:
    models: list[str]
    rows: list[Comparison]
    identical: list[list[int]]  # [model, model, number of prompts with identical answers], which nobody rates
    notes: list[str]  # about prompts that are left out, for the user


def read_answers(paths: Sequence[str]) -> tuple[list[Answers], list[str]]:
    """-> (the answers of each model, a note for the user per file with keys that are not read).

    A row is {"prompt", "completion" or "response", "model"?, "category"?}. Without "model" the file is the model.
    Raises: InputError, with file and line, for a row without these texts.
    """
    found: dict[tuple[str, str | None], Answers] = {}
    notes = []
    for path in paths:
        unread: set[str] = set()
        for unit, number, value, *_ in open_values(path):
            at = f"{path}: {unit} {number}"
            row, key = _checked(at, value)
            model = row.get("model")
            answers = found.setdefault((path, model), Answers(path if model is None else model))
            answers.texts[row["prompt"], answers.seen[row["prompt"]]] = row[key]
            answers.seen[row["prompt"]] += 1
            if row.get("category") is not None:
                answers.categories.setdefault(row["prompt"], str(row["category"]))
            unread |= row.keys() - {"prompt", key, "model", "category"}
        if unread:
            notes.append(f"{path}: not read: {', '.join(shown(name)[1:-1] for name in sorted(unread))}")
    names = [answers.name for answers in found.values()]
    for (path, _), answers in found.items():
        if names.count(answers.name) > 1:
            answers.name = f"{answers.name} ({path})"
    return list(found.values()), notes


def _checked(at: str, row: Any) -> tuple[dict[str, Any], str]:
    """-> (the row, its key of the answer)."""
    if isinstance(row, InputError):
        raise InputError(f"{at}: {row}")
    needed = "needed prompt and completion (or response), each a text"
    if not isinstance(row, dict):
        raise InputError(f"{at}: {needed}, got {shown(row)}")
    keys = [key for key in ANSWER if key in row]
    if not isinstance(row.get("prompt"), str) or len(keys) != 1 or not isinstance(row[keys[0]], str):
        got = {key: row[key] for key in ("prompt", *keys) if key in row} or list(row)
        raise InputError(f"{at}: {needed}, got {shown(got)}")
    for key in ("model", "category"):
        if not isinstance(row.get(key), str | int | None) or (key == "model" and isinstance(row.get(key), int)):
            raise InputError(f"{at}: {key}: needed a text, got {shown(row[key])}")
    return row, keys[0]


def compare(answers: Sequence[Answers], *, seed: int = 0, max_rows: int | None = None) -> Comparisons:
    """Every pair of models on every prompt that both have, in a random order, each pair with random sides.

    max_rows: at most this many prompts, chosen at random.
    Raises: InputError if no pair is left.
    """
    if len(answers) < 2:
        raise InputError(f"eval human: needed the answers of at least two models, got {len(answers)}; give more files")
    places: dict[tuple[str, int], list[int]] = {}
    for place, model in enumerate(answers):
        for prompt in model.texts:
            places.setdefault(prompt, []).append(place)
    notes = []
    for place, model in enumerate(answers):
        if alone := [prompt for (prompt, _), found in places.items() if found == [place]]:
            notes.append(f"{model.name}: {_named(alone, 'left out, because no other model has an answer')}")
    rng = random.Random(seed)
    shared = [prompt for prompt, found in places.items() if len(found) > 1]
    if max_rows is not None and max_rows < len(shared):
        notes.append(f"{max_rows} of {len(shared)} prompts are taken, at random")
        shared = rng.sample(shared, max_rows)
    comparisons, identical = [], {}
    for prompt in shared:
        for pair in combinations(places[prompt], 2):
            texts = tuple(answers[place].texts[prompt] for place in pair)
            if texts[0] == texts[1]:
                identical.setdefault(pair, []).append(prompt[0])
                continue
            category = next((answers[place].categories.get(prompt[0]) for place in pair), None)
            order = rng.choice((1, -1))
            comparisons.append(Comparison(prompt[0], pair[::order], texts[::order], category))
    for pair, prompts in identical.items():
        names = " and ".join(answers[place].name for place in pair)
        notes.append(f"{names}: {_named(prompts, 'not shown, because the two answers are identical')}")
    if not comparisons:
        raise InputError(
            "eval human: needed prompts with different answers of two models, found none; the prompts of the files "
            "must be the same texts" + "".join(f"; {note}" for note in notes[:2])
        )
    rng.shuffle(comparisons)
    counts = [[*pair, len(prompts)] for pair, prompts in identical.items()]
    return Comparisons([model.name for model in answers], comparisons, counts, notes)


def page_of(found: Comparisons, question: str = "Which answer is better?") -> str:
    """The HTML page. Its data is JSON without any "<", so no text can end the script element that holds it."""
    key = pack_key(
        {
            "models": found.models,
            "pairs": [row.models for row in found.rows],
            "categories": [row.category for row in found.rows],
            "identical": found.identical,
        }
    )
    comparisons = [{"prompt": row.prompt, "answers": row.answers} for row in found.rows]
    page = sha256(_json([comparisons, key]).encode()).hexdigest()[:16]
    data = {"format": FORMAT, "page": page, "question": question, "key": key, "comparisons": comparisons}
    before, _, after = TEMPLATE.read_text(encoding="utf-8").partition("{{data}}")
    return before + _json(data).replace("<", "\\u003c") + after


def pack_key(key: dict[str, Any]) -> str:
    return base64.b64encode(zlib.compress(_json(key).encode(), 9)).decode()


def unpack_key(text: str) -> dict[str, Any]:
    """Raises: ValueError for a text that `pack_key` did not write."""
    worker = zlib.decompressobj()
    try:
        data = worker.decompress(base64.b64decode(text, validate=True), MOST_KEY)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not worker.eof:
        raise ValueError("the key is cut short or too large")
    return json.loads(data)


def _json(value: Any) -> str:
    """JSON. UTF-8 cannot write half a surrogate pair; a browser shows it as U+FFFD, so U+FFFD is written."""
    return SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _named(prompts: Iterable[str], why: str, most: int = 5) -> str:
    """ "7 prompts are left out ...: 'a', 'b' and 5 more"."""
    texts = [shown(prompt, 40) for prompt in prompts]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    count = "1 prompt is" if len(texts) == 1 else f"{len(texts)} prompts are"
    return f"{count} {why}: {', '.join(texts[:most])}{more}"
