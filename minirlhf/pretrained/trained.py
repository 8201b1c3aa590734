"""Checkpoints (the adapter alone, or all weights of a model without adapter) and final models (all weights)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from minirlhf.adapters.lora import active_adapter
from minirlhf.errors import InputError
from minirlhf.model.names import core_of
from minirlhf.pretrained.adapter_files import load_adapter, save_adapter
from minirlhf.pretrained.locate import dtype_name
from minirlhf.pretrained.model_weights import is_sharded
from minirlhf.pretrained.saving import save_merged
from minirlhf.pretrained.weights import load_into, size_of, stored_dtype
from minirlhf.runtime.distributed import is_main, say


def has_adapter(model: nn.Module) -> bool:
    """True if a checkpoint of the model holds its active adapter only."""
    return active_adapter(model) is not None


def save_trained(model: nn.Module, folder: Path, tokenizer: Any = None, base: str | None = None) -> None:
    """Write a checkpoint of the model: its active adapter in PEFT's layout, or the whole model if it has no adapter.

    Args:
        tokenizer: a `text.Tokenizer`, saved beside the weights of a whole model.
        base:      folder of the model under the adapter, named in the adapter's files.
    """
    if adapter := active_adapter(model):
        save_adapter(model, folder, adapter, base=base)
    else:
        save_final(model, folder, tokenizer)


def load_trained(model: nn.Module, folder: Path) -> None:
    """Load a folder of `save_trained` into the model, in place."""
    if adapter := active_adapter(model):
        load_adapter(model, folder, adapter)
    else:
        load_into(model, folder)


def save_final(model: nn.Module, folder: Path, tokenizer: Any = None, base: str | None = None) -> None:
    """Write the whole model in the Hugging Face layout: adapters merged, 4-bit weights dequantised.

    A merged model gets the dtype of its base's files, even if it was read as fp32: the base's numbers have no more
    digits. A model without adapter keeps the dtype in which it was trained. If the model is in slices, all processes
    must call this function, as all functions here; the main process writes.
    base: folder of the model that the training began with.
    """
    merged, base_dtype = has_adapter(model), None
    try:
        base_dtype = stored_dtype(base) if base else None
    except (InputError, OSError) as error:  # a base that is gone must not lose the trained model
        if merged:
            say(f"the final model keeps the dtype in memory, because the base cannot be read: {error}")
    save_merged(model, folder, tokenizer and tokenizer.token_ids, base_dtype if merged else None)
    if is_sharded(model) and not is_main():
        return
    if tokenizer:
        tokenizer.save(folder)
    if merged and base_dtype:
        say(f"final model: {size_of(folder)}, as its base")
    elif merged or base_dtype not in (None, core_of(model).model.embed_tokens.weight.dtype):
        say(f"final model: {size_of(folder)}" + (f"; its base is {dtype_name(base_dtype)}" if base_dtype else ""))
