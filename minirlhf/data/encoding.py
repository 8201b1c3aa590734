"""Rows of text -> rows of ids, once, before training. Rows that do not fit are counted and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minirlhf.data.batches import TURNS as TURNS
from minirlhf.data.batches import EncodedRow
from minirlhf.errors import InputError, shown
from minirlhf.text.tokenizer import Tokenizer

TrainOn = Literal["last", "all_turns", "all"]  # SFT learns the last answer, every assistant turn, or every token


@dataclass(frozen=True)
class Encoded:
    rows: Sequence[EncodedRow]
    truncated: int  # responses that were cut to the context; they lose their EOS, so no model learns to stop there
    refused: list[str]  # a reason for each refused row
    notes: tuple[str, ...] = ()  # lines for the user: cut prompts, keys of turns that the template does not read

    def summary(self, name: str) -> str:
        """A line of counts, the notes, then the first three refused rows.   name: names the rows: "prompts"."""
        from minirlhf.data.rows import first_three

        counts = f"{name}: {len(self.rows):,} kept, {self.truncated:,} truncated, {len(self.refused):,} refused"
        return "\n".join([counts, *(f"{name}: {note}" for note in self.notes), *first_three(self.refused)])


def encode_rows(
    tokenizer: Tokenizer,
    rows: Sequence[dict],
    responses: tuple[str, ...],
    *,
    context: int,
    vocabulary: int = 0,
    reserve: int = 1,
    max_refused: float = 0.01,
    source: str = "",
    unit: str = "line",
    train_on: TrainOn = "all_turns",
    wrap: Literal["turns", "plain"] = "turns",
    lengths: Any = None,
    cache: Path | None = None,
) -> Encoded:
    """Tokenise prompts and the named responses. The tokenizer's chat template, if any, renders turns.

    Args:
        responses:   keys of the row: ("response",), ("chosen", "rejected"), or () for prompts.
        context:     tokens that the model can hold.   reserve: tokens that must remain after the prompt.
        max_refused: fraction of the rows that may be refused. A row is refused if its prompt leaves too little room,
                     the chat template refuses its turns, or the model does not know one of its tokens.
        source:      the file of the rows, for messages.   unit: what the "line" of a row counts, "line" or "row".
        vocabulary:  rows of the model's embedding; 0: unknown.
        train_on:    for ("response",): the tokens of a dialogue that SFT learns; see data/dialogues.py.
        wrap:        "turns": beside a chat template, a prompt that is text is one user turn; "plain": it stays text.
        lengths:     a `Lengths` (data/lengths.py): shorter limits than the context, and what happens beyond them.
        cache:       a folder that keeps the ids for the next call with the same rows and settings; see data/cache.py.
    Raises: InputError if more than `max_refused` of the rows are refused.
    """
    from minirlhf.data.encoder import Settings, encode_all  # here, so that the core loads no leaf

    train_on = train_on if responses == ("response",) else "last"
    settings = Settings.of(tokenizer, responses, context, reserve, lengths, vocabulary, train_on, wrap, source, unit)
    encoded = Encoded(*encode_all(encode_texts, tokenizer, rows, settings, cache))
    if len(encoded.refused) > max_refused * len(rows):
        raise InputError(
            f"{len(encoded.refused)} of {len(rows)} rows cannot be used, at most {max_refused:.1%} may be refused: "
            f"{'; '.join(encoded.refused[:3])}; shorten the prompts, cut them with --overlong, allow more with "
            "--max_refused or raise a new model's --model.max_position_embeddings"
        )
    return encoded


def encode_texts(
    tokenizer: Tokenizer,
    rows: Sequence[dict],
    responses: tuple[str, ...],
    vocabulary: int = 0,
    sampled: bool = False,
    dialogues: Any = None,
) -> list[list[EncodedRow] | InputError]:
    """The ids of each row, not cut to a length, or an InputError if the chat template refuses the row or an id is not
    below `vocabulary` (0: unknown). A dialogue may become several rows.

    sampled:   see `Tokenizer.encode_turns`.
    dialogues: a `Dialogues` (data/dialogues.py) that says what is learned; default: the last answer.
    """
    from minirlhf.data.dialogues import Dialogues  # here, so that the core loads no leaf

    dialogues = dialogues or Dialogues(tokenizer)
    in_turns = [dialogues.has(row, responses) for row in rows]
    plain = [row for row, turns in zip(rows, in_turns, strict=True) if not turns]
    prompts = iter(tokenizer.encode_prompts([row["prompt"] for row in plain]))
    answers = zip(*[tokenizer.encode_responses([row[key] for row in plain]) for key in responses], strict=True)
    answers = answers if responses else iter([()] * len(plain))
    encoded = []
    for row, turns in zip(rows, in_turns, strict=True):
        try:
            found = [] if turns else [EncodedRow(row, next(prompts), next(answers))]
            found = found or dialogues.encode(row, responses, sampled)
            largest = max(max(ids, default=0) for each in found for ids in (each.prompt, *each.responses))
            if vocabulary and largest >= vocabulary:
                raise InputError(f"the model lacks {shown(tokenizer.backend.id_to_token(largest))}; drop the text")
            encoded.append(found)
        except InputError as error:
            encoded.append(error)
    return encoded
