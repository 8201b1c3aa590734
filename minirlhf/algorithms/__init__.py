"""One algorithm a file: its settings, and a trainer whose step() reads like the paper."""

from minirlhf.algorithms.ppo import PPOConfig, PPOTrainer
from minirlhf.algorithms.reward_model import RewardConfig, RewardTrainer
from minirlhf.algorithms.sft import SFTConfig, SFTTrainer

__all__ = ["PPOConfig", "PPOTrainer", "RewardConfig", "RewardTrainer", "SFTConfig", "SFTTrainer"]
