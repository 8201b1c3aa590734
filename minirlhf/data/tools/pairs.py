"""Preference pairs from SFT rows: the row's answer is chosen, a damaged or foreign answer is rejected.

A reward model of such pairs learns fluency and fit, not taste. Mix them with pairs of people or of a judge.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from minirlhf.data.tools.texts import SENTENCE, WORD, normalised, question
from minirlhf.errors import InputError, shown

FAULTS_EVERY = 8  # words for each fault of a corrupted answer
PIECES = re.compile(rf"{WORD.pattern}|\s+|.", re.DOTALL)  # words, spaces and marks; joined they are the text again


def corrupted(text: str, rng: random.Random, others: Sequence[str]) -> str | None:
    """Words lost, doubled or moved to their neighbour: one fault for every eight words, at least one."""
    pieces = PIECES.findall(text)
    words = [i for i, piece in enumerate(pieces) if WORD.fullmatch(piece)]
    if len(words) < 2:
        return None
    for k in sorted(rng.sample(range(len(words) - 1), max(1, len(words) // FAULTS_EVERY)), reverse=True):
        here, after = words[k], words[k + 1]
        match rng.randrange(3):
            case 0:
                del pieces[here:after]
            case 1:
                pieces[here:here] = pieces[here:after]
            case 2:
                pieces[here], pieces[after] = pieces[after], pieces[here]
    return "".join(pieces)


def truncated(text: str, rng: random.Random, others: Sequence[str]) -> str | None:
    """The first 20% to 80% of the words."""
    pieces = PIECES.findall(text)
    words = [i for i, piece in enumerate(pieces) if WORD.fullmatch(piece)]
    if len(words) < 3:
        return None
    keep = min(len(words) - 1, max(1, round(len(words) * rng.uniform(0.2, 0.8))))
    return "".join(pieces[: words[keep]]).rstrip()


def shuffled(text: str, rng: random.Random, others: Sequence[str]) -> str | None:
    """The sentences in another order."""
    cuts = [0, *(found.end() for found in SENTENCE.finditer(text) if 0 < found.end() < len(text)), len(text)]
    parts = [text[start:end].strip() for start, end in zip(cuts, cuts[1:], strict=False)]
    order = [part for part in parts if part]
    if len(set(order)) < 2:
        return None
    before, between = list(order), " " if re.search(r"[.!?]\s", text) else ""
    while order == before:
        rng.shuffle(order)
    return ("\n" if "\n" in text else between).join(order)


def other(text: str, rng: random.Random, others: Sequence[str]) -> str | None:
    """The answer to another prompt."""
    return rng.choice(others) if others else None


DAMAGES: dict[str, Callable[[str, random.Random, Sequence[str]], str | None]] = {
    "corrupted": corrupted,
    "truncated": truncated,
    "shuffled": shuffled,
    "other": other,
}


def pairs_of(rows: Sequence[dict], damages: Sequence[str], seed: int) -> tuple[list[dict], int]:
    """(preference rows with a column `damage`, number of pairs that could not be made).

    Each row gets a pair for each damage. A damage that leaves an answer as it was makes no pair.
    """
    if unknown := [name for name in damages if name not in DAMAGES] or (not damages and ["none"]):
        raise InputError(f"--damages: needed some of {', '.join(DAMAGES)}, got {shown(unknown[0])}")
    found, left_out = [], 0
    asked = [normalised(question(row)) for row in rows]
    for i, row in enumerate(rows):
        for name in damages:
            rng = random.Random(f"pairs {seed} {i} {name}")
            others = _others(rows, asked, i, rng) if name == "other" else ()
            worse = DAMAGES[name](row["response"], rng, others)
            if (
                "response_turns" in row
                or worse is None
                or not worse.strip()
                or worse.strip() == row["response"].strip()
            ):
                left_out += 1
                continue
            kept = {key: value for key, value in row.items() if key != "response"}
            found.append({**kept, "chosen": row["response"], "rejected": worse, "damage": name})
    return found, left_out


def _others(rows: Sequence[dict], asked: Sequence[str], i: int, rng: random.Random) -> list[str]:
    """An answer to another question, drawn at random; none if twenty draws find none."""
    for _ in range(20):
        k = rng.randrange(len(rows))
        if asked[k] != asked[i] and rows[k]["response"].strip() != rows[i]["response"].strip():
            return [rows[k]["response"]]
    return []


def judged(row: dict, samples: Sequence[str], scores: Sequence[float]) -> dict | None:
    """The better and the worse of two samples, and the gap of their scores. None if scores or texts are equal."""
    (worse, low), (better, high) = sorted(zip(samples, scores, strict=True), key=lambda pair: pair[1])
    if low == high or better.strip() == worse.strip() or not better.strip() or not worse.strip():
        return None
    kept = {key: value for key, value in row.items() if key not in ("response", "response_turns")}
    return {**kept, "chosen": better, "rejected": worse, "gap": high - low}
