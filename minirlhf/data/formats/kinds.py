"""Rows of a kind as rows of another kind, when the user asks for it: `--as sft`."""

from __future__ import annotations

from minirlhf.errors import InputError
from minirlhf.nearest import nearest

KINDS = {"sft": "sft", "preference": "preference", "unpaired": "unpaired", "prompts": "prompt", "steps": "steps"}
KINDS |= {"text": "text"}  # the names of --as -> the kinds of a Dataset


def kind_of(name: str | None) -> str | None:
    if name is not None and name not in KINDS:
        hint = nearest(name, KINDS) if isinstance(name, str) else ""
        raise InputError(f"as_kind: needed one of {', '.join(KINDS)}, got {name!r}{hint}")
    return None if name is None else KINDS[name]


def _unchanged(row: dict) -> list[dict]:
    """As prompts, rows keep their answers for reward functions."""
    return [row]


def _learn(row: dict, key: str) -> dict:
    turns = {"response_turns": row[f"{key}_turns"]} if f"{key}_turns" in row else {}
    return {**row, "response": row[key], **turns}


def _chosen(row: dict) -> list[dict]:
    return [_learn(row, "chosen")]


def _both(row: dict) -> list[dict]:
    return [{**_learn(row, key), "label": key == "chosen"} for key in ("chosen", "rejected")]


def _if_good(row: dict) -> list[dict]:
    return [row] if row["label"] else []


def _text_as_prompt(row: dict) -> list[dict]:
    return [{**row, "prompt": row["response"]}]


def _prompt_as_text(row: dict) -> list[dict]:
    return [{**row, "prompt": "", "response": row["prompt"]}]


CONVERSIONS = {  # (kind of the layout, kind that the user wants)
    ("preference", "sft"): _chosen,
    ("preference", "unpaired"): _both,
    ("unpaired", "sft"): _if_good,
    ("preference", "prompt"): _unchanged,
    ("unpaired", "prompt"): _unchanged,
    ("steps", "prompt"): _unchanged,
    ("sft", "prompt"): _unchanged,
    ("text", "prompt"): _text_as_prompt,
    ("text", "sft"): _unchanged,
    ("prompt", "text"): _prompt_as_text,
}
