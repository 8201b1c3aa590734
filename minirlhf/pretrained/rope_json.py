"""Rotary positions in config.json <-> ModelConfig's rope_ fields.

Older files have rope_theta and rope_scaling, newer files have both in rope_parameters.
"""

from __future__ import annotations

from typing import Any

from minirlhf.errors import InputError
from minirlhf.model.config import FULL, SLIDING, ModelConfig
from minirlhf.pretrained.families import family_of

ORIGINAL = "original_max_position_embeddings"  # the context that the model was trained for, before scaling
# the settings of each type of scaling: config.json's key -> ModelConfig's field
SCALING = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "dynamic": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        ORIGINAL: "rope_original_context",
        "low_freq_factor": "rope_low_freq_factor",
        "high_freq_factor": "rope_high_freq_factor",
    },
    "yarn": {
        "factor": "rope_factor",
        ORIGINAL: "rope_original_context",
        "attention_factor": "rope_attention_factor",
        "beta_fast": "rope_beta_fast",
        "beta_slow": "rope_beta_slow",
        "truncate": "rope_truncate",
    },
}
# keys that any type of scaling may have beside its own
HARMLESS = {"rope_theta", "rope_type", "type", "finetuned", ORIGINAL}


def rope_from(raw: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """config.json -> the rope_ fields, and max_position_embeddings if the scaling makes the context longer.

    values: the fields of ModelConfig that are read already.
    Raises: InputError if the scaling is not supported or lacks a setting.
    """
    if values.get("positions") == "learned":
        return {}
    full, sliding = _settings_by_layer_type(raw)
    rope_type = full.get("rope_type", full.get("type", "default"))
    if rope_type not in SCALING:
        raise InputError(f"rope_parameters: type must be one of {', '.join(SCALING)}, got {rope_type!r}")
    if rope_type != "default" and not family_of(values["model_type"]).rope_scaling:
        raise InputError(f"rope_parameters: {values['model_type']} supports only type default, got {rope_type!r}")
    theta = raw.get("rope_theta", values.get("rope_theta", ModelConfig.rope_theta))
    rope = {"rope_type": rope_type, "rope_theta": full.get("rope_theta", theta)}
    if "rope_local_theta" in values:
        theta = raw.get("rope_local_base_freq", values["rope_local_theta"])
        rope["rope_local_theta"] = sliding.get("rope_theta", theta)
    if raw.get(ORIGINAL) is not None:
        full[ORIGINAL] = raw[ORIGINAL]
    rope |= _scaling(full, rope_type)
    return rope | _context(rope, values["max_position_embeddings"])


def rope_to(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the keys of older files; newer tools read them too."""
    if config.positions == "learned":
        return {}
    raw = {"rope_theta": config.rope_theta}
    if config.rope_local_theta is not None:
        raw["rope_local_base_freq"] = config.rope_local_theta
    if config.rope_type == "dynamic":
        raw["max_position_embeddings"] = config.rope_original_context or config.max_position_embeddings
    fields = SCALING[config.rope_type]
    settings = {key: getattr(config, ours) for key, ours in fields.items() if getattr(config, ours) is not None}
    raw["rope_scaling"] = {"rope_type": config.rope_type, **settings} if fields else None
    return raw


def _settings_by_layer_type(raw: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """-> (settings of full layers, settings of sliding layers, or {})."""
    parameters, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    for found in (parameters, scaling):
        if not isinstance(found, dict):
            raise InputError(f"rope_parameters must be an object, got {found!r}")
    if FULL not in parameters and SLIDING not in parameters:
        full, sliding = scaling or parameters, {}  # a user added the older key to a newer file, so it wins
    else:
        full, sliding = (parameters.get(FULL) or {}) | scaling, parameters.get(SLIDING) or {}
    if sliding.get("rope_type", "default") != "default":
        raise InputError(f"rope_parameters of sliding layers must be of type default, got {sliding['rope_type']!r}")
    return {key: value for key, value in full.items() if value is not None}, sliding


def _scaling(settings: dict[str, Any], rope_type: str) -> dict[str, Any]:
    """The fields of this type of scaling."""
    fields, found = SCALING[rope_type], {}
    for key, value in settings.items():
        if key in fields:
            found[fields[key]] = value
        elif key not in HARMLESS and (key, value) != ("partial_rotary_factor", 1):
            raise InputError(f"rope_parameters: {key} of type {rope_type} is not supported, got {value!r}")
    if "factor" in fields and "rope_factor" not in found:
        raise InputError(f"rope_parameters: type {rope_type} needs factor, got none")
    return found


def _context(rope: dict[str, Any], context: int) -> dict[str, Any]:
    """The longer context, if config.json's max_position_embeddings is the context before scaling."""
    if rope["rope_type"] == "dynamic":  # its files always have the context before scaling
        return {"rope_original_context": context, "max_position_embeddings": int(context * rope["rope_factor"])}
    # users who add scaling by hand often leave max_position_embeddings unchanged
    if "rope_original_context" in rope and rope["rope_original_context"] == context:
        return {"max_position_embeddings": int(context * rope["rope_factor"])}
    return {}
