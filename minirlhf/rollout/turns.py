"""Rollouts with several turns: rewards of turns, lengths of turns.

B sequences, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.rollout.rollout import Rollout


def at_their_turns(rewards: Tensor, rollout: Rollout) -> Tensor:
    """Rewards [B, T] with the whole score on the last token -> the environment's part of it on the ends of the turns.

    The sum of each row stays. Outcomes that come at the end, and penalties, stay on the last token.
    """
    mask, turn_rewards = rollout.completion_mask, rollout.turn_rewards.to(rewards.dtype)
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = columns == torch.where(mask, columns, -1).amax(-1, keepdim=True)
    return rewards + (turn_rewards - torch.where(last, turn_rewards.sum(-1, keepdim=True), 0))


def longest_turns(rollout: Rollout) -> Tensor:
    """[B]: the tokens of the longest turn of each row; the tokens of a completion without turns."""
    numbers, mask = rollout.turn_numbers, rollout.completion_mask
    if numbers is None:
        return mask.sum(-1)
    counts = [(mask & (numbers == turn)).sum(-1) for turn in range(1, int(numbers.max()) + 1)]
    return torch.stack([torch.zeros_like(mask.sum(-1)), *counts]).amax(0)
