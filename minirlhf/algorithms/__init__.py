"""Each file holds an algorithm: its settings, and a trainer whose step() reads like the paper."""

from minirlhf.algorithms.ppo import PPOConfig, PPOTrainer
from minirlhf.algorithms.reward_model import RewardConfig, RewardTrainer
from minirlhf.algorithms.sft import SFTConfig, SFTTrainer
from minirlhf.lazy import lazy

# names of leaves
LEAVES = {
    "minirlhf.algorithms.classifier": "ClassifierTrainer",
    "minirlhf.algorithms.distillation": "DistillationConfig DistillationTrainer",
    "minirlhf.algorithms.dpo": "DPOConfig DPOTrainer",
    "minirlhf.algorithms.grpo": "GRPOConfig GRPOTrainer",
    "minirlhf.algorithms.online_dpo": "OnlineDPOConfig OnlineDPOTrainer",
    "minirlhf.algorithms.process_reward": "ProcessRewardConfig ProcessRewardTrainer",
    "minirlhf.algorithms.unpaired": "UnpairedConfig UnpairedTrainer",
}
__getattr__, __dir__ = lazy(__name__, LEAVES)
