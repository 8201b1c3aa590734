"""Reward functions, reward models with the same signature, and judges."""

from minirlhf.lazy import lazy
from minirlhf.rewards.scoring import Gold, Reward, RewardModelScorer, score_completions

# names of leaves
LEAVES = {
    "minirlhf.rewards.best_of": "BestOfN best_of_each kl_bound",
    "minirlhf.rewards.functions": "FileReward RewardSum parts_of",
    "minirlhf.rewards.judges": "BothOrders Judge judge_by rubric",
}
__getattr__, __dir__ = lazy(__name__, LEAVES)
