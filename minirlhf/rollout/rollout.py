"""The result of sampling: tokens, their log-probs, values and scores.

B sequences, T tokens; column t speaks about choosing token t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The fields with one column per token. `select` cuts their columns, `with_groups` pads them.
PER_TOKEN = ("input_ids", "attention_mask", "completion_mask", "logps", "ref_logps", "values", "sampler_logps")
PER_TOKEN += "turn_rewards", "turn_numbers"


@dataclass(frozen=True)
class Rollout:
    input_ids: Tensor  # [B, T] prompt, completion, padding
    attention_mask: Tensor  # [B, T] bool, real tokens
    completion_mask: Tensor  # [B, T] bool, tokens the policy chose
    logps: Tensor  # [B, T] nats, under the sampling distribution; in bf16 read again by the policy that is trained
    ref_logps: Tensor  # [B, T] nats, frozen reference
    values: Tensor  # [B, T] score units
    scores: Tensor  # [B] weighted sum of the reward functions; nan if no function applies
    scores_by_function: Tensor  # [B, F] the score of each reward function; nan if the function does not apply
    ended: Tensor  # [B] bool, a stop token or stop string ended the completion
    mass_kept: Tensor  # [B] probability mass that top-k / top-p left
    completions: list[str]  # B texts
    lengths: list[int]  # B real tokens, prompt included; a list, because reading a tensor waits for the GPU
    sampler_logps: Tensor | None = None  # [B, T] nats, as sampled, if `logps` were read again
    # with an environment:
    turn_rewards: Tensor | None = None  # [B, T] score units, on the last token of each turn; `scores` has their sum
    turn_numbers: Tensor | None = None  # [B, T] 1 on the tokens of the policy's first turn, 2 on its second, ...
    first_prompts: list[str] | None = None  # B texts that the environment began with
    turns: list[list[dict]] | None = None  # B lists of {"by": "policy" or "environment", "text": ...}

    def select(self, rows: Sequence[int]) -> Rollout:
        """The given rows, cut to the longest row."""
        width = max((self.lengths[i] for i in rows), default=1)
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.input_ids.device)
        tensors = {
            name: value[index][:, :width] if name in PER_TOKEN else value[index]
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        texts = {name: [getattr(self, name)[i] for i in rows] for name in ("completions", "lengths")}
        return Rollout(**tensors, **texts)
