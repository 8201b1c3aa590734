"""Reward functions, reward models called like them, and judges."""

from minirlhf.rewards.judges import Judge, judge_by
from minirlhf.rewards.scoring import Gold, Reward, RewardModelScorer, score_completions

__all__ = ["Gold", "Judge", "Reward", "RewardModelScorer", "judge_by", "score_completions"]
