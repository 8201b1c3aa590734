"""The texts of an environment as ids that follow the policy's turns. The policy's own ids are never encoded again."""

from __future__ import annotations

from functools import partial

from minirlhf.errors import InputError
from minirlhf.text.chat import turn_text
from minirlhf.text.checkpoint_tokenizer.answer_end import TRIAL, find_answer_end
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.text.tool_turns import ID

CUT = " [...]"  # ends a text that was cut
LETTERS = 32  # of a text that are looked at, for each token that it may have


class Answers:
    """Encodes the first prompt of an episode, and the texts that follow.

    first:   the prompt, as text or as turns.   schemas: of tools, for a template that reads them.
    most:    tokens of a text; the rest of a longer text is cut off, and CUT shows it.
    """

    def __init__(self, tokenizer: Tokenizer, first: str | list[dict], schemas: list[dict] | None, most: int) -> None:
        self.tokenizer, self.first, self.schemas, self.most = tokenizer, first, schemas, most
        self.render = partial(tokenizer.apply_chat_template, tools=schemas)

    def prompt(self) -> list[int]:
        if isinstance(self.first, str):
            return self.tokenizer.encode_prompts([self.first])[0]
        return self.tokenizer.encode_turns(self.first, tools=self.schemas)[0]

    def after(self, turn: list[int], action: str, text: str, role: str) -> list[int]:
        """The ids that follow a turn of the policy: its end if the policy did not write it, the text, and the beginning
        of the policy's next turn.   turn, action: the ids and the text of the turn.
        """
        if isinstance(self.first, str):
            return self.tokenizer.encode(text)
        following = self._following(text, role)
        following = following[self._written(following, turn, action) :]
        # the plain layout is plain text, and `encode_rendered` would begin it with BOS
        return (self.tokenizer.encode_rendered if self.tokenizer.templates else self.tokenizer.encode)(following)

    def cut(self, text: str, closing: str = "") -> str:
        """The text, or its beginning, CUT and the text that closes it."""
        start = text[: LETTERS * self.most]
        ids = self.tokenizer.encode(start)
        if start == text and len(ids) <= self.most:
            return text
        kept = max(0, self.most - len(self.tokenizer.encode(CUT + closing)))
        beginning = self.tokenizer.decode(ids[:kept]).rstrip("\ufffd")  # the last token may end inside a character
        return beginning + CUT + closing

    def _following(self, text: str, role: str) -> str:
        """The text that the chat template writes after an answer: the end of the answer, this turn, the next prompt.

        A trial answer shows it. A template that has no turns of tools gets a user turn.
        """
        trial = TRIAL
        while any(trial in str(turn) for turn in (text, *self.first)):
            trial += " more"
        turn = {"role": role, "content": text}
        if role == "tool":
            turn["tool_call_id"] = ID
        before = [*self.first, {"role": "assistant", "content": trial}]
        try:
            whole = self.render([*before, turn], True)
        except InputError:
            if role != "tool":
                raise
            whole = self.render([*before, {"role": "user", "content": turn_text(turn)}], True)
        return whole.rpartition(trial)[2]

    def _written(self, following: str, turn: list[int], action: str) -> int:
        """How many letters of the following text the policy has written already: the end of its turn."""
        parts = self.tokenizer.parts
        end = parts.answer_end
        if self.tokenizer.templates and (end is None or not following.startswith(end.text)):
            end = find_answer_end(self.render, parts, self.first)
        if self.tokenizer.templates and end and end.token is not None:
            return len(end.text) if turn[-1] == end.token and following.startswith(end.text) else 0
        # an end without a token of its own, such as an empty line: a stop string may have ended the turn within it
        return next((n for n in range(len(following), 0, -1) if action.endswith(following[:n])), 0)
