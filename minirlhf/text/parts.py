"""The parts of a tokenizer. `Tokenizer.train` makes them, or checkpoint_tokenizer/ reads them from a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import tokenizers


class Template(Protocol):
    """A chat template."""

    source: str  # Jinja
    marks_answers: bool  # has {% generation %} blocks

    def render(
        self,
        messages: list[dict],
        add_generation_prompt: bool = False,
        tools: list[dict] | None = None,
        variables: dict | None = None,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Turns -> their text, and the (start, end) of each {% generation %} block in it."""


@dataclass(frozen=True)
class TokenizerParts:
    """All that a `Tokenizer` needs, and all that it writes into its folder."""

    backend: tokenizers.Tokenizer
    config: dict  # tokenizer_config.json without the templates
    special: dict[str, str]  # {"bos_token": "<s>", ...}: the special tokens by the names that templates read
    pad: str | None  # the padding token; None if the vocabulary has no free special token
    eos_ids: tuple[int, ...]  # the tokenizer's own end token first
    templates: dict[str, Template] = field(default_factory=dict)  # by name; "default" is the usual one
    files: dict[str, str] = field(default_factory=dict)  # texts of other files in the folder, by name
    answer_end: Any = None  # how the default template ends an answer: an `AnswerEnd`, or None if a trial failed
    notes: tuple[str, ...] = ()  # lines about the folder that a program should print
