"""Reward functions, reward models with the same signature, and judges."""

from minirlhf.lazy import lazy
from minirlhf.rewards.scoring import Gold, Reward, RewardModelScorer, score_completions

# names of leaves
LEAVES = {
    "minirlhf.rewards.functions": "FileReward RewardSum parts_of",
    "minirlhf.rewards.judges": "Judge judge_by",
}
__getattr__, __dir__ = lazy(__name__, LEAVES)
