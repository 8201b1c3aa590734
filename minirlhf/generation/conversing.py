"""Sampling of dialogues: a policy's turns, and tokens of another writer between the turns.

A dialogue is a list of ids that grows. Nothing is encoded twice: the policy's ids stay as they were drawn, and the
tokens between its turns are forced, one for each forward, in the batch in which other rows draw tokens. So a slot
keeps its keys and values for the whole dialogue.

The noise of a turn is keyed by the turn's number and the position within the turn, so a dialogue depends on no other
row, and on no clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from torch import Tensor

from minirlhf.data.rows import check_prompts
from minirlhf.errors import InputError
from minirlhf.generation.completion import Completion, SamplingConfig
from minirlhf.generation.decoder import can_decode
from minirlhf.generation.engine import generate
from minirlhf.generation.slots import Slots
from minirlhf.model.transformer import Transformer
from minirlhf.runtime.distributed import own_pace
from minirlhf.runtime.randomness import keyed_uniforms
from minirlhf.text.tokenizer import Tokenizer

# Share of the running slots that wait for the other writer before the engine waits too. A count, and not a clock,
# decides which rows share a forward, so a run can be repeated bit for bit.
WAIT_SHARE = 1 / 8


class Dialogue(Protocol):
    """The other writer of one dialogue."""

    ids: list[int]  # all tokens so far, the prompt first

    def ask(self, turn: Completion) -> None:
        """Take the policy's turn, and begin to answer."""

    def hear(self) -> list[int] | None:
        """Wait for the answer, append its ids to `ids` -> these ids; None: the dialogue ends. A token more has room."""


def converse(
    transformer: Transformer,
    dialogues: Sequence[Dialogue],
    config: SamplingConfig,
    *,
    seed: int,
    stream: str,
    keys: Sequence[tuple[int, int, int]],
    tokenizer: Tokenizer,
    turns: int,
    answer_tokens: int,
    plain: bool = False,
) -> None:
    """Sample the turns of each dialogue until its other writer ends it. The other arguments are those of `generate`.

    config: `max_tokens` bounds a turn. Stop strings are looked for in the tokens of the turn alone.
    turns:  of the policy in a dialogue, at most.   answer_tokens: of the other writer between two turns, about. Both
            bound the memory of the slots, no dialogue: the context may be much longer than any dialogue.
    plain:  sample turn by turn with `generate`, which reads a dialogue anew for each turn; the slots give the same
            tokens sooner.
    """
    shape = transformer.config
    if turns > 1 and hasattr(type(transformer), "read_prompts"):  # it would read an answer as a part of its prompt
        raise InputError("converse: needed a decoder for several turns, got an encoder-decoder; set max_turns to 1")
    check_prompts("converse", [d.ids for d in dialogues], shape.vocab_size, shape.max_position_embeddings)
    with own_pace(*getattr(transformer, "models", (transformer,)), whole=True):
        if not plain and can_decode(transformer):
            slots = DialogueSlots(transformer, dialogues, keys, config, seed, stream, turns, answer_tokens)
            slots.complete(tokenizer)
            return
        running, turn = list(range(len(dialogues))), 0
        while running:
            options = {"seed": seed, "stream": stream_of(stream, turn), "keys": [keys[i] for i in running]}
            prompts = [dialogues[i].ids for i in running]
            completions = generate(transformer, prompts, config, tokenizer=tokenizer, plain=plain, **options)
            for i, completion in zip(running, completions, strict=True):
                dialogues[i].ask(completion)
            running, turn = [i for i in running if dialogues[i].hear() is not None], turn + 1


def stream_of(stream: str, turn: int) -> str:
    """The name of the noise of a turn. Turn 0 has the noise of a completion."""
    return f"{stream} turn {turn}" if turn else stream


@dataclass
class Pause:
    """A dialogue between two turns of the policy."""

    newest: int  # the last token of the dialogue so far
    forced: list[int] | None = None  # tokens to come before the next turn; None: the other writer has not answered


class DialogueSlots(Slots):
    """Slots that keep their dialogues from turn to turn. `made` and `ids` of a slot are those of its turn.

    A slot that waits for an answer feeds its newest token again: it writes the same keys to the same column.
    """

    def __init__(
        self,
        transformer: Transformer,
        dialogues: Sequence[Dialogue],
        keys: Sequence[tuple[int, int, int]],
        config: SamplingConfig,
        seed: int,
        stream: str,
        turns: int,
        answer_tokens: int,
    ) -> None:
        super().__init__(transformer, [dialogue.ids for dialogue in dialogues], keys, config, seed, stream)
        self.context = transformer.config.max_position_embeddings
        self.dialogues, self.turns = dialogues, [0] * len(dialogues)  # the number of the turn of each dialogue
        self.max_turns, self.answer_tokens = turns, answer_tokens
        self.longest = [self._longest(i) for i in range(len(dialogues))]
        self.pauses: dict[int, Pause] = {}  # by dialogue

    def draw(self, logits: Tensor) -> Tensor:
        self.pauses = {i: pause for i, pause in self.pauses.items() if pause.forced != []}
        tokens = super().draw(logits)
        for slot, pause in self._paused():
            self.made[slot] = 0  # the token drawn here is not used
            if pause.forced:
                pause.newest = pause.forced.pop(0)
                self.start[slot] += 1
        return tokens

    def find_ends(self, tokens: Tensor, tokenizer: Tokenizer | None) -> None:
        super().find_ends(tokens, tokenizer)
        if paused := [slot for slot, _ in self._paused()]:
            self.stopped[paused] = False

    def forward(self, tokens: Tensor) -> Tensor:
        if paused := dict(self._paused()):
            newest = torch.tensor([pause.newest for pause in paused.values()], device=self.device)
            tokens = tokens.index_copy(0, torch.tensor([*paused], device=self.device), newest)
        return super().forward(tokens)

    def finished(self) -> numpy.ndarray:
        """Pass on the turns that have ended, take answers -> for each running slot, whether its dialogue is over."""
        n = self.running
        ends = self.stopped[:n].cpu().numpy() | (self.made[:n] >= self.room[:n])
        for slot, turn in self.ended(ends.nonzero()[0]):
            i = self.prompt_of[slot]
            self.dialogues[i].ask(turn)
            self.start[slot] += len(turn.ids)
            self.made[slot], self.stopped[slot] = 0, False
            self.pauses[i] = Pause(turn.ids[-1])
        waiting = [slot for slot, pause in self._paused() if pause.forced is None]
        over = numpy.zeros(n, dtype=bool)
        if len(waiting) < max(1, n * WAIT_SHARE):
            return over
        for slot in waiting:
            i = self.prompt_of[slot]
            self.pauses[i].forced = self.dialogues[i].hear()
            over[slot] = self.pauses[i].forced is None
            if over[slot]:
                del self.pauses[i]
        self._begin_turns([slot for slot in waiting if not over[slot]])
        return over

    def _begin_turns(self, slots: list[int]) -> None:
        """Give the slots the noise and the room of their next turns."""
        by_turn: dict[int, list[int]] = {}
        for slot in slots:
            i = self.prompt_of[slot]
            self.turns[i] += 1
            self.room[slot] = min(self.config.max_tokens, self.context - len(self.dialogues[i].ids))
            self.longest[i] = self._longest(i)  # anew, because an answer may have had more tokens
            by_turn.setdefault(self.turns[i], []).append(slot)
        positions = torch.arange(self.uniforms.shape[1], device=self.device)
        for turn, group in by_turn.items():
            keys = torch.tensor([self.keys[self.prompt_of[slot]] for slot in group], device=self.device).unbind(-1)
            keys, stream = [k[:, None] for k in keys], stream_of(self.stream, turn)
            self.uniforms[group] = keyed_uniforms(self.seed, stream, *keys, positions, device=self.device)

    def _longest(self, i: int) -> int:
        """The tokens that a dialogue can come to have, if no answer has more than `answer_tokens`."""
        left = max(1, self.max_turns - self.turns[i])  # turns
        more = left * self.config.max_tokens + (left - 1) * self.answer_tokens
        return min(self.context, len(self.dialogues[i].ids) + more)

    def _paused(self) -> Iterator[tuple[int, Pause]]:
        """(slot, its pause) of the slots between two turns."""
        if self.pauses:
            yield from ((slot, self.pauses[i]) for slot, i in enumerate(self.prompt_of) if i in self.pauses)
