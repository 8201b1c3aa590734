"""Vision policies as folders: config.json, model.safetensors and the tokenizer. A `Run` saves and loads through them.

A folder holds the decoder, its encoder and perhaps a value head. It holds no images, because their ids belong to the
program that reads them.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from minirlhf.adapters.lora import merge_lora
from minirlhf.errors import InputError, shown, writes
from minirlhf.extras.vision.encoder import VisionConfig
from minirlhf.extras.vision.model import MODEL_TYPE, VisionModel, VisionPolicy
from minirlhf.extras.weights import has_adapter, load_weights, save_weights, trained
from minirlhf.pretrained.config_json import config_from, config_to
from minirlhf.pretrained.locate import CONFIG, DTYPES, dtype_name
from minirlhf.pretrained.safe import check_type, not_as_needed, read_json

NEEDED = "the settings of a vision policy"
KEYS = {"model_type": str, "torch_dtype": str, "value_head": bool, "text_config": dict, "vision_config": dict}


def save_trained(model: VisionPolicy, folder: Path, tokenizer: Any = None, base: str | None = None) -> None:
    save_weights(trained(model), folder)


def load_trained(model: VisionPolicy, folder: Path) -> None:
    """Load a folder of `save_trained` into the policy, in place."""
    load_weights(model, folder, trained(model), "vision policy")


def save_final(model: VisionPolicy, folder: Path, tokenizer: Any = None, base: str | None = None) -> None:
    """Write the whole policy, and its tokenizer if there is one. An adapter is merged into a copy."""
    policy, folder = merge_lora(deepcopy(model)) if has_adapter(model) else model, Path(folder)
    transformer = policy.transformer
    content = {
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype_name(transformer.dtype),
        "value_head": policy.value_head is not None,
        "text_config": config_to(transformer.model.config),
        "vision_config": asdict(transformer.vision),
    }
    save_weights(dict(policy.named_parameters()), folder)
    with writes(folder):
        (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if tokenizer:
        tokenizer.save(folder)


def load_vision(folder: str | Path) -> VisionPolicy:
    """The policy in a folder of `save_final`, on the CPU.

    Raises: InputError for the folder of another model, such as a vision-language model of another tool, and for a
    folder that is damaged.
    """
    path = (folder := Path(folder)) / CONFIG
    if (found := read_json(path, NEEDED, model_type=str)["model_type"]) != MODEL_TYPE:
        raise InputError(
            f"{folder}: needed a policy of minirlhf with images ({MODEL_TYPE}), got the model_type {shown(found)}; "
            "models of other tools are not read, see docs/vision.md"
        )
    raw = read_json(path, NEEDED, **KEYS)
    try:
        dtype = {dtype_name(dtype): dtype for dtype in DTYPES.values()}[raw["torch_dtype"]]
        vision = _vision_config(raw["vision_config"])
        with torch.device("meta"):
            policy = VisionPolicy(VisionModel(config_from(raw["text_config"]), vision), raw["value_head"]).to(dtype)
    except (InputError, KeyError) as error:
        raise not_as_needed(path, NEEDED, error) from None
    load_weights(policy, folder, [name for name, _ in policy.named_parameters()], "vision policy")
    return policy.requires_grad_(True)


def _vision_config(raw: dict[str, Any]) -> VisionConfig:
    names = [field.name for field in fields(VisionConfig)]
    if wrong := sorted(raw.keys() ^ {*names}):
        raise InputError(f"vision_config: needed {', '.join(names)}, and {shown(wrong[0])} is missing or unknown")
    for name, value in raw.items():
        check_type(name, value, int, 1)
    return VisionConfig(**raw)
