"""Transcripts of episodes as training rows: the policy's turns are learned, the environment's texts are not.

{"prompt": "12+35=", "turns": [{"by": "policy", "text": "<calculator>12+35</calculator>"},
                               {"by": "environment", "text": "<result>47</result>"},
                               {"by": "policy", "text": "47"}]}

samples.jsonl of a run with an environment has such rows. A pair has two of these lists, as "chosen" and "rejected".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minirlhf.errors import InputError, shown

BY = ("policy", "environment")
ROLES = ("user", "tool")  # of an environment's text in a chat template


def transcript(turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """(by, text) of each turn -> the columns of a row."""
    parts = [{"by": by, "text": text} for by, text in turns]
    return {"response": text_of(parts), "response_parts": parts}


def is_transcript(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and "by" in turn for turn in value)


def parts_of(value: list[dict], key: str) -> list[dict]:
    """The turns up to the policy's last one.   Raises: InputError, with the number of the turn, for a bad turn."""
    for number, turn in enumerate(value, start=1):
        if turn["by"] not in BY or not isinstance(turn.get("text"), str) or turn.get("role", "user") not in ROLES:
            needed = 'by "policy" or "environment", a text, and the role user or tool if there is one'
            raise InputError(f"{key}: turn {number}: needed {needed}, got {shown(turn)}")
        if more := turn.keys() - {"by", "text", "role"}:
            raise InputError(f"{key}: turn {number}: needed by, text and role, got {shown(min(more))}; drop the key")
    last = max((i for i, turn in enumerate(value) if turn["by"] == "policy"), default=None)
    if last is None:
        raise InputError(f"{key}: needed a turn by the policy to learn, got {len(value)} turns without one")
    return value[: last + 1]


def text_of(parts: list[dict]) -> str:
    return "".join(part["text"] for part in parts)


def as_turns(parts: list[dict]) -> list[dict]:
    """The turns of a dialogue, for a chat template."""
    return [
        {"role": "assistant" if part["by"] == "policy" else part.get("role", "user"), "content": part["text"]}
        for part in parts
    ]


def encode_parts(tokenizer: Any, parts: list[dict]) -> tuple[list[int], list[bool]]:
    """Turns without a chat template -> (ids, True for each id that is learned). EOS follows the last turn.

    Each turn is encoded for itself, as the engine encodes the texts of an environment.
    """
    ids, learned = [], []
    for part in parts:
        found = tokenizer.encode(part["text"])
        ids += found
        learned += [part["by"] == "policy"] * len(found)
    return [*ids, tokenizer.eos_id], [*learned, True]
