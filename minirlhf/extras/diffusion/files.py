"""Denoisers as folders: config.json and model.safetensors. A `Run` saves and loads through these functions.

A checkpoint of a denoiser with an adapter holds the adapter's weights only; the final model is merged.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minirlhf.adapters.lora import merge_lora
from minirlhf.errors import InputError, shown
from minirlhf.extras.diffusion.denoiser import Denoiser, DenoiserConfig
from minirlhf.extras.weights import has_adapter, load_weights, save_weights, trained
from minirlhf.pretrained.safe import check_type, not_as_needed, read_json

KIND, CONFIG, NEEDED = "minirlhf_denoiser", "config.json", "the settings of a denoiser"
KEYS = {"size": int, "labels": int, "channels": int, "schedule": str}  # the fields of DenoiserConfig


def save_trained(model: nn.Module, folder: Path, tokenizer: Any = None, base: str | None = None) -> None:
    _save(model, folder, trained(model))


def load_trained(model: nn.Module, folder: Path) -> None:
    """Load a folder of `save_trained` into the model, in place."""
    load_weights(model, folder, trained(model), "denoiser")


def save_final(model: nn.Module, folder: Path, tokenizer: Any = None, base: str | None = None) -> None:
    """Write the whole model; an adapter is merged into a copy."""
    merged = merge_lora(deepcopy(model)) if has_adapter(model) else model
    _save(merged, folder, dict(merged.named_parameters()))


def load_denoiser(folder: str | Path) -> Denoiser:
    """The denoiser in a folder of `save_final`.   Raises: InputError for any other or a damaged folder."""
    path = (folder := Path(folder)) / CONFIG
    raw = read_json(path, NEEDED)
    try:
        if raw.pop("kind", None) != KIND:
            raise InputError("it is not a denoiser's")
        if wrong := sorted(raw.keys() ^ KEYS.keys()):
            raise InputError(f"{shown(wrong[0])} is missing or unknown")
        for name, value in raw.items():
            check_type(name, value, KEYS[name])
        with torch.device("meta"):  # a size that is wrong costs no memory
            model = Denoiser(DenoiserConfig(**raw))
    except InputError as error:
        raise not_as_needed(path, NEEDED, error) from None
    load_weights(model, folder, [name for name, _ in model.named_parameters()], "denoiser")
    return model.requires_grad_(True)


def _save(model: nn.Module, folder: Path, weights: dict[str, Tensor]) -> None:
    save_weights(weights, folder)
    if isinstance(model, Denoiser):
        text = json.dumps({"kind": KIND, **asdict(model.config)}, indent=2)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
