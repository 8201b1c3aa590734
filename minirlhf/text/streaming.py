"""The text of a completion while its tokens arrive.

A token may end inside a character, and some decoders drop the space before the first token. So the stream decodes all
tokens again for each new token, and hands out the new text that later tokens cannot change.
"""

from __future__ import annotations

from collections.abc import Sequence

from minirlhf.text.tokenizer import Tokenizer

BROKEN = "\ufffd"  # a decoder writes this for bytes that are not (yet) a character


class TextStream:
    """The text of an unfinished completion, without special tokens, cut where a stop string begins."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop_strings = tokenizer, stop_strings
        self.ids: list[int] = []
        self.handed_out = 0  # characters

    @property
    def text(self) -> str:
        """The text of all tokens so far."""
        text = self.tokenizer.decode(self.ids)
        return text[: min((text.index(stop) for stop in self.stop_strings if stop in text), default=len(text))]

    def push(self, token: int) -> str:
        """Add a token -> the new text that later tokens cannot change."""
        self.ids.append(token)
        return self._new(settled(self.text, self.stop_strings))

    def end(self) -> str:
        """After the last token -> the text that was held back."""
        return self._new(self.text)

    def _new(self, text: str) -> str:
        # The text may shrink for a while: some decoders replace a whole run of bytes until the run is complete.
        new, self.handed_out = text[self.handed_out :], max(self.handed_out, len(text))
        return new


def settled(text: str, stop_strings: Sequence[str] = ()) -> str:
    """An unfinished text without an end that may still change: half a character, or a begun stop string."""
    text = text.rstrip(BROKEN)
    held = [n for stop in stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(held, default=0)]
