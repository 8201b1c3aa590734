"""Prompts -> rollout: what the policy wrote, what it got for it, and what it and the others thought of each token.

B sequences, T tokens; column t speaks about choosing token t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Rollout:
    input_ids: Tensor  # [B, T] prompt, completion, padding
    attention_mask: Tensor  # [B, T] bool, real tokens
    completion_mask: Tensor  # [B, T] bool, tokens the policy chose
    logps: Tensor  # [B, T] nats, as sampled
    ref_logps: Tensor  # [B, T] nats, frozen reference
    values: Tensor  # [B, T] score units
    scores: Tensor  # [B] weighted sum of the reward functions; nan where none applies
    parts: Tensor  # [B, F] what each of them said; nan where it does not apply
    ended: Tensor  # [B] bool, a stop token or string came
    kept: Tensor  # [B] probability mass that top-k / top-p left
    completions: list[str]  # B texts
    lengths: list[int]  # B real tokens, prompt included, known to the host

    def select(self, rows: Sequence[int]) -> Rollout:
        """These rows, cut to the longest of them."""
        width = max(self.lengths[i] for i in rows)
        index = torch.as_tensor(rows, device=self.input_ids.device)
        tensors = {
            name: value[index][:, :width] if value.shape == self.input_ids.shape else value[index]
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Rollout(
            **tensors, completions=[self.completions[i] for i in rows], lengths=[self.lengths[i] for i in rows]
        )

    def replaced(self, places: Sequence[int], other: Rollout, group_size: int) -> Rollout:
        """The same with the groups at `places` taken from `other`, in order."""
        rows = [g * group_size + i for g in places for i in range(group_size)]
        order = list(range(len(self.lengths)))
        for new, row in enumerate(rows):
            order[row] = len(self.lengths) + new
        both = {}
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            if not isinstance(mine, Tensor):
                joined = [*mine, *theirs]
                both[name] = [joined[i] for i in order]
                continue
            if mine.shape == self.input_ids.shape:
                width = max(mine.shape[1], theirs.shape[1])
                mine, theirs = (F.pad(x, (0, width - x.shape[1])) for x in (mine, theirs))
            both[name] = torch.cat((mine, theirs))[order]
        return Rollout(**both)
