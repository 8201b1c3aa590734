"""One algorithm a file: its settings, and a trainer whose step() reads like the paper."""

from minirlhf.algorithms.distillation import DistillationConfig, DistillationTrainer
from minirlhf.algorithms.dpo import DPOConfig, DPOTrainer
from minirlhf.algorithms.grpo import GRPOConfig, GRPOTrainer
from minirlhf.algorithms.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from minirlhf.algorithms.ppo import PPOConfig, PPOTrainer
from minirlhf.algorithms.process_reward import ProcessRewardConfig, ProcessRewardTrainer
from minirlhf.algorithms.reward_model import RewardConfig, RewardTrainer
from minirlhf.algorithms.sft import SFTConfig, SFTTrainer
from minirlhf.algorithms.unpaired import UnpairedConfig, UnpairedTrainer

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "DistillationConfig",
    "DistillationTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "OnlineDPOConfig",
    "OnlineDPOTrainer",
    "PPOConfig",
    "PPOTrainer",
    "ProcessRewardConfig",
    "ProcessRewardTrainer",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "UnpairedConfig",
    "UnpairedTrainer",
]
