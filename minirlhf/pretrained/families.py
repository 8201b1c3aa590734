"""What tells one family's files from another's, as data: a row of FAMILIES, read by `config_from` and `config_to`.

A new family is a row here; if it computes something new, that is a setting of ModelConfig and a line in transformer.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minirlhf.errors import InputError
from minirlhf.model.config import FULL, SLIDING

# ModelConfig's field -> config.json's key
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "hidden_act": "hidden_act",
}
WINDOW_SIZES = SIZES | {"sliding_window": "sliding_window", "layer_types": "layer_types"}
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
GEMMA_SIZES = WINDOW_SIZES | {
    "hidden_act": "hidden_activation",
    "query_pre_attn_scalar": "query_pre_attn_scalar",
    "final_logit_softcapping": "final_logit_softcapping",
    "attn_logit_softcapping": "attn_logit_softcapping",
}
EXPERT_SIZES = SIZES | {
    "num_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "moe_intermediate_size": "moe_intermediate_size",
    "norm_topk_prob": "norm_topk_prob",
    "mlp_only_layers": "mlp_only_layers",
    "router_aux_loss_coef": "router_aux_loss_coef",
    "sliding_window": "sliding_window",
}
EXPERT_DEFAULTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False}
GEMMA = {"norm": "rms_plus_one", "norm_after": True, "embedding_scale": True}
GEMMA_DEFAULTS = {"tie_word_embeddings": True, "hidden_act": "gelu_tanh", "query_pre_attn_scalar": 256, "head_dim": 256}


def every_layer(raw: dict[str, Any], layers: int) -> tuple[str, ...]:
    """Mistral, Phi-3: a window, if there is one, is every layer's."""
    return () if raw.get("sliding_window") is None else (SLIDING,) * layers


def upper_layers(raw: dict[str, Any], layers: int) -> tuple[str, ...]:
    """Qwen: the layers from max_window_layers on, if use_sliding_window says so."""
    if not raw.get("use_sliding_window") or raw.get("sliding_window", 4096) is None:
        return ()
    first = raw.get("max_window_layers", 28)
    return tuple(SLIDING if layer >= first else FULL for layer in range(layers))


def every_layer_if_asked(raw: dict[str, Any], layers: int) -> tuple[str, ...]:
    """Qwen3-MoE: as Mistral, if use_sliding_window says so."""
    return every_layer(raw, layers) if raw.get("use_sliding_window") else ()


def layers_without_positions(raw: dict[str, Any], layers: int) -> tuple[str, ...]:
    """SmolLM3: those, if use_sliding_window says so."""
    if not raw.get("use_sliding_window") or raw.get("sliding_window") is None:
        return ()
    without = _no_rope(raw, layers)
    return tuple(SLIDING if layer in without else FULL for layer in range(layers))


def all_but_each(period: int, key: str | None = None) -> Callable[[dict[str, Any], int], tuple[str, ...]]:
    """Gemma: one full layer after every period - 1 sliding ones; config.json's `key` may say another period."""

    def layer_types(raw: dict[str, Any], layers: int) -> tuple[str, ...]:
        every = raw.get(key) or period
        return tuple(SLIDING if (layer + 1) % every else FULL for layer in range(layers))

    return layer_types


@dataclass(frozen=True)
class Family:
    """How one family's folders differ from Llama's."""

    architecture: str  # what its classes' names begin with
    settings: dict[str, Any] = field(default_factory=dict)  # the same in all of its models
    keys: dict[str, str] = field(default_factory=lambda: SIZES)  # ModelConfig's field -> config.json's key
    defaults: dict[str, Any] = field(default_factory=dict)  # where config.json says nothing
    biases: tuple[str, ...] = ()  # what config.json's attention_bias turns on
    mlp_bias: bool = False  # may config.json ask for it?
    window_switch: bool = False  # does config.json say by use_sliding_window whether there is a window?
    rope_scaling: bool = True  # may positions be scaled?
    layer_types: Callable[[dict[str, Any], int], tuple[str, ...]] | None = None  # (config.json, layers) ->
    transposed: tuple[str, ...] = ()  # how names of weights end that are stored [in, out]


BOTH = ("attention_bias", "output_bias")
FAMILIES: dict[str, Family] = {
    # Touvron et al. 2023, arXiv:2302.13971 and 2307.09288; Llama 3: arXiv:2407.21783
    "llama": Family("Llama", biases=BOTH, mlp_bias=True),
    # Jiang et al. 2023, arXiv:2310.06825
    "mistral": Family(
        "Mistral",
        keys=SIZES | {"sliding_window": "sliding_window"},
        defaults={"sliding_window": 4096},
        layer_types=every_layer,
    ),
    # Yang et al. 2024, arXiv:2407.10671 and 2412.15115
    "qwen2": Family(
        "Qwen2",
        settings={"attention_bias": True},
        keys=WINDOW_SIZES,
        layer_types=upper_layers,
        window_switch=True,
    ),
    # Yang et al. 2025, arXiv:2505.09388
    "qwen3": Family(
        "Qwen3",
        settings={"qk_norm": "head"},
        keys=WINDOW_SIZES,
        defaults={"head_dim": 128},
        biases=BOTH,
        layer_types=upper_layers,
        window_switch=True,
    ),
    # the same paper: mixtures of experts
    "qwen3_moe": Family(
        "Qwen3Moe",
        settings={"qk_norm": "head"},
        keys=EXPERT_SIZES,
        defaults=EXPERT_DEFAULTS | {"sliding_window": 4096},
        biases=BOTH,
        layer_types=every_layer_if_asked,
        window_switch=True,
    ),
    # Gemma team 2024, arXiv:2408.00118
    "gemma2": Family(
        "Gemma2",
        settings=GEMMA,
        keys=GEMMA_SIZES,
        defaults=GEMMA_DEFAULTS
        | {"sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        biases=BOTH,
        layer_types=all_but_each(2),
    ),
    # Gemma team 2025, arXiv:2503.19786, the text model
    "gemma3_text": Family(
        "Gemma3",
        settings=GEMMA | {"qk_norm": "head"},
        keys={ours: key for ours, key in GEMMA_SIZES.items() if ours != "attn_logit_softcapping"},
        defaults=GEMMA_DEFAULTS | {"sliding_window": 4096, "rope_theta": 1_000_000.0, "rope_local_theta": 10_000.0},
        biases=BOTH,
        layer_types=all_but_each(6, "sliding_window_pattern"),
    ),
    # Abdin et al. 2024, arXiv:2404.14219
    "phi3": Family(
        "Phi3",
        settings={"fused_projections": True},
        keys=SIZES | {"sliding_window": "sliding_window"},
        defaults={"rms_norm_eps": 1e-5},
        layer_types=every_layer,
        rope_scaling=False,
    ),
    # Bakouch et al. 2025, huggingface.co/blog/smollm3
    "smollm3": Family(
        "SmolLM3",
        keys=WINDOW_SIZES | {"no_rope_layers": "no_rope_layers"},
        defaults={"tie_word_embeddings": True, "rope_theta": 2_000_000.0},
        biases=BOTH,
        mlp_bias=True,
        layer_types=layers_without_positions,
        window_switch=True,
    ),
    # OLMo team 2024, arXiv:2501.00656
    "olmo2": Family(
        "Olmo2",
        settings={"norm_before": False, "norm_after": True, "qk_norm": "width"},
        defaults={"rms_norm_eps": 1e-5},
        biases=BOTH,
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


def family_of(model_type: object) -> Family:
    """The row of a model_type. Raises: InputError, with the nearest there is."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=1, cutoff=0.4)
    hint = f"; the nearest is {near[0]}" if near else ""
    raise InputError(f"model_type must be one of {', '.join(FAMILIES)}, got {model_type!r}{hint}")


def is_transposed(model_type: str, name_in_family: str) -> bool:
    """Is a weight of this name stored [in, out], where a Linear has [out, in]?"""
    return name_in_family.endswith(family_of(model_type).transposed or ("\0",))


def _no_rope(raw: dict[str, Any], layers: int) -> tuple[int, ...]:
    """SmolLM3: config.json has 1 for a layer with positions, or every how manieth has none."""
    every = raw.get("no_rope_layer_interval") or 4
    flags = raw.get("no_rope_layers") or [int((layer + 1) % every != 0) for layer in range(layers)]
    if len(flags) != layers:
        raise InputError(f"no_rope_layers must have {layers} entries, one a layer, got {len(flags)}")
    return tuple(layer for layer in range(layers) if not flags[layer])
