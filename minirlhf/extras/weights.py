"""The weights of a model that is no decoder: one safetensors file under the model's own names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minirlhf.adapters.lora import active_adapter
from minirlhf.errors import InputError, writes
from minirlhf.manifest import check_files

WEIGHTS = "model.safetensors"


def has_adapter(model: nn.Module) -> bool:
    """True if a checkpoint of the model holds the weights of its adapter only."""
    return active_adapter(model) is not None


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes: the adapter's weights if the model has an adapter, else all."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_weights(weights: dict[str, Tensor], folder: Path) -> None:
    """Raises: InputError if the folder cannot be written."""
    with writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().cpu().contiguous() for name, p in weights.items()}, folder / WEIGHTS)


def load_weights(model: nn.Module, folder: Path, names: Iterable[str], what: str) -> None:
    """Load exactly the weights of these names, in place.   what: the model in a word, for errors.

    Raises: InputError if the folder is damaged, or has other weights, shapes or dtypes.
    """
    path, names = folder / WEIGHTS, set(names)
    try:
        if (folder / "manifest.json").exists():
            check_files(folder, "take another folder")
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: needed the weights of a {what}, got: {error}") from None
    own = dict(model.named_parameters())

    def fits(name: str) -> bool:
        return name in found and (found[name].shape, found[name].dtype) == (own[name].shape, own[name].dtype)

    if wrong := [name for name in sorted(names | found.keys()) if name not in names or not fits(name)]:
        raise InputError(f"{path}: needed the weights of this {what}, got another set, shape or dtype: {wrong[0]}")
    model.load_state_dict(found, strict=False, assign=any(p.is_meta for p in own.values()))
