"""Which rows are too long, and what happens to them.

A text that cannot fit is shortened before it is tokenised, so that one long text does not fill the memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from minirlhf.data.batches import TURNS, EncodedRow
from minirlhf.errors import InputError, check_range

Overlong = Literal["refuse", "cut_left", "cut_right", "cut_middle", "keep_end"]


@dataclass(frozen=True)
class Lengths:
    """The settings. An answer that is too long always loses its end, except with keep_end."""

    max_length: int | None = None  # [tokens] of prompt and answer; default: the model's context
    max_prompt_length: int | None = None  # [tokens] of the prompt; default: all that leaves room for an answer
    overlong: Overlong = "refuse"  # [-] a prompt that is too long: refuse its row, or cut out the prompt's beginning,
    #                             end or middle; keep_end cuts the beginning of prompt and answer until the end fits

    def __post_init__(self) -> None:
        check_range(self, "max_length", "max_prompt_length", least=2)


class Fitted(NamedTuple):
    row: EncodedRow
    prompt_cut: bool
    truncated: int  # answers that were cut


class Limits(NamedTuple):
    """The settings for one model."""

    lengths: Lengths
    context: int  # tokens of prompt and answer
    reserve: int  # tokens that must remain after the prompt
    prefix: tuple[int, ...]  # BOS: it stays first, whatever is cut
    characters: int | None  # a text with more characters has more tokens than the context; None: unknown

    @classmethod
    def of(cls, lengths: Lengths | None, context: int, reserve: int, tokenizer: Any) -> Limits:
        lengths = lengths or Lengths()
        context = min(context, lengths.max_length or context)
        longest = characters_of_a_token(tokenizer)
        return cls(lengths, context, reserve, tuple(tokenizer.prefix), longest and longest * (context + 1))

    def fit(
        self, found: list[EncodedRow] | InputError, responses: tuple[str, ...], shortened: bool = False
    ) -> list[Fitted]:
        """The encoded rows of one source row, cut to the limits.

        shortened: the text was cut before it was tokenised, so its number of tokens is not known.
        Raises: InputError if the row was refused, a prompt is too long, or two answers become equal.
        """
        if isinstance(found, InputError):
            raise found
        fitted = [self._fit(row, shortened) for row in found]
        if any(not any(mask) for each in fitted for mask in each.row.learned or ()):
            raise InputError(f"no learned token is left once it is cut to {self._of} {self.context} tokens")
        if any(len(each.row.responses) == 2 and each.row.responses[0] == each.row.responses[1] for each in fitted):
            raise InputError(f"{' and '.join(responses)} are the same once cut to {self._of} {self.context} tokens")
        return fitted

    def _fit(self, row: EncodedRow, shortened: bool) -> Fitted:
        prompt, room = row.prompt, min(self.lengths.max_prompt_length or self.context, self.context - self.reserve)
        if len(prompt) > room and (self.lengths.overlong == "refuse" or room <= len(self.prefix)):
            raise InputError(self._reason(len(prompt), shortened))
        if self.lengths.overlong == "keep_end":
            return self._keep_end(row, room)
        prompt = self._cut(prompt, room) if len(prompt) > room else prompt
        left = self.context - len(prompt)
        learned = row.learned and tuple(mask[:left] for mask in row.learned)
        fitted = EncodedRow(row.source, prompt, tuple(ids[:left] for ids in row.responses), learned)
        return Fitted(fitted, prompt is not row.prompt, sum(len(ids) > left for ids in row.responses))

    @property
    def _of(self) -> str:
        return "--max_length's" if self.lengths.max_length == self.context else "the context's"

    def _reason(self, tokens: int, shortened: bool) -> str:
        most = self.lengths.max_prompt_length
        has = f"the prompt has {f'more than {self.context}' if shortened and tokens > self.context else tokens} tokens"
        if most and most <= self.context - self.reserve:
            return f"{has}, --max_prompt_length allows {most}"
        return f"{has} and leaves {max(self.context - tokens, 0)} of {self._of} {self.context}, needed {self.reserve}"

    def _cut(self, prompt: list[int], room: int) -> list[int]:
        """The prompt with so many tokens, BOS among them."""
        kept = len(self.prefix) if tuple(prompt[: len(self.prefix)]) == self.prefix else 0
        start, text, room = prompt[:kept], prompt[kept:], room - kept
        first = {"cut_right": room, "cut_middle": room // 2}.get(self.lengths.overlong, 0)
        return [*start, *text[:first], *text[len(text) - (room - first) :]]

    def _keep_end(self, row: EncodedRow, room: int) -> Fitted:
        """The last tokens of prompt and answer, and at least a token of the prompt. A pair keeps the same prompt."""
        longest = max(map(len, row.responses), default=0)
        room = min(room, max(self.context - longest, len(self.prefix) + 1))
        if len(row.prompt) <= room and len(row.prompt) + longest <= self.context:
            return Fitted(row, False, 0)
        prompt = self._cut(row.prompt, room) if len(row.prompt) > room else row.prompt
        start = [max(0, len(prompt) + len(ids) - self.context) for ids in row.responses]
        responses = tuple(ids[n:] for n, ids in zip(start, row.responses, strict=True))
        learned = row.learned and tuple(mask[n:] for n, mask in zip(start, row.learned, strict=True))
        cut = len(prompt) < len(row.prompt)
        return Fitted(EncodedRow(row.source, prompt, responses, learned), cut, sum(n > 0 for n in start))

    def shorten(self, row: dict, answers: tuple[str, ...], all_turns: bool = False) -> dict:
        """The row with a beginning and an end of each text that cannot fit. The row itself if all texts may fit.

        answers: their keys.   all_turns: a dialogue that is too long ends after the turns that may fit.
        """
        most = self.characters
        if most is None:
            return row
        keys = ("prompt", *answers, TURNS, *(f"{key}_turns" for key in answers), "tools")
        texts = {key: _shortened(row[key], most) for key in keys if key in row}
        row = {**row, **texts} if any(texts[key] != row[key] for key in texts) else row
        if self.lengths.overlong != "refuse" or sum(len(turn["content"]) for turn in row.get(TURNS) or ()) <= 2 * most:
            return row
        return {**row, **_first_turns(row[TURNS], most, all_turns)}


def _shortened(value: Any, most: int) -> Any:
    """A text, turns or tools, with a beginning and an end of each text in them."""
    if isinstance(value, list):
        return [_shortened(part, most) for part in value]
    if isinstance(value, dict):
        return {key: _shortened(part, most) for key, part in value.items()}
    return value[:most] + value[-most:] if isinstance(value, str) and len(value) > 2 * most else value


def _first_turns(turns: list[dict], most: int, all_turns: bool) -> dict:
    """The first turns with more than `most` characters. all_turns: an assistant turn is the last, and the response."""
    characters = list(accumulate(len(turn["content"]) for turn in turns))
    for k in range(1, len(turns)):
        if characters[k] > most and (turns[k]["role"] == "assistant" or not all_turns):
            answer = {"response": turns[k]["content"], "response_turns": [turns[k]]} if all_turns else {}
            return {TURNS: turns[: k if all_turns else k + 1], **answer}
    return {}


# Parts of a tokenizer that keep every character, at least one in four: NFC joins a letter and up to three marks.
NORMALIZERS = {"NFC", "NFKC", "Prepend", "Lowercase", "ByteLevel"}
PRE_TOKENIZERS = {"ByteLevel", "Digits", "Metaspace", "Split", "Punctuation", "UnicodeScripts"}
JOINED = 4


def characters_of_a_token(tokenizer: Any) -> int | None:
    """The most characters of a text that a token covers; None if the tokenizer can drop characters."""
    parts = json.loads(tokenizer.backend.to_str())
    model, normalizers, splitters = parts["model"], _parts(parts["normalizer"]), _parts(parts["pre_tokenizer"])
    bytes_of_all = any(part["type"] == "ByteLevel" for part in [*normalizers, *splitters]) or model.get("byte_fallback")
    kept = all(part["type"] in NORMALIZERS or _is_longer(part) for part in normalizers)
    kept = kept and all(part["type"] in PRE_TOKENIZERS and part.get("behavior") != "Removed" for part in splitters)
    if not (model["type"] in ("BPE", "Unigram") and bytes_of_all and kept):
        return None
    joined = JOINED if any(part["type"] in ("NFC", "NFKC") for part in normalizers) else 1
    return joined * max(map(len, tokenizer.backend.get_vocab()))


def _parts(part: dict | None) -> list[dict]:
    """A normalizer or pre-tokenizer as a list of simple ones."""
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers") or []
    return [simple for one in inner for simple in _parts(one)] if part["type"] == "Sequence" else [part]


def _is_longer(part: dict) -> bool:
    """True for a Replace that makes no text shorter."""
    if part["type"] != "Replace":
        return False
    pattern = part["pattern"].get("String")
    return pattern is not None and len(part["content"]) >= len(pattern)
