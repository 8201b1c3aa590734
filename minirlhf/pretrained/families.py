"""The differences between the folders of model families, as data: one row of FAMILIES for each model_type.

To add a family, add a row. If the family computes something new, also add a setting to ModelConfig and a line to the
transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.model.config import FULL, SLIDING, ModelConfig
from minirlhf.nearest import nearest
from minirlhf.pretrained.safe import check_type

Raw = dict[str, Any]  # config.json; config_json.py has checked the types of all values that are read here
NUMBERS = {"int": int, "float": float, "bool": bool}
# ModelConfig's field -> (type of its value in a JSON file, may it be null)
FIELD_TYPES: dict[str, tuple[type, bool]] = {
    item.name: (NUMBERS.get(item.type.split(" | ")[0], list if "tuple" in item.type else str), "None" in item.type)
    for item in fields(ModelConfig)
}


def same(*names: str) -> dict[str, str]:
    """Fields of ModelConfig that have the same name in config.json."""
    return {name: name for name in names}


# ModelConfig's field -> config.json's key
SIZES = same(
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "hidden_act",
)
WINDOW_SIZES = SIZES | same("sliding_window", "layer_types")
GEMMA_SIZES = (
    WINDOW_SIZES
    | {"hidden_act": "hidden_activation"}
    | same("query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping")
)
EXPERT_SIZES = SIZES | same(
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "mlp_only_layers",
    "router_aux_loss_coef",
    "sliding_window",
)
GPT2_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
    "tie_word_embeddings": "tie_word_embeddings",
    "hidden_act": "activation_function",
}
EXPERT_DEFAULTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False}
GEMMA = {"norm": "rms_plus_one", "norm_after": True, "embedding_scale": True}
GEMMA_DEFAULTS = {"tie_word_embeddings": True, "hidden_act": "gelu_tanh", "query_pre_attn_scalar": 256, "head_dim": 256}
ATTENTION_BIASES = ("attention_bias", "output_bias")


# Settings that differ from layer to layer: (config.json, number of layers) -> the setting


def all_sliding(raw: Raw, layers: int) -> tuple[str, ...]:
    """Mistral, Phi-3: every layer has the window, if config.json gives a window."""
    return () if raw.get("sliding_window") is None else (SLIDING,) * layers


def all_sliding_if_enabled(raw: Raw, layers: int) -> tuple[str, ...]:
    """Qwen3-MoE: as Mistral, if `use_sliding_window` is true."""
    return all_sliding(raw, layers) if raw.get("use_sliding_window") else ()


def upper_sliding_if_enabled(raw: Raw, layers: int) -> tuple[str, ...]:
    """Qwen: the layers from `max_window_layers` on have the window, if `use_sliding_window` is true."""
    if not raw.get("use_sliding_window") or raw.get("sliding_window", 4096) is None:
        return ()
    first = raw.get("max_window_layers", 28)
    return tuple(SLIDING if layer >= first else FULL for layer in range(layers))


def without_rope_sliding_if_enabled(raw: Raw, layers: int) -> tuple[str, ...]:
    """SmolLM3: the layers without RoPE have the window, if `use_sliding_window` is true."""
    if not raw.get("use_sliding_window") or raw.get("sliding_window") is None:
        return ()
    without_rope = layers_without_rope(raw, layers)
    return tuple(SLIDING if layer in without_rope else FULL for layer in range(layers))


def last_full_in_each(period: int, key: str | None = None) -> Callable[[Raw, int], tuple[str, ...]]:
    """Gemma: period - 1 sliding layers, then one full layer. config.json's `key` may set another period."""

    def layer_types(raw: Raw, layers: int) -> tuple[str, ...]:
        length = raw.get(key, period)
        return tuple(SLIDING if (layer + 1) % length else FULL for layer in range(layers))

    return layer_types


def layers_without_rope(raw: Raw, layers: int) -> tuple[int, ...]:
    """SmolLM3: config.json lists 1 (RoPE) or 0 (no RoPE) per layer, or gives `no_rope_layer_interval`."""
    interval, flags = raw.get("no_rope_layer_interval", 4), raw.get("no_rope_layers")
    if flags is None:
        flags = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if len(flags) != layers or {*flags} - {0, 1}:
        raise InputError(f"no_rope_layers must have 0 or 1 for each of the {layers} layers, got {shown(flags)}")
    return tuple(layer for layer in range(layers) if not flags[layer])


def layers_without_experts(raw: Raw, layers: int) -> tuple[int, ...]:
    """Qwen3-MoE: all layers in `mlp_only_layers`, and all but each `decoder_sparse_step`-th layer."""
    listed, step = raw.get("mlp_only_layers") or [], raw.get("decoder_sparse_step", 1)
    return tuple(layer for layer in range(layers) if layer in listed or (layer + 1) % step)


@dataclass(frozen=True)
class Family:
    """How the folders of a family differ from Llama's."""

    architecture: str  # the first part of the family's class names
    settings: dict[str, Any] = field(default_factory=dict)  # ModelConfig's fields that all models of the family share
    keys: dict[str, str] = field(default_factory=lambda: SIZES)  # ModelConfig's field -> config.json's key
    defaults: dict[str, Any] = field(default_factory=dict)  # used where config.json has no value
    biases: tuple[str, ...] = ()  # ModelConfig's fields that config.json's attention_bias sets
    mlp_bias: bool = False  # config.json may have mlp_bias
    window_switch: bool = False  # config.json has use_sliding_window
    rope_scaling: bool = True  # config.json may scale positions
    layer_types: Callable[[Raw, int], tuple[str, ...]] | None = None  # used where config.json has no layer_types
    layer_lists: dict[str, Callable[[Raw, int], tuple[int, ...]]] = field(default_factory=dict)  # other layer settings
    transposed: tuple[str, ...] = ()  # ends of the names of weights that are stored as [in, out]


FAMILIES: dict[str, Family] = {
    # Touvron et al. 2023, arXiv:2302.13971 and 2307.09288; Llama 3: arXiv:2407.21783
    "llama": Family("Llama", biases=ATTENTION_BIASES, mlp_bias=True),
    # Jiang et al. 2023, arXiv:2310.06825
    "mistral": Family(
        "Mistral",
        keys=SIZES | same("sliding_window"),
        defaults={"sliding_window": 4096},
        layer_types=all_sliding,
    ),
    # Yang et al. 2024, arXiv:2407.10671 and 2412.15115
    "qwen2": Family(
        "Qwen2",
        settings={"attention_bias": True},
        keys=WINDOW_SIZES,
        layer_types=upper_sliding_if_enabled,
        window_switch=True,
    ),
    # Yang et al. 2025, arXiv:2505.09388
    "qwen3": Family(
        "Qwen3",
        settings={"qk_norm": "head"},
        keys=WINDOW_SIZES,
        defaults={"head_dim": 128},
        biases=ATTENTION_BIASES,
        layer_types=upper_sliding_if_enabled,
        window_switch=True,
    ),
    # the same paper: mixtures of experts
    "qwen3_moe": Family(
        "Qwen3Moe",
        settings={"qk_norm": "head"},
        keys=EXPERT_SIZES,
        defaults=EXPERT_DEFAULTS | {"sliding_window": 4096},
        biases=ATTENTION_BIASES,
        layer_types=all_sliding_if_enabled,
        layer_lists={"mlp_only_layers": layers_without_experts},
        window_switch=True,
    ),
    # Gemma team 2024, arXiv:2408.00118
    "gemma2": Family(
        "Gemma2",
        settings=GEMMA,
        keys=GEMMA_SIZES,
        defaults=GEMMA_DEFAULTS
        | {"sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        biases=ATTENTION_BIASES,
        layer_types=last_full_in_each(2),
    ),
    # Gemma team 2025, arXiv:2503.19786, the text model
    "gemma3_text": Family(
        "Gemma3",
        settings=GEMMA | {"qk_norm": "head"},
        keys={ours: key for ours, key in GEMMA_SIZES.items() if ours != "attn_logit_softcapping"},
        defaults=GEMMA_DEFAULTS | {"sliding_window": 4096, "rope_theta": 1_000_000.0, "rope_local_theta": 10_000.0},
        biases=ATTENTION_BIASES,
        layer_types=last_full_in_each(6, "sliding_window_pattern"),
    ),
    # Abdin et al. 2024, arXiv:2404.14219
    "phi3": Family(
        "Phi3",
        settings={"fused_projections": True},
        keys=SIZES | same("sliding_window"),
        defaults={"rms_norm_eps": 1e-5},
        layer_types=all_sliding,
        rope_scaling=False,
    ),
    # Bakouch et al. 2025, huggingface.co/blog/smollm3
    "smollm3": Family(
        "SmolLM3",
        keys=WINDOW_SIZES | same("no_rope_layers"),
        defaults={"tie_word_embeddings": True, "rope_theta": 2_000_000.0},
        biases=ATTENTION_BIASES,
        mlp_bias=True,
        layer_types=without_rope_sliding_if_enabled,
        layer_lists={"no_rope_layers": layers_without_rope},
        window_switch=True,
    ),
    # OLMo team 2024, arXiv:2501.00656
    "olmo2": Family(
        "Olmo2",
        settings={"norm_before": False, "norm_after": True, "qk_norm": "width"},
        defaults={"rms_norm_eps": 1e-5},
        biases=ATTENTION_BIASES,
    ),
    # Radford et al. 2019
    "gpt2": Family(
        "GPT2",
        settings={
            "norm": "layer",
            "gated_mlp": False,
            "fused_projections": True,
            "positions": "learned",
            "attention_bias": True,
            "output_bias": True,
            "mlp_bias": True,
        },
        keys=GPT2_SIZES,
        defaults={"tie_word_embeddings": True, "hidden_act": "gelu_tanh", "rms_norm_eps": 1e-5},
        transposed=(".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight"),
    ),
}


# model_type -> the function that reads its folders: models of another shape
ELSEWHERE = dict.fromkeys(("t5", "mt5"), "minirlhf.extras.seq2seq.load_seq2seq")


def family_of(model_type: object) -> Family:
    """The row of a model_type. Raises: InputError for an unknown model_type; it names the nearest known model_type."""
    check_type("model_type", model_type, str)
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reader = ELSEWHERE.get(model_type)
    advice = f"; {reader} reads this folder" if reader else nearest(model_type, FAMILIES)
    raise InputError(f"model_type must be one of {', '.join(FAMILIES)}, got {shown(model_type)}{advice}")


def is_transposed(model_type: str, name_in_family: str) -> bool:
    """Does the family store this weight as [in, out]? A torch Linear has [out, in]."""
    return name_in_family.endswith(family_of(model_type).transposed)
