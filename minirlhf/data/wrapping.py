"""Prompts that are plain text, beside a chat template: each is a user turn, unless asked otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minirlhf.data.batches import TURNS


class Wrapped(Sequence):
    """Rows whose prompts of plain text became turns."""

    def __init__(self, rows: Sequence[dict]) -> None:
        self.rows = rows

    @classmethod
    def of(cls, rows: Sequence[dict], tokenizer: Any, wrap: str) -> Sequence[dict]:
        """The rows as they are encoded."""
        return cls(rows) if wrap == "turns" and "default" in tokenizer.templates else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        return with_turns(row) if is_plain(row) else row


def is_plain(row: dict) -> bool:
    """True for a prompt of text. An empty prompt asks nothing: its row is raw text."""
    return row.get(TURNS) is None and row["prompt"].strip() != ""


def with_turns(row: dict) -> dict:
    return {**row, TURNS: [{"role": "user", "content": row["prompt"]}]}


class Wrapping:
    """Makes turns of plain prompts, and counts them."""

    def __init__(self, tokenizer: Any, wrap: str) -> None:
        self.applies, self.wrap = "default" in tokenizer.templates, wrap
        self.plain, self.special, self.example = 0, 0, ""
        added = tokenizer.backend.get_added_tokens_decoder().values()
        self.names = [token.content for token in added if token.special and len(token.content) > 3]

    def look(self, row: dict) -> dict:
        """The row as it is encoded."""
        if not self.applies or not is_plain(row):
            return row
        self.plain += 1
        if found := next((name for name in self.names if name in row["prompt"]), None):
            self.special, self.example = self.special + 1, self.example or found
        return with_turns(row) if self.wrap == "turns" else row

    def notes(self) -> list[str]:
        """Lines for the user."""
        if not self.plain:
            return []
        words = {
            "turns": "the chat template writes each as a user turn (--wrap plain leaves the text alone)",
            "plain": "they stay plain text beside the chat template (--wrap turns makes each a user turn)",
        }
        notes = [f"{self.plain:,} prompts are text: {words[self.wrap]}"]
        if self.special:
            special = f"{self.special:,} of them hold a special token such as {self.example}"
            notes.append(f"{special}, and it is read as plain text; write turns")
        return notes
