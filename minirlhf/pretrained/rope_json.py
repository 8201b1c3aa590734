"""Rotary positions in config.json <-> ModelConfig's rope_ fields.

Older files have rope_theta and rope_scaling, newer files have both in rope_parameters.
"""

from __future__ import annotations

from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.model.config import FULL, SLIDING, ModelConfig
from minirlhf.pretrained.families import FIELD_TYPES, family_of
from minirlhf.pretrained.safe import check_type

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
PLAIN = ("rope_theta", "rope_local_base_freq", ORIGINAL)  # keys beside rope_parameters and rope_scaling
# the type of each key in any of the three places
TYPES = {key: FIELD_TYPES[ours][0] for settings in SCALING.values() for key, ours in settings.items()}
TYPES |= {"rope_theta": float, "rope_type": str, "type": str, "rope_local_base_freq": float}
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
    plain = _checked("config.json", {key: raw[key] for key in PLAIN if key in raw})
    rope_type = full.get("rope_type", full.get("type", "default"))
    if rope_type not in SCALING or full.get("type", rope_type) != rope_type:
        got = " and ".join(shown(full[key]) for key in ("rope_type", "type") if key in full)
        raise InputError(f"rope_parameters: type must be one of {', '.join(SCALING)}, got {got}")
    if rope_type != "default" and not family_of(values["model_type"]).rope_scaling:
        raise InputError(f"rope_parameters: {values['model_type']} supports only type default, got {rope_type}")
    theta = plain.get("rope_theta", values.get("rope_theta", ModelConfig.rope_theta))
    rope = {"rope_type": rope_type, "rope_theta": full.get("rope_theta", theta)}
    if "rope_local_theta" in values:
        theta = plain.get("rope_local_base_freq", values["rope_local_theta"])
        rope["rope_local_theta"] = sliding.get("rope_theta", theta)
    if ORIGINAL in plain:
        full[ORIGINAL] = plain[ORIGINAL]
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
    parameters, scaling = (_checked(key, raw.get(key)) for key in ("rope_parameters", "rope_scaling"))
    if FULL not in parameters and SLIDING not in parameters:
        full, sliding = scaling or parameters, {}  # a user added the older key to a newer file, so it wins
    else:
        full, sliding = (_checked(f"rope_parameters: {key}", parameters.get(key)) for key in (FULL, SLIDING))
        full |= scaling
    if sliding.get("rope_type", "default") != "default":
        raise InputError(
            f"rope_parameters of sliding layers must be of type default, got {shown(sliding['rope_type'])}"
        )
    return full, sliding


def _checked(name: str, settings: Any) -> dict[str, Any]:
    """The settings that are not null. Raises: InputError if one has a wrong type."""
    settings = {} if settings is None else settings
    check_type(name, settings, dict)
    given = {key: value for key, value in settings.items() if value is not None}
    for key in given.keys() & TYPES.keys():
        check_type(f"{name}: {key}", given[key], TYPES[key], 0)
    return given


def _scaling(settings: dict[str, Any], rope_type: str) -> dict[str, Any]:
    """The fields of this type of scaling."""
    fields, found = SCALING[rope_type], {}
    for key, value in settings.items():
        if key in fields:
            found[fields[key]] = value
        elif key not in HARMLESS and (key, value) != ("partial_rotary_factor", 1):
            raise InputError(f"rope_parameters: {shown(key)} of type {rope_type} is not supported, got {shown(value)}")
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
