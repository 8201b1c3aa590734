"""Episodes of several turns as a rollout: their rewards and turns by token, and samples to look at.

B sequences, T tokens. `environment` and `episode` are an `Episodes` and an `Episode` of the room environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minirlhf.data.batches import Draw
from minirlhf.rollout.rollout import Rollout


def scores_of(episodes: Sequence[Any]) -> list[float]:
    """The sum of the rewards of each episode."""
    return [sum(reward for _, reward in episode.rewards) for episode in episodes]


def by_token(episodes: Sequence[Any], like: Tensor) -> dict[str, Any]:
    """Fields of a `Rollout`: `turn_rewards`, `turn_numbers` and `turns`.   like: [B, T], for dtype and device."""
    rewards = torch.zeros(like.shape, dtype=like.dtype)
    numbers = torch.zeros(like.shape, dtype=torch.int64)
    for row, episode in enumerate(episodes):
        before = len(episode.prompt)
        own = [turn for turn in episode.turns if turn.by == "policy"]
        for number, (turn, (last, reward)) in enumerate(zip(own, episode.rewards, strict=True), start=1):
            rewards[row, before + last] = reward
            numbers[row, before + turn.start : before + turn.stop] = number
    turns = [episode.shown() for episode in episodes]
    return {"turn_rewards": rewards.to(like.device), "turn_numbers": numbers.to(like.device), "turns": turns}


def at_their_turns(rewards: Tensor, rollout: Rollout) -> Tensor:
    """Rewards [B, T] with the whole score on the last token -> the environment's part of it on the ends of the turns.

    The sum of each row stays. Outcomes that come at the end, and penalties, stay on the last token.
    """
    mask, turn_rewards = rollout.completion_mask, rollout.turn_rewards.to(rewards.dtype)
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = columns == torch.where(mask, columns, -1).amax(-1, keepdim=True)
    return rewards + turn_rewards - torch.where(last, turn_rewards.sum(-1, keepdim=True), 0)


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
        sample = {"prompt": draw.row.source["prompt"], "completion": rollout.completions[row]}
        sample["score"] = score if score == score else None  # NaN is no JSON
        if rollout.turns is not None:
            sample["turns"] = rollout.turns[row]
        samples.append(sample)
    return samples
