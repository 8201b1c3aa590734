"""Rows of text -> rows of ids, once, before training. Rows that do not fit are counted and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minirlhf.errors import InputError, shown
from minirlhf.text.tokenizer import Tokenizer

TURNS = "prompt_turns"  # key of a row: the prompt as turns, for tokenizers with a chat template


@dataclass(frozen=True)
class EncodedRow:
    source: dict  # the source row: its "prompt" is the text; reward functions read the other keys
    prompt: list[int]  # BOS and the prompt
    responses: tuple[list[int], ...]  # one for SFT, chosen and rejected for pairs, none for prompts to sample from


@dataclass(frozen=True)
class Encoded:
    rows: list[EncodedRow]
    truncated: int  # responses that were cut to the context; they lose their EOS, so no model learns to stop there
    refused: list[str]  # a reason for each refused row

    def summary(self, name: str) -> str:
        """A line of counts, then the first three refused rows.   name: names the rows: "prompts"."""
        counts = f"{name}: {len(self.rows):,} kept, {self.truncated:,} truncated, {len(self.refused):,} refused"
        return "\n".join([counts, *first_three(self.refused)])


def first_three(refused: Sequence) -> list[str]:
    """The first three refused rows, and the number of the others."""
    more = [f"and {len(refused) - 3:,} more refused"] if len(refused) > 3 else []
    return [*map(str, refused[:3]), *more]


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
) -> Encoded:
    """Tokenise prompts and the named responses. The tokenizer's chat template, if any, renders turns.

    Args:
        responses:   keys of the row: ("response",), ("chosen", "rejected"), or () for prompts.
        context:     tokens that the model can hold.   reserve: tokens that must remain after the prompt.
        max_refused: fraction of the rows that may be refused. A row is refused if its prompt leaves too little room,
                     the chat template refuses its turns, or the model does not know one of its tokens.
        source:      the file of the rows, for messages.   unit: what the "line" of a row counts, "line" or "row".
        vocabulary:  rows of the model's embedding; 0: unknown.
    Raises: InputError if more than `max_refused` of the rows are refused.
    """
    from minirlhf.data.rows import listed

    rows = listed("encode_rows", rows, ("prompt", *responses))
    encoded_rows, truncated, refused = [], 0, []
    for row, encoded in zip(rows, encode_texts(tokenizer, rows, responses, vocabulary), strict=True):
        where = f"{unit} {row['line']}" if "line" in row else f"{row['prompt'][:40]!r}"
        where = f"{source}: {where}" if source else where
        if isinstance(encoded, InputError):
            refused.append(f"{where}: {encoded}")
            continue
        prompt, answers = encoded
        room = context - len(prompt)
        if room < reserve:
            refused.append(
                f"{where}: the prompt has {len(prompt)} tokens and leaves {max(room, 0)} of the context's "
                f"{context}, needed {reserve}"
            )
            continue
        cut = tuple(ids[:room] for ids in answers)
        if len(cut) == 2 and cut[0] == cut[1]:
            refused.append(
                f"{where}: {' and '.join(responses)} are the same once cut to the context's {context} tokens"
            )
            continue
        truncated += sum(len(ids) > room for ids in answers)
        encoded_rows.append(EncodedRow(row, prompt, cut))
    if len(refused) > max_refused * len(rows):
        raise InputError(
            f"{len(refused)} of {len(rows)} rows cannot be used, at most {max_refused:.1%} may be refused: "
            f"{'; '.join(refused[:3])}; "
            "shorten the prompts, allow more with --max_refused or raise a new model's --model.max_position_embeddings"
        )
    return Encoded(encoded_rows, truncated, refused)


def encode_texts(
    tokenizer: Tokenizer, rows: Sequence[dict], responses: tuple[str, ...], vocabulary: int = 0, sampled: bool = False
) -> list[tuple[list[int], Sequence[list[int]]] | InputError]:
    """(ids of the prompt, ids of each response) for each row, or an InputError if the chat template refuses the row or
    an id is not below `vocabulary` (0: unknown).   sampled: see `Tokenizer.encode_turns`.
    """
    in_turns = [bool(tokenizer.templates) and TURNS in row for row in rows]
    plain = [row for row, turns in zip(rows, in_turns, strict=True) if not turns]
    prompts = iter(tokenizer.encode_prompts([row["prompt"] for row in plain]))
    answers = zip(*[tokenizer.encode_responses([row[key] for row in plain]) for key in responses], strict=True)
    answers = answers if responses else iter([()] * len(plain))
    encoded = []
    for row, turns in zip(rows, in_turns, strict=True):
        try:
            texts = [row[key] for key in responses] if turns else []
            ids = tokenizer.encode_turns(row[TURNS], texts, sampled) if turns else (next(prompts), next(answers))
            largest = max(max(part, default=0) for part in (ids[0], *ids[1]))
            if vocabulary and largest >= vocabulary:
                raise InputError(f"the model lacks {shown(tokenizer.backend.id_to_token(largest))}; drop the text")
            encoded.append(ids)
        except InputError as error:
            encoded.append(error)
    return encoded
