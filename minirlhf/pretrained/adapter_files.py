"""Read and write adapters as folders in PEFT's layout: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minirlhf.adapters.lora import (
    Adapter,
    LoRAConfig,
    adapter_names,
    adapters_of,
    attach,
    base_of,
    check_names,
    check_new_name,
    gathered,
    linears_of,
)
from minirlhf.adapters.select import HEAD, core_of, name_in_files
from minirlhf.adapters.whole import (
    EMBEDDING,
    WholeWeight,
    attach_whole,
    embedding_of_lora,
    frozen_layers,
    has_tied_head,
    untie,
)
from minirlhf.errors import InputError, shown, writes
from minirlhf.model.policy import Policy
from minirlhf.pretrained.adapter_config import CONFIG, AdapterSettings, read_config, read_settings
from minirlhf.pretrained.families import is_transposed
from minirlhf.pretrained.locate import DTYPES, some, unwrapped
from minirlhf.pretrained.model_classes import SCALAR_MODELS, class_of_task, mark, task_of
from minirlhf.pretrained.model_weights import is_sharded
from minirlhf.pretrained.safe import missing_weights, open_weights
from minirlhf.runtime.distributed import is_main

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."  # every name in PEFT's files begins with it
PARTS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
EMBEDDING_PARTS = {"A": "lora_embedding_A", "B": "lora_embedding_B"}


def save_adapter(model: nn.Module, folder: str | Path, name: str = "default", *, base: str | None = None) -> None:
    """Write one adapter of the model, and the model's scalar head if it has one.

    Modules get the names of the family's files. If the model is in slices, all processes must call this function, and
    the main process writes. base: folder or hub name of the base model, written for readers of the file.
    Raises: InputError if the model lacks the adapter, or the folder cannot be written.
    """
    check_names(model, [name])
    folder, weights = Path(folder), {PREFIX + key: gathered(p) for key, p in _parameters(model, name).items()}
    if is_sharded(model) and not is_main():
        return
    parts = {name_in_files(model, module): part for module, part in adapters_of(model, name).items()}
    configs = {n: part.config for n, part in parts.items() if isinstance(part, Adapter)}
    whole = sorted(n.split(".")[-1] for n, part in parts.items() if isinstance(part, WholeWeight))
    whole += ["score"] * isinstance(model, SCALAR_MODELS)
    config = Counter(configs.values()).most_common(1)[0][0] if configs else LoRAConfig()
    raw = {
        "peft_type": "LORA",
        "task_type": task_of(model),
        "base_model_name_or_path": base,
        "r": config.r,
        "lora_alpha": _int_if_whole(config.alpha),
        "rank_pattern": {n: own.r for n, own in configs.items() if own.r != config.r},
        "alpha_pattern": {n: _int_if_whole(own.alpha) for n, own in configs.items() if own.alpha != config.alpha},
        "lora_dropout": config.dropout,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "target_modules": _shortest(list(configs), [name_in_files(model, module) for module in linears_of(model)]),
        "modules_to_save": whole or None,
        **mark(model),
        "fan_in_fan_out": any(is_transposed(core_of(model).config.model_type, f"{n}.weight") for n in configs),
        "bias": "none",
        "inference_mode": True,
    }
    weights = {key: weight.to("cpu").contiguous() for key, weight in weights.items()}
    with writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default") -> LoRAConfig:
    """Put the adapter in a folder on the model, in place.

    A new adapter is the one that the model computes with from now on. If the model has an adapter of this name already,
    its weights are replaced, and the model goes on with the adapter that it computed with before. A scalar head in the
    folder is loaded too. An embedding or a head of the adapter's own stands beside the base's; a tied head is untied.
    LoRA on the embedding is read as the embedding that it makes.
    Raises: InputError, with the model unchanged, if a file is missing, broken or a pickle, or if the adapter has
    another type or does not fit the model.
    """
    settings, weights = read_settings(folder), _read_weights(Path(folder))
    _check_saved_modules(folder, model, weights, settings.saved)
    heads, layers = _heads(model), frozen_layers(model)
    # a policy without value head can load the adapter of a policy with value head
    weights = {key: w for key, w in weights.items() if key in heads or not key.startswith("value_head.")}
    linears = {n: base_of(layer) for n, layer in linears_of(model).items()} | layers
    file_names = {name_in_files(model, module): module for module in linears}
    weights = _without_bases(folder, weights, {n: linears[module] for n, module in file_names.items()})
    weights = _with_whole_embedding(folder, weights, settings, name_in_files(model, EMBEDDING), layers[EMBEDDING])
    whole = {n: file_names[n] for n in file_names if file_names[n] in layers and f"{n}.weight" in weights}
    adaptable = {n: module for n, module in file_names.items() if module != EMBEDDING and n not in whole}
    modules = _adapted_modules(folder, adaptable, weights, needed=not whole)
    configs = settings.of_modules(modules)
    _check_shapes(
        folder, {n: (configs[n], linears[module]) for n, module in modules.items()}, whole, layers, weights, heads
    )
    own = {module: configs[n] for n, module in modules.items()}
    if name not in adapter_names(model):
        check_new_name(name)  # before the head is untied
        if has_tied_head(model) and (whole or HEAD in own):
            untie(model)
        attach(model, own, name)
        attach_whole(model, {module: weights[f"{n}.weight"] for n, module in whole.items()}, name)
    present = adapters_of(model, name)
    needed = own | dict.fromkeys(whole.values())
    if {module: _function(part) for module, part in present.items()} != {m: _settings(c) for m, c in needed.items()}:
        raise InputError(f"{folder}: differs from the adapter {shown(name)} on the model; load it under another name")
    with torch.no_grad():
        for key, p in _parameters(model, name).items():
            if key in weights:  # the folder may lack a value head
                p.copy_(weights[key])
    return settings.lora


def _function(part: nn.Module) -> tuple | None:
    return _settings(part.config) if isinstance(part, Adapter) else None


def _settings(config: LoRAConfig | None) -> tuple | None:
    """The settings that the weights of an adapter are made for; None for a whole weight."""
    return config and (config.r, config.scale, config.use_dora)


@dataclass(frozen=True)
class AdapterFile:
    """The contents of an adapter's folder."""

    config: LoRAConfig
    model_class: type[nn.Module]  # Transformer, RewardModel, ProcessRewardModel or ValueModel
    base: str | None  # folder or hub name of the base model
    numbers: int  # count of the numbers in all weights
    whole: tuple[str, ...] = ()  # modules whose weight the file has as a whole
    patterns: str = ""  # ranks and alphas of single modules

    @property
    def variant(self) -> str:
        return ("rs" if self.config.use_rslora else "") + ("DoRA" if self.config.use_dora else "LoRA")


def read_adapter(folder: str | Path) -> AdapterFile:
    """Read an adapter's folder without its base model. Raises: InputError as `load_adapter`."""
    settings, raw = read_settings(folder), read_config(folder)
    base = raw.get("base_model_name_or_path")
    weights = _read_weights(Path(folder))
    numbers = sum(weight.numel() for weight in weights.values())
    whole = (key.removesuffix(".weight") for key in sorted(weights) if key.endswith(".weight"))
    whole = tuple(n for n in whole if ".lora_" not in n and not n.endswith(".base_layer"))
    return AdapterFile(settings.lora, class_of_task(raw), base, numbers, whole, settings.patterns)


def update_sizes(folder: str | Path) -> dict[str, tuple[tuple[int, int], float]]:
    """Module -> (shape [out, in], Frobenius norm of scale B A).

    |B A|^2 = tr(B^T B A A^T), so the large product B A is never computed.
    """
    settings, weights = read_settings(folder), _read_weights(Path(folder))
    pairs = {}
    for parts in (PARTS, EMBEDDING_PARTS):
        ends = {key.removesuffix(f".{parts['A']}"): key for key in sorted(weights) if key.endswith(f".{parts['A']}")}
        pairs |= {n: (weights[key], weights[b]) for n, key in ends.items() if (b := f"{n}.{parts['B']}") in weights}
    sizes = {}
    for module, config in settings.of_modules(sorted(pairs)).items():
        A, B = (matrix.double() for matrix in pairs[module])
        if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1]:
            shapes = f"{tuple(A.shape)} and {tuple(B.shape)}"
            raise InputError(f"{folder}: {module}: needed A [r, in] and B [out, r], got {shapes}; save it again")
        norm = config.scale * ((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt().item()
        sizes[module] = (len(B), A.shape[1]), norm
    return sizes


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's file, by their names without PEFT's prefix."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise missing_weights(path, PICKLE)
    with open_weights(path) as file:
        names = list(file.keys())
        if packed := [name for name in names if file.get_slice(name).get_dtype() not in DTYPES]:
            raise InputError(f"{path}: needed weights in {', '.join(DTYPES)}, got another type for {packed[0]}")
        weights = {unwrapped(name).removeprefix(PREFIX): file.get_tensor(name) for name in names}
    if len(weights) < len(names):
        raise InputError(f"{path}: two weights have one name apart from prefixes of wrappers; save the adapter again")
    return weights


def _adapted_modules(
    folder: str | Path, file_names: dict[str, str], weights: dict[str, Tensor], needed: bool
) -> dict[str, str]:
    """Name in the file -> our name, for every Linear that the file adapts, in the model's order."""
    adapted = {key.split(".lora_")[0] for key in weights if ".lora_" in key}
    unknown = sorted(adapted - file_names.keys())
    if unknown or (needed and not adapted):
        found = f"{len(unknown)} not in the model, such as {shown(unknown[0])[1:-1]}" if adapted else "none"
        raise InputError(
            f"{folder}: needed lora_A and lora_B for modules of the model, found {found}; is the adapter for another "
            f"base? {CONFIG} names its base"
        )
    return {file_name: module for file_name, module in file_names.items() if file_name in adapted}


def _check_saved_modules(
    folder: str | Path, model: nn.Module, weights: dict[str, Tensor], saved: tuple[str, ...]
) -> None:
    """Raise InputError if modules_to_save names a module of the model whose weight the file lacks."""
    modules = [name_in_files(model, name) for name, _ in core_of(model).named_modules()]
    for name in saved:
        fitting = [module for module in modules if f".{module}".endswith(f".{name}")]
        if fitting and not any(key.startswith(f"{module}.") for key in weights for module in fitting):
            raise InputError(f"{folder}: {CONFIG} has {name} in modules_to_save, but the file has no weight of it")


def _with_whole_embedding(
    folder: str | Path, weights: dict[str, Tensor], settings: AdapterSettings, file_name: str, base: nn.Embedding
) -> dict[str, Tensor]:
    """The weights with the embedding that LoRA makes, in place of LoRA's matrices for the embedding."""
    A, B = (weights.get(f"{file_name}.{part}") for part in EMBEDDING_PARTS.values())
    if A is None and B is None:
        return weights
    config = settings.of_modules([file_name])[file_name]
    needed = {"A": (config.r, base.num_embeddings), "B": (base.embedding_dim, config.r)}
    for part, matrix in (("A", A), ("B", B)):
        if matrix is None or matrix.shape != needed[part]:
            got = "no such weight" if matrix is None else tuple(matrix.shape)
            key = f"{file_name}.{EMBEDDING_PARTS[part]}"
            raise InputError(f"{folder}: {key} must be {needed[part]} for the model and {CONFIG}, got {got}")
    if config.use_dora or f"{file_name}.weight" in weights:
        kind = "DoRA" if config.use_dora else "LoRA beside modules_to_save"
        raise InputError(f"{folder}: {kind} on the embedding {file_name} is not supported; use PEFT to merge")
    rest = {key: w for key, w in weights.items() if not key.startswith(f"{file_name}.lora_embedding_")}
    return rest | {f"{file_name}.weight": embedding_of_lora(base.weight.detach(), A, B, config.scale)}


def _without_bases(folder: str | Path, weights: dict[str, Tensor], bases: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The weights without copies of base weights. PEFT saves the base weight of an adapted head or embedding.

    Raises: InputError if a copy is not equal to the model's own weight.
    """
    copies = {f"{n}.base_layer.weight": base for n, base in bases.items() if f"{n}.base_layer.weight" in weights}
    for key, base in copies.items():
        weight = base.weight.detach()
        if weights[key].shape != weight.shape or not torch.equal(weights[key].to(weight), weight):
            raise InputError(f"{folder}: {key} is not the weight of the model; is the adapter for another base?")
    return {key: weight for key, weight in weights.items() if key not in copies}


def _check_shapes(
    folder: str | Path,
    adapted: dict[str, tuple[LoRAConfig, nn.Linear]],
    whole: dict[str, str],
    layers: dict[str, nn.Module],
    weights: dict[str, Tensor],
    heads: dict[str, nn.Parameter],
) -> None:
    """Raise InputError unless the file has exactly the weights that the settings and the scalar head need."""
    needed = {key: tuple(p.shape) for key, p in heads.items() if key in weights or key.startswith("score.")}
    for file_name, (config, base) in adapted.items():
        needed[f"{file_name}.{PARTS['A']}"] = (config.r, base.in_features)
        needed[f"{file_name}.{PARTS['B']}"] = (base.out_features, config.r)
        if config.use_dora:
            needed[f"{file_name}.{PARTS['magnitude']}"] = (base.out_features,)
    needed |= {f"{file_name}.weight": tuple(layers[module].weight.shape) for file_name, module in whole.items()}
    if missing := sorted(needed.keys() - weights.keys()):
        raise InputError(f"{folder}: {len(missing)} weights are missing: {some(missing)}; save it again")
    if surplus := sorted(weights.keys() - needed.keys()):
        raise InputError(
            f"{folder}: {len(surplus)} weights do not belong to the model: {some(surplus)}; is it an adapter "
            "of another model class? Of modules_to_save the embedding and the head are read; merge others with PEFT"
        )
    for key in sorted(needed):
        if (shape := tuple(weights[key].shape)) != needed[key]:
            has_more_rows = (
                key.removesuffix(".weight") in whole and shape[1:] == needed[key][1:] and shape > needed[key]
            )
            advice = (
                f"resize_embeddings(model, {shape[0]}) first" if has_more_rows else "is the adapter for another base?"
            )
            raise InputError(f"{folder}: {key} must be {needed[key]} for the model and {CONFIG}, got {shape}; {advice}")


def _parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters that an adapter's file holds, by their names in the file."""
    parts = {name_in_files(model, module): part for module, part in adapters_of(model, name).items()}
    named = [(n, key, p) for n, part in parts.items() for key, p in part.named_parameters()]
    return {f"{n}.{PARTS.get(key, key)}": p for n, key, p in named} | _heads(model)


def _heads(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the scalar head, by their names in the file."""
    head = getattr(model, "score", None) or getattr(model, "value_head", None)
    name = "value_head" if isinstance(model, Policy) else "score"  # other tools do not know a policy's value head
    return {f"{name}.{part}": p for part, p in head.named_parameters()} if head is not None else {}


def _shortest(adapted: list[str], linears: list[str]) -> list[str]:
    """The last parts of the adapted modules' names, if they fit no other module; else the full names."""
    ends = {name.split(".")[-1] for name in adapted}
    return sorted(ends if {name for name in linears if name.split(".")[-1] in ends} == set(adapted) else adapted)


def _int_if_whole(number: float) -> float:
    return int(number) if number == int(number) else number
