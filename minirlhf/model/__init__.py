"""The transformer, and the policy, value model and reward model made of it."""

from minirlhf.model.config import ModelConfig
from minirlhf.model.mixture import GeometricMixture
from minirlhf.model.policy import (
    Policy,
    ProcessRewardModel,
    RewardModel,
    TokenOutputs,
    ValueModel,
    copy_of,
    move_towards,
)
from minirlhf.model.pretrained import load_policy, load_pretrained, load_reward_model, save_pretrained
from minirlhf.model.transformer import KVCache, Transformer

__all__ = [
    "GeometricMixture",
    "KVCache",
    "ModelConfig",
    "Policy",
    "ProcessRewardModel",
    "RewardModel",
    "TokenOutputs",
    "Transformer",
    "ValueModel",
    "copy_of",
    "load_policy",
    "load_pretrained",
    "load_reward_model",
    "move_towards",
    "save_pretrained",
]
