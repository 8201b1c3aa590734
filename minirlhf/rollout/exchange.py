"""Completions of a step, dealt anew to the processes for the updates: only after sampling are their lengths known.

B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from minirlhf.data.dealing import deal
from minirlhf.rollout.rollout import PER_TOKEN, Rollout
from minirlhf.runtime.distributed import gather, rank, world_size
from minirlhf.runtime.vectors import gather_vectors


def balanced(
    rollout: Rollout, tensors: Sequence[Tensor], minibatches: int, group_size: int = 1
) -> tuple[Rollout, list[Tensor]]:
    """The rollout and tensors [B, T] with the rows that this process trains on.

    Each minibatch keeps its rows, and each process keeps its number of rows in each minibatch. Within a minibatch, rows
    change processes until all processes have about as many tokens. Texts do not travel: `completions` are empty.

    minibatches: the rows of a process stand minibatch by minibatch, and its minibatches have equally many rows.
    group_size: rows of a group travel together, so that an update computes their common beginning once.
    """
    if world_size() == 1:
        return rollout, list(tensors)
    lengths = gather(rollout.lengths)
    if any(len(part) % (minibatches * group_size) for part in lengths):
        return rollout, list(tensors)  # `over_minibatches` refuses such rows
    places = _places(lengths, minibatches, group_size)
    flat = [n for part in lengths for n in part]
    width = max(flat)
    index = torch.tensor(places, dtype=torch.int64, device=rollout.input_ids.device)

    def moved(x: Tensor, per_token: bool) -> Tensor:
        if per_token:
            x = F.pad(x[:, :width], (0, width - x[:, :width].shape[1]))
        parts = gather_vectors(x.flatten().to(torch.uint8) if x.dtype == torch.bool else x.flatten())
        return torch.cat(parts).view(-1, *x.shape[1:])[index].to(x.dtype)

    fields = {name: moved(x, name in PER_TOKEN) for name, x in vars(rollout).items() if isinstance(x, Tensor)}
    texts, own = [""] * len(places), [flat[i] for i in places]
    return replace(rollout, **fields, completions=texts, lengths=own), [moved(x, True) for x in tensors]


def _places(lengths: Sequence[Sequence[int]], minibatches: int, group_size: int) -> list[int]:
    """The new rows of this process, as numbers among the rows of all processes; the rows of process 0 come first."""
    tokens = [[sum(part[i : i + group_size]) for i in range(0, len(part), group_size)] for part in lengths]  # by group
    starts = [sum(map(len, tokens[:number])) for number in range(len(tokens))]
    sizes = [len(part) // minibatches for part in tokens]
    groups = []
    for k in range(minibatches):
        found = [s + k * n + i for s, n in zip(starts, sizes, strict=True) for i in range(n)]
        flat = [x for part, n in zip(tokens, sizes, strict=True) for x in part[k * n : (k + 1) * n]]
        groups += [found[i] for i in deal(flat, sizes)[rank()]]
    return [group * group_size + i for group in groups for i in range(group_size)]
