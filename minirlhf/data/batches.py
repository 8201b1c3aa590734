"""Which rows come when, and rows of ids to padded tensors. B rows, T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError
from minirlhf.runtime.randomness import permutation


class Draw(NamedTuple):
    row: Any  # what the trainer encoded
    index: int  # which row of the data it is
    epoch: int  # how often it was drawn before: keys the sampling noise, so a second epoch does not repeat the first


class Batches:
    """`batches[k]` is a pure function of (rows, seed, k): a run that resumes at step k needs nothing else.

    Rows come in a fresh shuffle each epoch; batches run on over the end of one into the next.
    Raises: InputError if there are no rows.
    """

    def __init__(self, rows: Sequence, *, batch_size: int, steps: int, seed: int, stream: str) -> None:
        if not rows:
            raise InputError(f"{stream}: needed at least one row to train on, got none")
        self.rows, self.batch_size, self.steps, self.seed, self.stream = rows, batch_size, steps, seed, stream
        self._order: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, k: int) -> list[Draw]:
        if not 0 <= k < self.steps:
            raise IndexError(f"Batches: step {k} of {self.steps}")
        places = range(k * self.batch_size, (k + 1) * self.batch_size)
        return [self._draw(*divmod(place, len(self.rows))) for place in places]

    def _draw(self, epoch: int, place: int) -> Draw:
        if epoch not in self._order:
            kept = {e: order for e, order in self._order.items() if e >= epoch - 1}
            self._order = {**kept, epoch: permutation(len(self.rows), self.seed, self.stream, epoch)}
        index = self._order[epoch][place]
        return Draw(self.rows[index], index, epoch)


class Sequences(NamedTuple):
    """Padded rows: what every forward reads."""

    input_ids: Tensor  # [B, T] prompt, response, padding
    attention_mask: Tensor  # [B, T] bool, real tokens
    completion_mask: Tensor  # [B, T] bool, the response's tokens, its EOS included


def pad_sequences(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | str = "cpu",
) -> Sequences:
    """Prompt ids and response ids, row by row -> Sequences with padding on the right."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    input_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
    columns = torch.arange(width)
    attention_mask = columns < torch.tensor([[len(row)] for row in rows])
    completion_mask = attention_mask & (columns >= torch.tensor([[len(prompt)] for prompt in prompts]))
    return Sequences(*(x.to(device) for x in (input_ids, attention_mask, completion_mask)))


def microbatches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row numbers in groups of similar length whose padded size is at most `max_tokens` (one row may exceed it)."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def row_groups(rows: Sequence[EncodedRow], max_tokens: int, sides: int = 1) -> list[list[EncodedRow]]:
    """Rows in groups of similar length: one micro-batch each, padded to at most `max_tokens`.

    sides: how many of a row's responses go through the model in one forward (2 for chosen and rejected).
    """
    lengths = [len(row.prompt) + max(map(len, row.responses)) for row in rows]
    return [[rows[i] for i in group] for group in microbatches(lengths, max_tokens // sides)]


def pad_rows(rows: Sequence[EncodedRow], sides: Sequence[int], pad_id: int, device: torch.device) -> Sequences:
    """The given responses of each row as one batch [len(sides) * len(rows), T]: all rows of side 0 first.

    sides: which responses of a row; (0,) is its only one, (0, 1) are chosen and rejected.
    """
    prompts = [row.prompt for _ in sides for row in rows]
    return pad_sequences(prompts, [row.responses[side] for side in sides for row in rows], pad_id, device)
