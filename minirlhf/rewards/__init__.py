"""Reward functions, reward models with the same signature, and judges."""

from minirlhf.lazy import lazy
from minirlhf.rewards.scoring import Gold, Reward, RewardModelScorer, score_completions

# names of leaves
LEAVES = {
    "minirlhf.rewards.best_of": "BestOfN best_of_each kl_bound",
    "minirlhf.rewards.calling": "Timed",
    "minirlhf.rewards.child_process": "run_python",
    "minirlhf.rewards.ensemble": "Ensemble",
    "minirlhf.rewards.functions": "FileReward RewardSum parts_of",
    "minirlhf.rewards.judges": "BothOrders Judge judge_by rubric",
    "minirlhf.rewards.shaping": "length_cosine repetition tags",
    "minirlhf.rewards.verifiers": "json_shape unit_tests",
}
__getattr__, __dir__ = lazy(__name__, LEAVES)
