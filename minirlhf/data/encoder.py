"""All rows of a stage -> ids: chunk by chunk, so that the memory is bounded, and with the cache only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from minirlhf.data.cache import cached, key_of
from minirlhf.data.compact import Arrays, Builder, CompactRows, chunks
from minirlhf.data.dialogues import Dialogues, everything
from minirlhf.data.lengths import Limits
from minirlhf.data.rows import indexed
from minirlhf.data.wrapping import Wrapped, Wrapping
from minirlhf.errors import InputError
from minirlhf.text.tokenizer import Tokenizer


class Settings(NamedTuple):
    """The arguments of `encode_rows` that decide the ids."""

    responses: tuple[str, ...]
    limits: Limits  # of context, reserve and lengths
    vocabulary: int
    train_on: str
    wrap: str
    source: str
    unit: str

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, responses: tuple[str, ...], context: int, reserve: int, lengths: Any, *more: Any
    ) -> Settings:
        return cls(responses, Limits.of(lengths, context, reserve, tokenizer), *more)


def encode_all(
    encode_texts: Callable[..., list],
    tokenizer: Tokenizer,
    rows: Sequence[dict],
    settings: Settings,
    cache: Path | None,
) -> tuple[CompactRows, int, list[str], tuple[str, ...]]:
    """The rows as ids, at rest in flat arrays; from the cache's folder if it has them. -> the fields of `Encoded`."""
    rows = indexed("encode_rows", rows)
    key, make = partial(key_of, rows, tokenizer, settings), partial(_encode, encode_texts, tokenizer, rows, settings)
    arrays, about = cached(cache, key, make)
    sources = Wrapped.of(rows, tokenizer, settings.wrap)
    return CompactRows(arrays, sources), about["truncated"], about["refused"], tuple(about["notes"])


def _encode(
    encode_texts: Callable[..., list], tokenizer: Tokenizer, rows: Sequence[dict], settings: Settings
) -> tuple[Arrays, dict[str, Any]]:
    """-> (`Arrays` of the ids, the other fields of `Encoded`)."""
    responses, limits = settings.responses, settings.limits
    dialogues, wrapping = Dialogues(tokenizer, settings.train_on), Wrapping(tokenizer, settings.wrap)
    built, refused, truncated, cut = Builder(len(responses)), [], 0, 0
    for numbers, chunk in chunks(rows, ("prompt", *responses)):
        chunk = [wrapping.look(row) for row in chunk]
        texts = [limits.shorten(row, responses, settings.train_on == "all_turns") for row in chunk]
        encoded = encode_texts(tokenizer, texts, responses, settings.vocabulary, dialogues=dialogues)
        for number, row, text, found in zip(numbers, chunk, texts, encoded, strict=True):
            try:
                fitted = limits.fit(found, responses, shortened=text is not row)
            except InputError as error:
                where = f"{settings.unit} {row['line']}" if "line" in row else f"{row['prompt'][:40]!r}"
                source = row.get("file") or settings.source  # a mixture has rows of several files
                refused.append(f"{source}: {where}: {error}" if source else f"{where}: {error}")
                continue
            for each in fitted:
                built.add(everything(each.row) if settings.train_on == "all" else each.row, number)
                truncated, cut = truncated + each.truncated, cut + each.prompt_cut
    cuts = [f"{cut:,} prompts cut ({limits.lengths.overlong})"] if cut else []
    notes = (*wrapping.notes(), *dialogues.notes(), *cuts)
    return built.arrays(), {"truncated": truncated, "refused": refused, "notes": notes}
