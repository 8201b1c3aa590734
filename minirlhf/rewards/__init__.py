"""Reward functions and reward models, called the same way."""

from minirlhf.rewards.scoring import Reward, RewardModelScorer, score_completions

__all__ = ["Reward", "RewardModelScorer", "score_completions"]
