"""The transformer, and the policy, value and reward models built on it."""

import importlib
from typing import Any

from minirlhf.model.cache import KVCache
from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import (
    Policy,
    ProcessRewardModel,
    RewardModel,
    TokenOutputs,
    ValueModel,
    copy_of,
    move_towards,
)
from minirlhf.model.transformer import Transformer

# Names of leaves: their files are loaded on first use, so that the core does not need them.
LEAVES = {
    "minirlhf.adapters.lora": "LoRAConfig adapter_names adapter_view apply_lora merge_lora reference_of",
    "minirlhf.adapters.quantised": "memory_report plain quantise_linears",
    "minirlhf.adapters.select": "count_parameters freeze",
    "minirlhf.model.experts": "recorded_routing",
    "minirlhf.model.mixture": "GeometricMixture",
    "minirlhf.model.vocabulary": "resize_embeddings",
    "minirlhf.pretrained.adapter_files": "load_adapter save_adapter",
    "minirlhf.pretrained.weights": "load_policy load_pretrained load_reward_model save_pretrained",
}


def __getattr__(name: str) -> Any:
    for module, names in LEAVES.items():
        if name in names.split():
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *" ".join(LEAVES.values()).split()])
