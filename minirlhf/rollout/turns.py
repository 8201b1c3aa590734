"""Rollouts with several turns: rewards of turns, lengths of turns, and samples to look at.

B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minirlhf.data.batches import Draw
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


def samples_of(batch: Sequence[Draw], rollout: Rollout, group_size: int = 1, most: int = 4) -> list[dict[str, Any]]:
    """The first completion of the first prompts, for samples.jsonl; with its turns, if it is an episode."""
    samples = []
    for draw, row in zip(batch[:most], range(0, len(rollout.lengths), group_size), strict=False):
        score = float(rollout.scores[row])
        prompt = rollout.first_prompts[row] if rollout.first_prompts else draw.row.source["prompt"]
        sample = {"prompt": prompt, "completion": rollout.completions[row]}
        sample["score"] = score if score == score else None  # NaN is no JSON
        if rollout.turns is not None:
            sample["turns"] = rollout.turns[row]
        samples.append(sample)
    return samples
