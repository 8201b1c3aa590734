"""Read models from folders in the Hugging Face layout: config.json and safetensors, in one file or in shards.

families.py and model/names.py have each family's settings and names. The Hugging Face layout has no value head for a
policy, so the value head has its own file in the folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minirlhf.errors import InputError
from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import Policy, RewardModel, ValueModel
from minirlhf.model.process_reward import ProcessRewardModel
from minirlhf.model.transformer import Transformer
from minirlhf.pretrained.checked import check_model_folder, share_checksums
from minirlhf.pretrained.config_json import check_no_quantisation_beside, config_from
from minirlhf.pretrained.locate import (
    ADAPTER,
    CONFIG,
    EMBEDDING,
    HEAD,
    VALUE_HEAD,
    Location,
    check_all_found,
    check_shapes,
    check_sizes,
    dtype_name,
    find_weights,
    locations,
    merge_advice,
    weight_files,
)
from minirlhf.pretrained.model_classes import class_of_architectures
from minirlhf.pretrained.model_weights import SCALAR_HEADS
from minirlhf.pretrained.safe import check_type, open_weights, read_json
from minirlhf.runtime.distributed import process_device, world_size

Change = Callable[[nn.Module], nn.Module]


def size_of(folder: str | Path) -> str:
    """The size of the model in a folder, in words."""
    found = _stored(folder).values()
    numbers = sum(location.shape.numel() for location in found)
    size = sum(location.shape.numel() * location.dtype.itemsize for location in found)
    return f"{numbers:,} numbers in {dtype_name(stored_dtype(folder))}, {size / 1e6:,.1f} MB"


def stored_dtype(folder: str | Path) -> torch.dtype:
    """The dtype of the embedding in the files of a folder. Raises: InputError if no embedding can be read."""
    found = _stored(folder)
    if not (embedding := found.get(EMBEDDING) or found.get(HEAD)):
        raise InputError(f"{folder}: needed the files of a language model, found no {EMBEDDING} in them")
    return embedding.dtype


def _stored(folder: str | Path) -> dict[str, Location]:
    config, _ = read_config(folder)
    return locations(weight_files(Path(folder))[0], config.model_type)


# Load


def load_pretrained(
    folder: str | Path, dtype: torch.dtype | None = None, change: Change | None = None
) -> Transformer | RewardModel | ProcessRewardModel | ValueModel:
    """The model in a folder, on the CPU. `architectures` in config.json decides its class.

    If the current strategy shards, all processes must call it: the model is on the device of each process, in slices,
    and each process reads its rows alone.

    Args:
        dtype:  of all weights. None keeps the files' dtype: the weights are then mapped, and read on first use. The
                model is never in memory twice: its modules are made without storage and take each weight as it is read.
        change: called with the model before it is sharded, such as `lambda model: apply_lora(model, config)`. Modules
                may be added to a sharded model in no other way.
    Raises: InputError if a file is missing or broken, or a weight is missing, surplus or of another shape.
    """
    return _loaded(*_described(Path(folder)), dtype, change or _unchanged)


def _unchanged(model: nn.Module) -> nn.Module:
    return model


def _described(folder: Path) -> tuple[nn.Module, dict[str, Location]]:
    """The model of a folder without its numbers, and where each weight stands."""
    if _shards():
        share_checksums(folder)
    check_model_folder(folder)
    config, model_class = read_config(folder)
    check_sizes(config, folder)
    with torch.device("meta"), Uninitialised():
        transformer = Transformer(config)
        model = transformer if model_class is Transformer else model_class(transformer)
    return model, find_weights(model, folder)


def _loaded(model: nn.Module, found: dict[str, Location], dtype: torch.dtype | None, change: Change) -> nn.Module:
    if _shards():
        return _in_slices(model, found, dtype, change)
    model.load_state_dict(_read_all(found, dtype), assign=True)
    return change(model)


def _shards() -> bool:
    """True if the processes hold models in slices."""
    if world_size() == 1:
        return False
    from minirlhf.runtime.parallel.strategy import current

    return current().shards


def _in_slices(model: nn.Module, found: dict[str, Location], dtype: torch.dtype | None, change: Change) -> nn.Module:
    from minirlhf.runtime.parallel.starting import started

    dtypes = _dtypes(found, dtype)
    empty = {name: torch.empty(at.shape, dtype=dtypes[name], device="meta") for name, at in found.items()}
    model.load_state_dict(empty, assign=True)
    stored = {p: partial(_rows, found[name]) for name, p in model.named_parameters()}
    return started(lambda: change(model), process_device(), stored)


def load_into(model: Transformer | Policy | RewardModel | ValueModel, folder: str | Path) -> None:
    """Copy the weights of a `save_pretrained` folder into the model. Raises: InputError as `find_weights`."""
    check_model_folder(folder)
    if isinstance(model, Policy):
        if model.value_head is not None:
            _load_value_head(model.value_head, Path(folder))
        model = model.transformer
    weights = model.state_dict()
    for name, location in find_weights(model, Path(folder)).items():
        _copy(location, weights[name])


def load_policy(
    folder: str | Path, value_head: bool = False, dtype: torch.dtype | None = None, change: Change | None = None
) -> Policy:
    """A policy from the folder of a language model.

    value_head: add a value head. It gets the weights of value_head.safetensors, or starts at 0 without that file.
    dtype, change: see `load_pretrained`.
    Raises: InputError as `load_pretrained`, and if the folder holds a reward or value model.
    """
    model, found = _described(Path(folder))
    policy = _loaded(
        _language_model(model, folder), found, dtype, lambda model: (change or _unchanged)(Policy(model, value_head))
    )
    if value_head and (Path(folder) / VALUE_HEAD).exists():
        _load_value_head(policy.value_head, Path(folder))
    return policy


def empty_policy(folder: str | Path) -> Policy:
    """The policy of a folder without its numbers. Each check of `load_policy` is made; no weight is read."""
    model, _ = _described(Path(folder))
    return Policy(_language_model(model, folder))


def _language_model(model: nn.Module, folder: str | Path) -> Transformer:
    if not isinstance(model, Transformer):
        raise InputError(f"{folder}: needed a language model, got a {type(model).__name__}; check the folder")
    return model


def load_reward_model(
    folder: str | Path, dtype: torch.dtype | None = None, change: Change | None = None
) -> RewardModel:
    """A reward model from its folder. dtype, change: see `load_pretrained`.

    Raises: InputError as `load_pretrained`, and if the folder holds a model of another class.
    """
    model, found = _described(Path(folder))
    if not isinstance(model, RewardModel):
        raise InputError(f"{folder}: needed a reward model, got a {type(model).__name__}; check the folder")
    return _loaded(model, found, dtype, change or _unchanged)


def read_config(folder: str | Path) -> tuple[ModelConfig, type[nn.Module]]:
    """config.json -> (ModelConfig, model class). Raises: InputError."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        advice = _advice_without_config(Path(folder))
        raise InputError(f"{folder}: needed a model folder with {CONFIG}, found none; {advice}")
    raw = read_json(path, "a model's JSON with vocab_size and architectures")
    check_no_quantisation_beside(path.parent)
    try:
        config = config_from(raw)
        model_class = class_of_architectures(raw, config.model_type)
        labels = {} if raw.get("id2label") is None else raw["id2label"]
        check_type("id2label", labels, dict)
        if model_class is RewardModel and len(labels) > 1:
            raise InputError(f"needed a reward model with one label, got {len(labels)} labels")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return config, model_class


def _advice_without_config(folder: Path) -> str:
    if (folder / ADAPTER).is_file():
        return f"it is an adapter: {merge_advice(folder)}"
    if finished := sorted(folder.glob("*/model/config.json")):
        return f"did you mean {finished[-1].parents[1]}?"
    return "check the path; OWNER/NAME names a model of the hub only if no folder OWNER is here"


class Uninitialised(TorchFunctionMode):
    """Inside this context no random weight is drawn.

    The first normal_ on a tensor without storage would import torch._dynamo, for 1 s and 80 MB.
    """

    DRAWS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return kwargs["tensor"] if func in self.DRAWS else func(*args, **(kwargs or {}))


# Read the weights


def _rows(location: Location, first: int, last: int) -> Tensor:
    """The rows [first, last) of a weight. No other bytes of the file are read.

    The file is opened for this weight alone, because all pages that were read stay in memory while a file is mapped.
    """
    with open_weights(location.path) as file:
        stored = file.get_slice(location.name)
        return stored[:, first:last].T if location.transposed else stored[first:last]


@torch.no_grad()
def _copy(location: Location, target: Tensor) -> Tensor:
    """Copy a weight, or the rows that this process holds of it, into `target`."""
    if not hasattr(target, "to_local"):
        target.copy_(_rows(location, 0, location.shape[0]))
        return target
    from minirlhf.runtime.parallel.sharding import local, local_slice

    local(target).copy_(_rows(location, *local_slice(target)))
    return target


def _dtypes(found: dict[str, Location], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """The dtype of each weight in memory: `dtype`; without it the embedding's, and for scalar heads their own."""
    common = dtype or found[EMBEDDING].dtype
    own = dtype is None
    return {name: at.dtype if own and name.startswith(SCALAR_HEADS) else common for name, at in found.items()}


def _read_all(found: dict[str, Location], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The weights by our names. A weight is mapped if its dtype and orientation fit, and copied otherwise."""
    dtypes, by_file = _dtypes(found, dtype), defaultdict(list)
    for name, location in found.items():
        by_file[location.path].append((name, location))
    weights = {}
    for path, group in by_file.items():
        with open_weights(path) as file:
            for name, location in group:
                if location.transposed or location.dtype != dtypes[name]:
                    weights[name] = _copy(location, torch.empty(location.shape, dtype=dtypes[name]))
                else:
                    weights[name] = file.get_tensor(location.name)
    return weights


def _load_value_head(value_head: nn.Module, folder: Path) -> None:
    path, weights = folder / VALUE_HEAD, value_head.state_dict()
    if not path.is_file():
        raise InputError(f"{path}: needed this file, found none; was the policy saved without a value head?")
    found = locations([path], "llama")  # the names in this file are ours
    check_all_found(weights, found, path)
    check_shapes({name: weight.shape for name, weight in weights.items()}, found, "the policy needs")
    for name, weight in weights.items():
        _copy(found[name], weight)
