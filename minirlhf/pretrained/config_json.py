"""config.json <-> ModelConfig."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from typing import Any

from minirlhf.errors import InputError
from minirlhf.model.config import FULL, SLIDING, ModelConfig
from minirlhf.pretrained.families import _no_rope, family_of

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
