"""More prompts for the same answers, by small changes that keep the meaning. Answers are never changed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from minirlhf.data.encoding import TURNS
from minirlhf.data.tools.texts import question
from minirlhf.errors import InputError, shown
from minirlhf.text.chat import render_chat

LONG_WORD = re.compile(
    r"(?<![^\W_])[A-Za-z\u00c0-\u024f\u0400-\u052f]{5,}(?![^\W_])"
)  # no digits: numbers mean something
WIDE = str.maketrans("，。！？；：（）", ",.!?;:()")


def typo(text: str, rng: random.Random) -> str:
    """Two neighbouring inner letters of a word change places. Words under five letters stay."""
    words = list(LONG_WORD.finditer(text))
    if not words:
        return text
    at = rng.choice(words)
    i = rng.randrange(at.start() + 1, at.end() - 2)
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def case(text: str, rng: random.Random) -> str:
    """The first letter becomes small."""
    return text[:1].lower() + text[1:]


def ending(text: str, rng: random.Random) -> str:
    """The mark at the end is left out."""
    return text.rstrip().rstrip(".?!。？！") or text


def width(text: str, rng: random.Random) -> str:
    """Chinese marks become their ASCII forms."""
    return text.translate(WIDE)


CHANGES: dict[str, Callable[[str, random.Random], str]] = {
    "typo": typo,
    "case": case,
    "ending": ending,
    "width": width,
}


def augmented(rows: Sequence[dict], changes: Sequence[str], seed: int) -> list[dict]:
    """New rows with a column `change`: for each row and change, the row with another prompt, if it became another.

    Only the last user turn of a dialogue is changed. A prompt with code (three backticks) is left alone.
    """
    if unknown := [name for name in changes if name not in CHANGES] or (not changes and ["none"]):
        raise InputError(f"--changes: needed some of {', '.join(CHANGES)}, got {shown(unknown[0])}")
    found = []
    for i, row in enumerate(rows):
        if TURNS in row and not any(turn["role"] == "user" for turn in row[TURNS]):
            continue
        old = question(row)
        for name in changes:
            new = CHANGES[name](old, random.Random(f"augment {seed} {i} {name}"))
            if new != old and new.strip() and "```" not in old:
                found.append({**row, **_asking(row, new), "change": name})
    return found


def _asking(row: dict, text: str) -> dict:
    """The prompt with another last user turn."""
    if TURNS not in row:
        return {"prompt": text}
    turns = list(row[TURNS])
    last = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
    turns[last] = {**turns[last], "content": text}
    return {"prompt": render_chat(turns, add_generation_prompt=True), TURNS: turns}
