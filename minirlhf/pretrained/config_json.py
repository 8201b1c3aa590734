"""config.json <-> ModelConfig."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.model.config import FULL, MOST_LAYERS, SLIDING, ModelConfig
from minirlhf.pretrained.families import FIELD_TYPES, Family, family_of
from minirlhf.pretrained.rope_json import rope_from, rope_to
from minirlhf.pretrained.safe import check_type, read_json

REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
DEFAULTS = {"tie_word_embeddings": False, "max_position_embeddings": 2048}
# Null for one of these fields in config.json: other fields decide its value. Null for any other field means "none".
DERIVED = {"num_key_value_heads", "intermediate_size", "layer_types", "no_rope_layers", "mlp_only_layers"}
ALIASES = {"num_local_experts": "num_experts"}  # key of newer files -> the key that is read
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
QUANTISED = ("quantization_config", "compression_config", "quantization")  # keys of folders with quantised weights
# Files beside config.json in which older tools wrote these settings -> the tool's method
QUANTISED_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
# Keys that only vision-language models have: LLaVA, Qwen-VL, Gemma 3, Idefics, ...; Phi-3 vision; Qwen-VL of 2023
VISION = ("vision_config", "vision_tower", "mm_vision_tower", "img_processor", "visual")
# The only values that the transformer supports. Any other value would give other logits, so it is refused.
SUPPORTED = {
    "partial_rotary_factor": 1.0,
    "use_bidirectional_attention": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}
# Keys beside the family's keys -> (type, smallest number). Null means that the file does not have the key.
TYPES: dict[str, tuple[type, int]] = {
    "attention_bias": (bool, 0),
    "mlp_bias": (bool, 0),
    "use_sliding_window": (bool, 0),
    "max_window_layers": (int, 0),
    "sliding_window_pattern": (int, 1),
    "no_rope_layer_interval": (int, 1),
    "decoder_sparse_step": (int, 1),
}


def config_from(raw: dict[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig. Raises: InputError if a setting is missing, has a wrong type or is not supported."""
    model_type = raw.get("model_type", "llama")
    if any(key in raw for key in VISION):
        raise InputError(
            f"model_type {shown(model_type)}: a vision-language model, and a decoder would not see its images; take "
            "the folder of a model of text, or train a small model with images: docs/vision.md"
        )
    family = family_of(model_type)
    raw = _with_one_name(raw)
    _check_supported(raw, family)
    _check_types(raw, family)
    values = DEFAULTS | family.defaults | _listed(raw, family) | family.settings | _biases(raw, family)
    values["model_type"] = model_type
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    values.setdefault("intermediate_size", 4 * values["hidden_size"])
    values |= _layers(raw, values, family)
    values |= rope_from(raw, values)
    return _without_plain_head_dim(ModelConfig(**values))


def config_to(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the settings for config.json. Raises: InputError if config.json cannot hold all of them."""
    family = family_of(config.model_type)
    values = {ours: getattr(config, ours) for ours in family.keys}
    values["head_dim"] = config.head_width
    values["hidden_act"] = {ours: key for key, ours in reversed(ACTIVATIONS.items())}[config.hidden_act]
    if config.model_type == "gpt2" and config.hidden_act == "gelu_tanh":
        values["hidden_act"] = "gelu_new"
    if "no_rope_layers" in values:  # config.json has 1 for a layer with RoPE
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
    if family.settings.get("embedding_scale"):  # other tools need both keys, even if the model uses neither
        raw["sliding_window"] = config.sliding_window or family.defaults["sliding_window"]
        raw["query_pre_attn_scalar"] = _int_if_whole(config.query_pre_attn_scalar or config.head_width)
    raw = {"model_type": config.model_type, **raw, **rope_to(config)}
    _check_nothing_lost(config, raw)
    return raw


def _with_one_name(raw: dict[str, Any]) -> dict[str, Any]:
    """config.json with older names for the keys of ALIASES, and without the nulls of TYPES."""
    for newer, older in ALIASES.items():
        if newer in raw and older in raw and raw[newer] != raw[older]:
            raise InputError(f"{newer} and {older} differ: {shown(raw[newer])} and {shown(raw[older])}; keep one")
    raw = {ALIASES.get(key, key): value for key, value in raw.items()}
    return {key: value for key, value in raw.items() if value is not None or key not in TYPES}


def _check_types(raw: dict[str, Any], family: Family) -> None:
    """Check the type and the bounds of every value before any value is used. Raises: InputError, such as for "64"."""
    for key, (wanted, least) in TYPES.items():
        if key in raw:
            check_type(key, raw[key], wanted, least)
    for ours, key in family.keys.items():
        wanted, optional = FIELD_TYPES[ours]
        if key in raw and not (raw[key] is None and (optional or ours in DERIVED)):
            check_type(key, raw[key], wanted, 0)
    check_type(family.keys["num_hidden_layers"], raw[family.keys["num_hidden_layers"]], int, 1, MOST_LAYERS)
    for key, wanted in (("layer_types", str), ("no_rope_layers", int), ("mlp_only_layers", int)):
        for entry in (key in family.keys.values() and raw.get(key)) or ():
            check_type(f"each entry of {key}", entry, wanted, 0, MOST_LAYERS)


def _check_supported(raw: dict[str, Any], family: Family) -> None:
    """Raise InputError if a required setting is missing or the transformer does not support a setting."""
    for name in QUANTISED:
        if found := raw.get(name):
            raise _quantised(name, found, "an unnamed method")
    for name in REQUIRED:
        if raw.get(family.keys[name]) is None:
            raise InputError(f"{family.keys[name]} is missing; a model needs it")
    for name, supported in SUPPORTED.items():
        if raw.get(name) not in (supported, None):
            raise InputError(f"{name} must be {supported}, no other value is supported; got {shown(raw[name])}")


def check_no_quantisation_beside(folder: Path) -> None:
    """Raise InputError for a folder with quantised weights that says so in a file beside config.json."""
    for name, usual in QUANTISED_FILES.items():
        if (folder / name).is_file():
            found = None
            with suppress(InputError):
                found = read_json(folder / name, "the settings of quantised weights")
            raise _quantised(str(folder / name), found, usual)


def _quantised(name: str, found: Any, unnamed: str) -> InputError:
    method = found.get("quant_method") if isinstance(found, dict) else None
    how = shown(method)[1:-1] if isinstance(method, str) else unnamed
    return InputError(f"{name}: the weights are quantised with {how}; take the unquantised folder of this model")


def _listed(raw: dict[str, Any], family: Family) -> dict[str, Any]:
    """The fields that config.json has under the family's keys."""
    listed = {ours: raw[key] for ours, key in family.keys.items() if key in raw}
    listed = {name: value for name, value in listed.items() if value is not None or name not in DERIVED}
    if "hidden_act" in listed:
        activation = listed["hidden_act"]
        if activation not in ACTIVATIONS:
            raise InputError(
                f"{family.keys['hidden_act']} must be one of {', '.join(ACTIVATIONS)}, got {shown(activation)}"
            )
        listed["hidden_act"] = ACTIVATIONS[activation]
    return listed


def _biases(raw: dict[str, Any], family: Family) -> dict[str, bool]:
    biases = dict.fromkeys(family.biases, bool(raw.get("attention_bias", False)))
    return biases | ({"mlp_bias": bool(raw.get("mlp_bias", False))} if family.mlp_bias else {})


def _layers(raw: dict[str, Any], values: dict[str, Any], family: Family) -> dict[str, Any]:
    """The settings that differ from layer to layer."""
    layers = values["num_hidden_layers"]
    layer_types = values.get("layer_types")
    if family.layer_types and not layer_types:
        layer_types = family.layer_types({**family.defaults, **raw}, layers)
    found = {"layer_types": tuple(layer_types or ())}
    if SLIDING not in found["layer_types"]:  # no layer uses the window
        found = {"layer_types": (), "sliding_window": None}
    return found | {name: function(raw, layers) for name, function in family.layer_lists.items()}


def _check_nothing_lost(config: ModelConfig, raw: dict[str, Any]) -> None:
    """Raise InputError unless `config_from(raw)` gives the config back."""
    expected = _without_plain_head_dim(config)
    if config.query_pre_attn_scalar is None:
        expected = dataclasses.replace(expected, query_pre_attn_scalar=raw.get("query_pre_attn_scalar"))
    found, names = config_from(raw), [item.name for item in dataclasses.fields(ModelConfig)]
    if lost := [name for name in names if getattr(found, name) != getattr(expected, name)]:
        raise InputError(
            f"ModelConfig: {', '.join(lost)} cannot be stored in a {config.model_type} config.json, and would be lost; "
            "choose a model_type that has them"
        )


def _without_plain_head_dim(config: ModelConfig) -> ModelConfig:
    """The config, with head_dim None if it equals hidden_size / num_attention_heads."""
    plain = config.head_width * config.num_attention_heads == config.hidden_size
    return dataclasses.replace(config, head_dim=None) if plain else config


def _int_if_whole(number: float) -> float:
    return int(number) if number == int(number) else number
