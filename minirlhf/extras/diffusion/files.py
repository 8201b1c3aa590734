"""Denoisers as folders: config.json and model.safetensors. A `Run` saves and loads through these functions.

A checkpoint of a denoiser with an adapter holds the adapter's weights only; the final model is merged.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minirlhf.adapters.lora import active_adapter, merge_lora
from minirlhf.errors import InputError
from minirlhf.extras.diffusion.denoiser import Denoiser, DenoiserConfig
from minirlhf.manifest import check_files

KIND, CONFIG, WEIGHTS = "minirlhf_denoiser", "config.json", "model.safetensors"


def has_adapter(model: nn.Module) -> bool:
    return active_adapter(model) is not None


def save_trained(model: nn.Module, folder: Path, tokenizer: Any = None, base: str | None = None) -> None:
    """Write the weights that training changes: the adapter's weights if the model has an adapter, else all."""
    _save(model, folder, {name: p for name, p in model.named_parameters() if p.requires_grad})


def load_trained(model: nn.Module, folder: Path) -> None:
    """Load a folder of `save_trained` into the model, in place."""
    _load(model, folder, [name for name, p in model.named_parameters() if p.requires_grad])


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
    _load(model, folder, [name for name, _ in model.named_parameters()])
    return model


def _save(model: nn.Module, folder: Path, weights: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: p.detach().cpu().contiguous() for name, p in weights.items()}, folder / WEIGHTS)
    if isinstance(model, Denoiser):
        text = json.dumps({"kind": KIND, **asdict(model.config)}, indent=2)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _load(model: nn.Module, folder: Path, names: list[str]) -> None:
    path = folder / WEIGHTS
    try:
        if (folder / "manifest.json").exists():
            check_files(folder, "take another folder")
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: needed the weights of a denoiser, got: {error}") from None
    own = dict(model.named_parameters())
    wrong = [name for name in names if name not in found or found[name].shape != own[name].shape]
    if wrong or found.keys() - set(names):
        name = (wrong or sorted(found.keys() - set(names)))[0]
        raise InputError(f"{path}: needed the weights of this denoiser, got another set or shape: {name}")
    model.load_state_dict(found, strict=False)
