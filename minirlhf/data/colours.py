"""What a row trains on, as text: prompt, learned and masked tokens in colours, or between marks on a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

from minirlhf.data.batches import EncodedRow
from minirlhf.text.streaming import BROKEN

Kind = Literal["prompt", "learned", "masked"]
COLOURS = {"prompt": "\x1b[2m", "learned": "\x1b[1;32m", "masked": "\x1b[33m"}  # dim, bold green, yellow
MARKS = {"prompt": ("", ""), "learned": ("[+", "+]"), "masked": ("[-", "-]")}
END = "\x1b[0m"


def pieces(tokenizer: Any, row: EncodedRow, side: int = 0) -> list[tuple[str, Kind]]:
    """The text of a row, special tokens included, in pieces of tokens of the same kind.

    side: number of the response. A row without responses has a prompt alone. "masked": tokens of the response that are
    not learned, such as a user's turn between two answers.
    """
    response = row.responses[side] if row.responses else []
    learned = [True] * len(response) if row.learned is None else row.learned[side]
    kinds: list[Kind] = ["prompt"] * len(row.prompt) + ["learned" if is_learned else "masked" for is_learned in learned]
    ids, found, done, before = [*row.prompt, *response], [], 0, ""
    for kind, run in groupby(kinds):
        done += len(list(run))
        # The text of all tokens so far: a tokenizer may drop the space before the first token of a text. Half a letter
        # waits for its other half.
        text = tokenizer.backend.decode(ids[:done], skip_special_tokens=False)
        text = text.rstrip(BROKEN) if done < len(ids) else text
        found.append((text[len(before) :], kind))
        before = text
    return found


def rendered(parts: Sequence[tuple[str, Kind]], colour: bool) -> str:
    """The pieces as one text for a terminal (`colour`), or with [+learned+] and [-masked-] marks."""
    texts = []
    for text, kind in parts:
        text = "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)
        before, after = (COLOURS[kind], END) if colour else MARKS[kind]
        texts.append(before + text + after)
    return "".join(texts)
