"""Checkpoints and final models of an encoder-decoder. A `Run` saves and loads through these functions.

A checkpoint holds the weights that training changes, the value head among them. The final model is a T5 folder with
merged adapters; T5 folders have no value head, so the head stays in the last checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from minirlhf.extras.seq2seq.folder import save_seq2seq
from minirlhf.extras.weights import has_adapter, load_weights, save_weights, trained

__all__ = ["has_adapter", "load_trained", "save_final", "save_trained"]


def save_trained(model: nn.Module, folder: Path, tokenizer: Any = None, base: str | None = None) -> None:
    save_weights(trained(model), folder)


def load_trained(model: nn.Module, folder: Path) -> None:
    """Load a folder of `save_trained` into the model, in place."""
    load_weights(model, folder, trained(model), "encoder-decoder")


def save_final(model: nn.Module, folder: Path, tokenizer: Any = None, base: str | None = None) -> None:
    """Write a T5 folder with the tokenizer's files, for `load_seq2seq` and for other tools."""
    save_seq2seq(model, folder, tokenizer.token_ids)
    tokenizer.save(folder)
