"""Write models as folders in the Hugging Face layout: config.json, safetensors files, and a file for a value head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minirlhf.adapters.lora import adapted_layers
from minirlhf.adapters.quantised import QuantisedLinear
from minirlhf.errors import InputError, writes
from minirlhf.model.names import core_of
from minirlhf.model.policy import Policy, RewardModel, ValueModel
from minirlhf.model.transformer import Transformer
from minirlhf.pretrained.config_json import config_to
from minirlhf.pretrained.locate import CONFIG, VALUE_HEAD, dtype_name
from minirlhf.pretrained.model_classes import MODEL_CLASSES, SCALAR_MODELS, architecture, mark
from minirlhf.pretrained.model_weights import is_sharded, plain_weights, weights_of
from minirlhf.pretrained.weight_files import make_weights, write_file, write_weights
from minirlhf.runtime.distributed import is_main


def save_pretrained(
    model: Transformer | Policy | RewardModel | ValueModel,
    folder: str | Path,
    token_ids: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write config.json and model.safetensors into `folder`, and value_head.safetensors for a policy with a value head.

    More than 2 GB of weights become numbered files with an index. If the model is in slices, all processes must call
    this function: the weights are gathered one by one, and the main process writes them.

    token_ids: pad_token_id, bos_token_id and eos_token_id, from `Tokenizer.token_ids`. They go into config.json, for
    other tools. `Tokenizer.save` writes the tokenizer's files.
    dtype: of the weights in the file, except heads with one output. None keeps the model's dtype.
    Raises: InputError if the family's config.json cannot hold the model's config, for a model with adapters or with
    weights in 4 bits (no tool knows their names), or if the folder cannot be written.
    """
    if adapted_layers(model):
        raise InputError(
            "save_pretrained: the model has adapters; save merge_lora(model) whole, or its adapter with save_adapter"
        )
    if any(isinstance(module, QuantisedLinear) for module in model.modules()):
        raise InputError("save_pretrained: the model has weights in 4 bits; save plain(model)")
    save_merged(model, folder, token_ids, dtype)


def save_merged(
    model: nn.Module, folder: str | Path, token_ids: dict[str, Any] | None = None, dtype: torch.dtype | None = None
) -> None:
    """As `save_pretrained`, for every model: the active adapter is merged, weights in 4 bits are restored.

    The model does not change, and no more than one merged weight is in memory.
    """
    folder, core = Path(folder), core_of(model)
    weights = weights_of(model, dtype)
    head = getattr(model, "value_head", None) if isinstance(model, Policy) else None
    head_weights = {} if head is None else plain_weights(head)
    # null, because other tools take a default for a missing key
    unknown = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    config = {**_config_json(core, dtype), **(token_ids or unknown)}  # may raise, so it comes before the first file
    if is_sharded(model) and not is_main():
        make_weights(head_weights)
        make_weights(weights)
        return
    with writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if head_weights:
            write_file(folder / VALUE_HEAD, head_weights)
        elif isinstance(model, Policy):
            (folder / VALUE_HEAD).unlink(missing_ok=True)  # from an earlier policy in this folder
        write_weights(folder, weights)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _config_json(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Any]:
    labels = {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}}
    model_class = next(cls for cls in type(model).__mro__ if cls in MODEL_CLASSES)  # FSDP makes a subclass
    return {
        "architectures": [architecture(model.config.model_type, model_class)],
        "torch_dtype": dtype_name(dtype or next(model.parameters()).dtype),
        **config_to(model.config),
        **(labels if isinstance(model, SCALAR_MODELS) else {}),
        **mark(model),
    }
