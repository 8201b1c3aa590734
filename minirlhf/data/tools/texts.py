"""Texts of any language: the question and the answers of a row, normalised texts, scripts, words and sentences."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from minirlhf.data.encoding import TURNS

ANSWERS = {  # kind of a row -> its answers
    "sft": ("response",),
    "preference": ("chosen", "rejected"),
    "unpaired": ("response",),
    "steps": ("response",),
    "prompt": (),
    "text": ("response",),
}
# One letter of these scripts counts as a word.
SINGLE = {
    "Chinese": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "Japanese": "\u3041-\u3096\u30a1-\u30fa\u31f0-\u31ff\uff66-\uff9d",  # kana; a text with kana is Japanese
    "Korean": "\uac00-\ud7af\u1100-\u11ff\u3131-\u318e",
}
# A run of letters of these scripts is a word.
RUNS = {
    "Latin": "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a",
    "Cyrillic": "\u0400-\u0481\u048a-\u052f",
    "Arabic": "\u0620-\u064a\u066e-\u06d3\u06fa-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Hebrew": "\u05d0-\u05ea",
    "Devanagari": "\u0900-\u0965\u0971-\u097f",
    "Thai": "\u0e01-\u0e4e",
}
SCRIPT = re.compile(
    "|".join([f"(?P<{name}>[{part}])" for name, part in SINGLE.items()])
    + "|"
    + "|".join([f"(?P<{name}>[{part}]+)" for name, part in RUNS.items()])
)
CLEAR = 0.7  # part of the words that a script needs; a text where no script has it is mixed
WORD = re.compile(f"[{''.join(SINGLE.values())}]|[^\\W{''.join(SINGLE.values())}]+")
SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")


def question(row: dict) -> str:
    """The text that asks: the last user turn of a dialogue, else the prompt."""
    asked = [turn["content"] for turn in row.get(TURNS, ()) if turn["role"] == "user"]
    return asked[-1] if asked else row["prompt"]


def answers(row: dict, kind: str) -> list[str]:
    if kind == "steps" and "response" not in row:
        return ["".join(row["steps"])]
    return [row[key] for key in ANSWERS[kind]]


def normalised(text: str) -> str:
    """The text without differences of case, width, spaces and final punctuation."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".!?。 ")


def script_of(text: str) -> str:
    """The script of at least 70% of the words, "mixed", or "no letters". Han letters beside kana are Japanese."""
    counts = Counter(found.lastgroup for found in SCRIPT.finditer(text))
    if counts["Japanese"] * 10 > counts["Chinese"]:
        counts["Japanese"] += counts.pop("Chinese", 0)
    if not counts.total():
        return "no letters"
    name, most = counts.most_common(1)[0]
    return name if most >= CLEAR * counts.total() else "mixed"


def words_of(text: str) -> list[str]:
    """Words for comparisons: in lower case, without punctuation. A Chinese, Japanese or Korean letter is a word."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def sentences_of(text: str) -> list[str]:
    return [sentence for sentence in SENTENCE.split(text) if sentence.strip()]
