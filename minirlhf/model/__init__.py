"""The transformer, and the policy, value model and reward model made of it."""

from minirlhf.model.adapter_files import load_adapter, save_adapter
from minirlhf.model.adapters import (
    LoRAConfig,
    adapter_names,
    adapter_view,
    apply_lora,
    count_parameters,
    disabled,
    freeze,
    merge_lora,
    reference_of,
)
from minirlhf.model.config import ModelConfig
from minirlhf.model.experts import recorded_routing
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
from minirlhf.model.quantised import memory_report, plain, quantise_linears
from minirlhf.model.transformer import KVCache, Transformer
from minirlhf.model.vocabulary import resize_embeddings

__all__ = [
    "GeometricMixture",
    "KVCache",
    "LoRAConfig",
    "ModelConfig",
    "Policy",
    "ProcessRewardModel",
    "RewardModel",
    "TokenOutputs",
    "Transformer",
    "ValueModel",
    "adapter_names",
    "adapter_view",
    "apply_lora",
    "copy_of",
    "count_parameters",
    "disabled",
    "freeze",
    "load_adapter",
    "load_policy",
    "load_pretrained",
    "load_reward_model",
    "memory_report",
    "merge_lora",
    "move_towards",
    "plain",
    "quantise_linears",
    "recorded_routing",
    "reference_of",
    "resize_embeddings",
    "save_adapter",
    "save_pretrained",
]
