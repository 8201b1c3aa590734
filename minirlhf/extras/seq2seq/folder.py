"""Folders of T5, Flan-T5 and mT5: read and written as transformers does, in safetensors files only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minirlhf.adapters.lora import Adapted, adapted_layers
from minirlhf.errors import InputError, writes
from minirlhf.extras.seq2seq.config import config_to, read_config
from minirlhf.extras.seq2seq.model import Seq2Seq
from minirlhf.pretrained.checked import check_model_folder
from minirlhf.pretrained.locate import (
    Location,
    check_all_found,
    check_shapes,
    dtype_name,
    locations,
    some,
    weight_files,
)
from minirlhf.pretrained.safe import open_weights
from minirlhf.pretrained.weight_files import Weight, write_weights

SHARED, HEAD = "shared.weight", "lm_head.weight"
# Older tools wrote the embedding under these names too.
SAME_AS_SHARED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# No T5 adds positions to the attention to the prompt; the first files had an unused table for it.
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def load_seq2seq(folder: str | Path, dtype: torch.dtype | None = None) -> Seq2Seq:
    """The model of a T5, Flan-T5 or mT5 folder, on the CPU.   dtype: of all weights; None keeps the embedding's.

    The dropout of config.json is not read: models here are trained without dropout.
    Raises: InputError for a folder of another architecture, or a weight that is missing, surplus or of another shape.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_model_folder(folder)
    files, source = weight_files(folder)
    found = locations(files, "llama")  # the names in the files are ours
    found.pop(UNUSED, None)
    same = [found.pop(name) for name in SAME_AS_SHARED if name in found]
    shared = found.setdefault(SHARED, same[0]) if same else found.get(SHARED)
    if shared is None:
        raise InputError(f"{source}: needed the files of an encoder-decoder, found no {SHARED} in them")
    if any(not _equal(shared, other) for other in same):
        raise InputError(f"{source}: encoder, decoder and {SHARED} must have one embedding, got different weights")
    own_head = HEAD in found and not _equal(shared, found[HEAD])
    if not own_head:
        found.pop(HEAD, None)
    config = replace(config, tie_word_embeddings=not own_head)
    if config.num_hidden_layers + config.num_decoder_layers > len(found):  # before a model of this size is built
        raise InputError(f"{source}: holds {len(found)} weights, too few for the layers that config.json promises")
    with torch.device("meta"):
        model = Seq2Seq(config)
    expected = model.state_dict()
    check_all_found(expected, found, source)
    if surplus := sorted(found.keys() - expected.keys()):
        raise InputError(f"{source}: {len(surplus)} weights do not belong to the model: {some(surplus)}")
    check_shapes({name: tuple(weight.shape) for name, weight in expected.items()}, found, "config.json says")
    model.load_state_dict(_read({name: found[name] for name in expected}, dtype or shared.dtype), assign=True)
    return model.requires_grad_(True)


def save_seq2seq(model: nn.Module, folder: str | Path, token_ids: dict[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors of a `Seq2Seq`, or of the model inside a policy. Adapters are merged.

    token_ids: pad_token_id, bos_token_id and eos_token_id, from `Tokenizer.token_ids`.
    Raises: InputError if the folder cannot be written.
    """
    model, folder = getattr(model, "transformer", model), Path(folder)
    with writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder, weights_of(model))
        content = {
            **config_to(model.config),
            "torch_dtype": dtype_name(model.dtype),
            **(token_ids or {}),
        }
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def weights_of(model: Seq2Seq) -> dict[str, Weight]:
    """Name in T5's files -> weight; the weight of a layer with an adapter is the merged weight."""
    merged = {f"{name}.weight": layer for name, layer in adapted_layers(model).items()}
    plain = {name.replace(".base.", "."): p for name, p in model.named_parameters() if ".adapters." not in name}
    found = {name: Weight(tuple(p.shape), p.dtype, partial(_made, p, merged.get(name))) for name, p in plain.items()}
    if model.config.tie_word_embeddings and not model.config.scale_outputs:
        found[HEAD] = found[SHARED]  # older versions of transformers look for a head where outputs are not scaled
    return found


def _made(p: Tensor, layer: Adapted | None) -> Tensor:
    return p.detach() if layer is None else layer.merged_weight({layer.active: 1.0})


def _read(found: dict[str, Location], dtype: torch.dtype) -> dict[str, Tensor]:
    weights = {}
    for path in {location.path for location in found.values()}:
        with open_weights(path) as file:
            inside = [(name, at) for name, at in found.items() if at.path == path]
            weights |= {name: file.get_tensor(at.name).to(dtype) for name, at in inside}
    return weights


def _equal(first: Location, second: Location) -> bool:
    weights: Iterable[Tensor] = (_read({"": location}, location.dtype)[""] for location in (first, second))
    return torch.equal(*weights)
