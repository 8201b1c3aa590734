"""The text of each token of a completion."""

from __future__ import annotations

from collections.abc import Sequence

from minirlhf.text.streaming import BROKEN
from minirlhf.text.tokenizer import Tokenizer

BYTES = 4  # of the longest character


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to the tokens before it; special tokens too. No text is empty.

    A token that ends inside a character has the text U+FFFD, and the token that ends the character has the character.
    A decoder may drop the space before its first token, so each token is decoded after the token before it. Without
    the U+FFFD, the texts of the tokens add up to the text of the completion.
    """
    texts, before, start = [], 0, 0  # the texts of ids[before:start] are known, those of ids[start:] are not
    for number in range(len(ids)):
        known, text = (
            tokenizer.backend.decode(list(ids[before:end]), skip_special_tokens=False) for end in (start, number + 1)
        )
        new = text[len(known) :]
        ends = new and not new.endswith(BROKEN)
        texts.append((new.lstrip(BROKEN) if ends else "") or BROKEN)
        if ends or number - start >= BYTES - 1:  # four bytes without a character never become a character
            before, start = start, number + 1
    return texts
