"""Denoisers as folders: config.json and model.safetensors. A `Run` saves and loads through these functions.

A checkpoint of a denoiser with an adapter holds the adapter's weights only; the final model is merged.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from minirlhf.adapters.lora import merge_lora
from minirlhf.errors import InputError
from minirlhf.extras.diffusion.denoiser import Denoiser, DenoiserConfig
from minirlhf.extras.weights import has_adapter, load_weights, save_weights, trained

KIND, CONFIG = "minirlhf_denoiser", "config.json"


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
    folder = Path(folder)
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if found.pop("kind", None) != KIND:
            raise ValueError("it is not a denoiser's")
        config = DenoiserConfig(**found)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder / CONFIG}: needed the settings of a denoiser, got: {error}") from None
    model = Denoiser(config)
    load_weights(model, folder, [name for name, _ in model.named_parameters()], "denoiser")
    return model


def _save(model: nn.Module, folder: Path, weights: dict[str, Tensor]) -> None:
    save_weights(weights, folder)
    if isinstance(model, Denoiser):
        text = json.dumps({"kind": KIND, **asdict(model.config)}, indent=2)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
