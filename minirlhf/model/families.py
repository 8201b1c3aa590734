"""What tells one family's files from another's, as data: a row of FAMILIES, read by `config_from` and `config_to`.

A new family is a row here; if it computes something new, that is a setting of ModelConfig and a line in transformer.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from minirlhf.errors import InputError
from minirlhf.model.config import FULL, SLIDING, ModelConfig

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
# parts of our weights' names -> theirs
GEMMA_NAMES = {
    ".post_attention_layernorm.": ".pre_feedforward_layernorm.",
    ".attention_output_norm.": ".post_attention_layernorm.",
    ".mlp_output_norm.": ".post_feedforward_layernorm.",
}
OLMO_NAMES = {key: GEMMA_NAMES[key] for key in (".attention_output_norm.", ".mlp_output_norm.")}
GPT2_NAMES = {
    "model.embed_tokens.": "transformer.wte.",
    "model.embed_positions.": "transformer.wpe.",
    "model.layers.": "transformer.h.",
    "model.norm.": "transformer.ln_f.",
    ".input_layernorm.": ".ln_1.",
    ".post_attention_layernorm.": ".ln_2.",
    ".self_attn.qkv_proj.": ".attn.c_attn.",
    ".self_attn.o_proj.": ".attn.c_proj.",
    ".mlp.up_proj.": ".mlp.c_fc.",
    ".mlp.down_proj.": ".mlp.c_proj.",
}


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
    names: dict[str, str] = field(default_factory=dict)  # parts of our weights' names -> theirs
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
        names=GEMMA_NAMES,
    ),
    # Gemma team 2025, arXiv:2503.19786, the text model
    "gemma3_text": Family(
        "Gemma3",
        settings=GEMMA | {"qk_norm": "head"},
        keys={ours: key for ours, key in GEMMA_SIZES.items() if ours != "attn_logit_softcapping"},
        defaults=GEMMA_DEFAULTS | {"sliding_window": 4096, "rope_theta": 1_000_000.0, "rope_local_theta": 10_000.0},
        biases=BOTH,
        layer_types=all_but_each(6, "sliding_window_pattern"),
        names=GEMMA_NAMES,
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
        names=OLMO_NAMES,
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
        names=GPT2_NAMES,
        transposed=(".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight"),
    ),
}
# if null, from other fields
DERIVED = {"num_key_value_heads", "intermediate_size", "layer_types", "no_rope_layers", "mlp_only_layers"}
ALIASES = {"num_local_experts": "num_experts"}  # a newer writer's key -> the one that is read
NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
# What the transformer does and config.json may say otherwise: anything else there would mean other logits
FIXED = {
    "partial_rotary_factor": 1.0,
    "use_bidirectional_attention": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}
# what each way of scaling takes: config.json's key -> our field
ROPE_KEYS = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "dynamic": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_original_context",
        "low_freq_factor": "rope_low_freq_factor",
        "high_freq_factor": "rope_high_freq_factor",
    },
    "yarn": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_original_context",
        "attention_factor": "rope_attention_factor",
        "beta_fast": "rope_beta_fast",
        "beta_slow": "rope_beta_slow",
        "truncate": "rope_truncate",
    },
}


def family_of(model_type: object) -> Family:
    """The row of a model_type. Raises: InputError, with the nearest there is."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=1, cutoff=0.4)
    hint = f"; the nearest is {near[0]}" if near else ""
    raise InputError(f"model_type must be one of {', '.join(FAMILIES)}, got {model_type!r}{hint}")


def config_from(raw: dict[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig. Raises: InputError for what is missing, of the wrong type, or not computed here."""
    family = family_of(raw.get("model_type", "llama"))
    raw = {ALIASES.get(key, key): value for key, value in raw.items()}
    for name in NEEDED:
        if raw.get(family.keys[name]) is None:
            raise InputError(f"{family.keys[name]} is missing, without which there is no model")
    for name, needed in FIXED.items():
        if raw.get(name) not in (needed, None):
            raise InputError(f"{name} must be {needed}, the only one there is here, got {raw[name]!r}")
    known = {ours: raw[key] for ours, key in family.keys.items() if key in raw}
    for name in DERIVED & known.keys():
        if known[name] is None:
            del known[name]  # as if it were not there; any other null means: none, whatever the default
    if "hidden_act" in known:
        if known["hidden_act"] not in ACTIVATIONS:
            raise InputError(
                f"{family.keys['hidden_act']} must be one of {', '.join(ACTIVATIONS)}, got {known['hidden_act']!r}"
            )
        known["hidden_act"] = ACTIVATIONS[known["hidden_act"]]
    values = {"tie_word_embeddings": False, "max_position_embeddings": 2048} | family.defaults | known | family.settings
    values["model_type"] = raw.get("model_type", "llama")
    values |= dict.fromkeys(family.biases, bool(raw.get("attention_bias", False)))
    if family.mlp_bias:
        values["mlp_bias"] = bool(raw.get("mlp_bias", False))
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    values.setdefault(
        "intermediate_size", 4 * values["hidden_size"] if isinstance(values["hidden_size"], int) else None
    )
    if family.layer_types and not values.get("layer_types"):
        values["layer_types"] = family.layer_types({**family.defaults, **raw}, values["num_hidden_layers"])
    values["layer_types"] = tuple(values.get("layer_types", ()))
    if SLIDING not in values["layer_types"]:  # a window that no layer looks through
        values |= {"sliding_window": None, "layer_types": ()}
    values["no_rope_layers"] = _no_rope(raw, values["num_hidden_layers"]) if "no_rope_layers" in family.keys else ()
    values["mlp_only_layers"] = _mlp_only(raw, values) if "mlp_only_layers" in family.keys else ()
    values |= _rope_from(raw, values)
    _check_types(values)
    config = ModelConfig(**values)
    derived = config.head_width * config.num_attention_heads == config.hidden_size
    return dataclasses.replace(config, head_dim=None) if derived else config


def config_to(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> what config.json says of it. Raises: InputError for a mixture that is no family's."""
    family = family_of(config.model_type)
    values = {ours: getattr(config, ours) for ours in family.keys}
    values["head_dim"] = config.head_width
    values["hidden_act"] = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[config.hidden_act]
    if config.model_type == "gpt2" and config.hidden_act == "gelu_tanh":
        values["hidden_act"] = "gelu_new"
    if "no_rope_layers" in values:  # there: 1 for a layer that has positions
        values["no_rope_layers"] = [int(i not in config.no_rope_layers) for i in range(config.num_hidden_layers)]
    raw = {key: values[ours] for ours, key in family.keys.items()}
    raw = {key: list(value) if isinstance(value, tuple) else value for key, value in raw.items()}
    if raw.get("layer_types") == []:
        raw["layer_types"] = [FULL] * config.num_hidden_layers
    if family.window_switch:
        raw["use_sliding_window"] = config.sliding_window is not None
    if family.biases:
        raw["attention_bias"] = config.attention_bias
    if family.mlp_bias:
        raw["mlp_bias"] = config.mlp_bias
    if family.settings.get("embedding_scale"):  # Gemma's classes want these numbers, whether they matter or not
        raw["sliding_window"] = config.sliding_window or family.defaults["sliding_window"]
        raw["query_pre_attn_scalar"] = _whole(config.query_pre_attn_scalar or config.head_width)
    raw = {"model_type": config.model_type, **raw, **_rope_to(config)}
    back, plain = config_from(raw), dataclasses.replace(config, head_dim=_plain_head_dim(config))
    if config.query_pre_attn_scalar is None:
        plain = dataclasses.replace(plain, query_pre_attn_scalar=raw.get("query_pre_attn_scalar"))
    lost = [item.name for item in fields(ModelConfig) if getattr(back, item.name) != getattr(plain, item.name)]
    if lost:
        raise InputError(
            f"ModelConfig: {', '.join(lost)} cannot be said in a {config.model_type} config.json, and would be lost; "
            "choose the model_type that has them"
        )
    return raw


def name_there(model_type: str, name: str) -> str:
    """Our name of a weight -> the one in the family's files."""
    return _replaced(name, family_of(model_type).names)


def name_here(model_type: str, name: str) -> str:
    """The name in a family's files -> ours."""
    return _replaced(name, {theirs: ours for ours, theirs in family_of(model_type).names.items()})


def is_transposed(model_type: str, name_there: str) -> bool:
    """Is a weight of this name stored [in, out], where a Linear has [out, in]?"""
    return name_there.endswith(family_of(model_type).transposed or ("\0",))


def _replaced(name: str, table: dict[str, str]) -> str:
    if not table:
        return name
    return re.sub("|".join(map(re.escape, table)), lambda match: table[match[0]], name)


def _no_rope(raw: dict[str, Any], layers: int) -> tuple[int, ...]:
    """SmolLM3: config.json has 1 for a layer with positions, or every how manieth has none."""
    every = raw.get("no_rope_layer_interval") or 4
    flags = raw.get("no_rope_layers") or [int((layer + 1) % every != 0) for layer in range(layers)]
    if len(flags) != layers:
        raise InputError(f"no_rope_layers must have {layers} entries, one a layer, got {len(flags)}")
    return tuple(layer for layer in range(layers) if not flags[layer])


def _mlp_only(raw: dict[str, Any], values: dict[str, Any]) -> tuple[int, ...]:
    """Qwen3-MoE: the layers that config.json lists, and all but every decoder_sparse_step-th."""
    listed, step = values.get("mlp_only_layers", []), raw.get("decoder_sparse_step", 1)
    if not isinstance(listed, list) or not isinstance(step, int) or step < 1:
        raise InputError(f"needed a list of mlp_only_layers and decoder_sparse_step >= 1, got {listed!r} and {step!r}")
    return tuple(n for n in range(values["num_hidden_layers"]) if n in listed or (n + 1) % step)


def _rope_from(raw: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling, or rope_parameters, where newer writers keep both -> our rope_ fields."""
    if values.get("positions") == "learned":
        return {}
    found, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    if not isinstance(found, dict) or not isinstance(scaling, dict):
        raise InputError(f"rope_parameters must be an object, got {scaling if isinstance(found, dict) else found!r}")
    local = {}
    if FULL in found or SLIDING in found:  # one for each kind of layer
        found, local = (found.get(FULL) or {}) | scaling, found.get(SLIDING) or {}
        if local.get("rope_type", "default") != "default":
            raise InputError(f"rope_parameters of sliding layers must be of type default, got {local['rope_type']!r}")
    else:
        found = scaling or found  # whoever adds the older key to a newer file means it
    found = {key: value for key, value in found.items() if value is not None}
    theta = found.get("rope_theta", raw.get("rope_theta", values.get("rope_theta", ModelConfig.rope_theta)))
    rope = {"rope_theta": theta, "rope_type": found.get("rope_type", found.get("type", "default"))}
    if "rope_local_theta" in values:
        rope["rope_local_theta"] = local.get("rope_theta", raw.get("rope_local_base_freq", values["rope_local_theta"]))
    if rope["rope_type"] not in ROPE_KEYS:
        raise InputError(f"rope_parameters: type must be one of {', '.join(ROPE_KEYS)}, got {rope['rope_type']!r}")
    if rope["rope_type"] != "default" and not family_of(values["model_type"]).rope_scaling:
        raise InputError(f"rope_parameters: {values['model_type']} has type default alone, got {rope['rope_type']!r}")
    keys, original = ROPE_KEYS[rope["rope_type"]], "original_max_position_embeddings"
    harmless = {"rope_theta", "rope_type", "type", "finetuned", original}
    if raw.get(original) is not None:
        found[original] = raw[original]
    for key, value in found.items():
        if key in keys:
            rope[keys[key]] = value
        elif key not in harmless and (key, value) != ("partial_rotary_factor", 1):
            raise InputError(f"rope_parameters: {key} of type {rope['rope_type']} is not computed here; got {value!r}")
    if "factor" in keys and "rope_factor" not in rope:
        raise InputError(f"rope_parameters: type {rope['rope_type']} needs factor, got none")
    trained = values["max_position_embeddings"]
    if original in keys and rope.get("rope_original_context") == trained:  # who adds scaling often leaves the context
        rope["max_position_embeddings"] = int(trained * rope["rope_factor"])
    if rope["rope_type"] == "dynamic":  # there the context is the one trained for
        rope |= {"rope_original_context": trained, "max_position_embeddings": int(trained * rope["rope_factor"])}
    return rope


def _rope_to(config: ModelConfig) -> dict[str, Any]:
    if config.positions == "learned":
        return {}
    raw = {"rope_theta": config.rope_theta}
    if config.rope_local_theta is not None:
        raw["rope_local_base_freq"] = config.rope_local_theta
    if config.rope_type == "dynamic":
        raw["max_position_embeddings"] = config.rope_original_context or config.max_position_embeddings
    keys = ROPE_KEYS[config.rope_type]
    scaling = {key: getattr(config, ours) for key, ours in keys.items() if getattr(config, ours) is not None}
    raw["rope_scaling"] = {"rope_type": config.rope_type, **scaling} if keys else None
    return raw


def _whole(number: float) -> float:
    """An int if it is one."""
    return int(number) if number == int(number) else number


def _plain_head_dim(config: ModelConfig) -> int | None:
    return None if config.head_width * config.num_attention_heads == config.hidden_size else config.head_dim


def _check_types(values: dict[str, Any]) -> None:
    """Raise InputError for a value of another type than the field's: "64" for 64."""
    for item in fields(ModelConfig):
        kind, _, optional = item.type.partition(" | ")
        if item.name not in values or (optional and values[item.name] is None):
            continue
        wanted = {"int": int, "float": (int, float), "bool": bool}.get(kind)
        value = values[item.name]
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool")):
            raise InputError(f"{item.name} must be {kind}, got {value!r}")
