"""The order of rows in training, and rows of ids -> padded tensors. B rows, T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirlhf.errors import InputError
from minirlhf.runtime.randomness import permutation

TURNS = "prompt_turns"  # key of a row: the prompt as turns, for tokenizers with a chat template


@dataclass(frozen=True)
class EncodedRow:
    source: dict  # the source row: its "prompt" is the text; reward functions read the other keys
    prompt: list[int]  # BOS and the prompt, up to the first learned token
    responses: tuple[list[int], ...]  # one for SFT, chosen and rejected for pairs, none for prompts to sample from
    learned: tuple[list[bool], ...] | None = None  # for each response, which tokens are learned; None: all of them

    def mask(self, side: int = 0) -> list[bool]:
        """Which tokens of a response are learned."""
        return [True] * len(self.responses[side]) if self.learned is None else self.learned[side]


class Draw(NamedTuple):
    row: Any  # an encoded row
    index: int  # the row's number in the data
    epoch: int  # number of earlier draws of the row; each epoch samples with its own noise
    place: int | None = None  # in the batch, over all processes


class Batches:
    """`batches[k]` is a pure function of (rows, seed, k), so a run can resume at any step k.

    Each epoch shuffles the rows anew. A batch may hold the end of an epoch and the beginning of the next.
    Raises: InputError if `rows` is empty.
    """

    def __init__(self, rows: Sequence, *, batch_size: int, steps: int, seed: int, stream: str) -> None:
        from minirlhf.data.rows import check_sized

        check_sized("Batches", rows, order=Sequence)
        if not len(rows):
            raise InputError(f"{stream}: needed at least one row to train on, got none")
        self.rows, self.batch_size, self.steps, self.seed, self.stream = rows, batch_size, steps, seed, stream
        self._order: dict[int, list[int]] = {}

    @classmethod
    def of(cls, rows: Sequence, config: Any, *, seed: int = 0, stream: str = "rows", times: int = 1) -> Batches:
        """Batches as an algorithm's settings say: their size and the number of steps. times: for this many runs."""
        steps = times * config.steps_for(len(rows))
        return cls(rows, batch_size=config.batch_size, steps=steps, seed=seed, stream=stream)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, k: int) -> list[Draw]:
        if not 0 <= k < self.steps:
            raise IndexError(f"Batches: step {k} of {self.steps}")
        draws = range(k * self.batch_size, (k + 1) * self.batch_size)
        return [self._draw(*divmod(draw, len(self.rows)), place) for place, draw in enumerate(draws)]

    def _draw(self, epoch: int, position: int, place: int) -> Draw:
        if epoch not in self._order:
            recent = {e: order for e, order in self._order.items() if e >= epoch - 1}
            self._order = {**recent, epoch: permutation(len(self.rows), self.seed, self.stream, epoch)}
        index = self._order[epoch][position]
        return Draw(self.rows[index], index, epoch, place)


def drawn(batch: Sequence[Draw], answers: int) -> list[EncodedRow]:
    """The rows of a batch.   Raises: InputError if `batch` is none of `Batches`, or a row has fewer answers."""
    from minirlhf.data.rows import check_batch

    check_batch(batch, Draw, EncodedRow, answers)
    return [draw.row for draw in batch]


class Sequences(NamedTuple):
    """Padded rows, as every forward reads them."""

    input_ids: Tensor  # [B, T] int64: prompt, response, padding
    attention_mask: Tensor  # [B, T] bool, real tokens
    completion_mask: Tensor  # [B, T] bool, the response's learned tokens, its EOS included


def pad_sequences(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | str = "cpu",
    learned: Sequence[Sequence[bool]] = (),
) -> Sequences:
    """The prompt's ids and the response's ids of each row -> Sequences with padding on the right.

    learned: for each row, which tokens of the response are learned; empty: all.
    """
    from minirlhf.model.row_lengths import on_device  # here, so that the core loads no leaf

    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows), default=1)  # a process may have no row
    padded = [row + [pad_id] * (width - len(row)) for row in rows]
    input_ids, columns = torch.tensor(padded, dtype=torch.int64).view(len(rows), width), torch.arange(width)
    attention_mask = columns < torch.tensor([len(row) for row in rows])[:, None]
    completion_mask = attention_mask & (columns >= torch.tensor([len(prompt) for prompt in prompts])[:, None])
    for row, mask in enumerate(learned):
        completion_mask[row, len(prompts[row]) : len(rows[row])] &= torch.tensor(mask)
    return on_device(Sequences(input_ids, attention_mask, completion_mask), device)


def microbatches(lengths: Sequence[int], max_tokens: int, units: Sequence[int] | None = None) -> list[list[int]]:
    """Row numbers in groups of similar length, longest first: of at most `max_tokens` when padded, or of a single row.

    units: a number per row. Rows with one number, such as the completions of one prompt, stay in one group if they fit,
        so that a forward computes their common beginning once.
    """
    groups: list[list[int]] = []
    together: dict[int, list[int]] = {}
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        together.setdefault(row if units is None else units[row], []).append(row)
    for rows in together.values():
        size = max(1, max_tokens // max(1, lengths[rows[0]]))
        for part in (rows[start : start + size] for start in range(0, len(rows), size)):
            width = lengths[groups[-1][0]] if groups else -1  # the first row of a group is its longest
            if lengths[part[0]] <= width and (len(groups[-1]) + len(part)) * width <= max_tokens:
                groups[-1] += part
            else:
                groups.append(part)
    return groups


def row_groups(rows: Sequence[EncodedRow], max_tokens: int, sides: int = 1) -> list[list[EncodedRow]]:
    """Rows in micro-batches of similar length, padded to at most `max_tokens` tokens each.

    sides: the number of a row's responses in one forward (2 for chosen and rejected).
    """
    from minirlhf.data.rows import check_encoded

    check_encoded("row_groups", rows, EncodedRow, sides)
    lengths = [len(row.prompt) + max(map(len, row.responses)) for row in rows]
    return [[rows[i] for i in group] for group in microbatches(lengths, max_tokens // sides)]


def pad_rows(rows: Sequence[EncodedRow], sides: Sequence[int], pad_id: int, device: torch.device) -> Sequences:
    """The given responses of all rows as one batch [len(sides) * len(rows), T], the rows of the first side first.

    sides: indices into `EncodedRow.responses`: (0,) for SFT, (0, 1) for chosen and rejected.
    """
    both = [(row, side) for side in sides for row in rows]
    prompts, responses = [row.prompt for row, _ in both], [row.responses[side] for row, side in both]
    learned = [row.mask(side) for row, side in both] if any(row.learned for row in rows) else ()
    return pad_sequences(prompts, responses, pad_id, device, learned)
