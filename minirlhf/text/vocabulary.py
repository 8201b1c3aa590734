"""The ids that a tokenizer gives. The model's embedding needs a row for each of these ids."""

from __future__ import annotations

from contextlib import suppress

from minirlhf.errors import InputError
from minirlhf.text.tokenizer import Tokenizer

TURNS = [{"role": "user", "content": "Hi"}]


def largest_needed_id(tokenizer: Tokenizer) -> int:
    """The largest id that any plain text, the special tokens or the chat template give.

    Added tokens beyond this id occur only in texts that contain their names. `encode_rows` refuses a row with such a
    text if the model has no row for the token.
    """
    ids = [*tokenizer.backend.get_vocab(with_added_tokens=False).values()]
    ids += [tokenizer.pad_id, tokenizer.eos_id, *tokenizer.prefix, *tokenizer.encode_prompts([""])[0]]
    for answers in ([], ["Hello"]) if tokenizer.templates else ():
        with suppress(InputError):  # such turns do not suit the template; each row is checked
            prompt, encoded = tokenizer.encode_turns(TURNS, answers)
            ids += sum(encoded, prompt)
    return max(ids)


def names_beyond(tokenizer: Tokenizer, rows: int) -> list[str]:
    """The tokens whose ids are `rows` or larger."""
    added = tokenizer.backend.get_added_tokens_decoder()
    return [added[number].content for number in sorted(added) if number >= rows]
