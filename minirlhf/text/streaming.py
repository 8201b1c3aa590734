"""Tokens as they come -> text as it settles.

A token may end inside a character, and tokens decoded apart are not what they are together (some decoders drop the
space that the first one begins with). So all tokens are decoded each time, and only what is new and settled is handed
out.
"""

from __future__ import annotations

from collections.abc import Sequence

from minirlhf.text.tokenizer import Tokenizer

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet


class TextStream:
    """The text of a completion while it is written: special tokens left out, and cut where a stop string begins."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop_strings = tokenizer, stop_strings
        self.ids: list[int] = []
        self.handed_out = 0  # characters

    @property
    def text(self) -> str:
        """All that was said so far."""
        text = self.tokenizer.decode(self.ids)
        return text[: min((text.index(stop) for stop in self.stop_strings if stop in text), default=len(text))]

    def push(self, token: int) -> str:
        """One more token -> the text that has settled since the last call."""
        self.ids.append(token)
        return self._from_here_to(settled(self.text, self.stop_strings))

    def end(self) -> str:
        """After the last token -> what was held back."""
        return self._from_here_to(self.text)

    def _from_here_to(self, text: str) -> str:
        # the text can become shorter for a while: some decoders give up a whole run of bytes until it is complete
        new, self.handed_out = text[self.handed_out :], max(self.handed_out, len(text))
        return new


def settled(text: str, stop_strings: Sequence[str] = ()) -> str:
    """An unfinished text without what its next token may change: half a character, the beginning of a stop string."""
    text = text.rstrip(BROKEN)
    held = [n for stop in stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(held, default=0)]
