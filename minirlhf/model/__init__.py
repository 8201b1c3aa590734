"""The transformer, and the policy, value and reward models built on it."""

from minirlhf.lazy import lazy
from minirlhf.model.cache import KVCache
from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import Policy, RewardModel, TokenOutputs, ValueModel, copy_of
from minirlhf.model.transformer import Transformer

# names of leaves
LEAVES = {
    "minirlhf.adapters.lora": "LoRAConfig adapter_names adapter_view apply_lora merge_lora reference_of",
    "minirlhf.adapters.quantised": "memory_report plain quantise_linears",
    "minirlhf.adapters.select": "count_parameters freeze",
    "minirlhf.model.experts": "recorded_routing",
    "minirlhf.model.mixture": "GeometricMixture move_towards",
    "minirlhf.model.process_reward": "ProcessRewardModel",
    "minirlhf.model.vocabulary": "resize_embeddings",
    "minirlhf.pretrained": "load_adapter load_policy load_pretrained load_reward_model save_adapter save_pretrained",
}
__getattr__, __dir__ = lazy(__name__, LEAVES)
