"""One algorithm a file: its settings, and a trainer whose step() reads like the paper."""

import importlib
from typing import Any

from minirlhf.algorithms.ppo import PPOConfig, PPOTrainer
from minirlhf.algorithms.reward_model import RewardConfig, RewardTrainer
from minirlhf.algorithms.sft import SFTConfig, SFTTrainer

# Names of leaves: their files are loaded on first use, so that the core does not need them.
LEAVES = {
    "minirlhf.algorithms.distillation": "DistillationConfig DistillationTrainer",
    "minirlhf.algorithms.dpo": "DPOConfig DPOTrainer",
    "minirlhf.algorithms.grpo": "GRPOConfig GRPOTrainer",
    "minirlhf.algorithms.online_dpo": "OnlineDPOConfig OnlineDPOTrainer",
    "minirlhf.algorithms.process_reward": "ProcessRewardConfig ProcessRewardTrainer",
    "minirlhf.algorithms.unpaired": "UnpairedConfig UnpairedTrainer",
}


def __getattr__(name: str) -> Any:
    for module, names in LEAVES.items():
        if name in names.split():
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *" ".join(LEAVES.values()).split()])
