"""The transformer, and the policy, value model and reward model made of it."""

from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import Policy, RewardModel, TokenOutputs, ValueModel, copy_of
from minirlhf.model.pretrained import load_policy, load_pretrained, load_reward_model, save_pretrained
from minirlhf.model.transformer import KVCache, Transformer

__all__ = [
    "KVCache",
    "ModelConfig",
    "Policy",
    "RewardModel",
    "TokenOutputs",
    "Transformer",
    "ValueModel",
    "copy_of",
    "load_policy",
    "load_pretrained",
    "load_reward_model",
    "save_pretrained",
]
