"""Read and write adapters as folders in PEFT's layout: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minirlhf.adapters.lora import (
    LoRAConfig,
    adapter_names,
    adapters_of,
    attach,
    base_of,
    check_names,
    linears_of,
    lora_layers,
)
from minirlhf.adapters.select import ALL, core_of, name_in_files
from minirlhf.errors import InputError
from minirlhf.model.policy import Policy
from minirlhf.pretrained.families import is_transposed
from minirlhf.pretrained.model_classes import IS_VALUE_MODEL, SCALAR_MODELS, class_of_task, mark, task_of
from minirlhf.pretrained.safe import missing_weights, not_as_needed, open_weights, read_json

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."  # every name in PEFT's files begins with it
PARTS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
CONTENT = "JSON with peft_type, r and lora_alpha"
# Keys of adapter_config.json that `read_adapter_config` reads, or that do not change the adapter's function. If any
# other key is set, the file is refused.
HARMLESS = {"auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules"}
HARMLESS |= {"fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "revision"}
HARMLESS |= {"megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size"}
HARMLESS |= {IS_VALUE_MODEL, "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "task_type"}
NEUTRAL = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva")}


def save_adapter(model: nn.Module, folder: str | Path, name: str = "default", *, base: str | None = None) -> None:
    """Write one adapter of the model, and the model's scalar head if it has one.

    Modules get the names of the family's files. base: folder or hub name of the base model, written for readers of the
    file.
    """
    check_names(model, [name])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    adapters = {name_in_files(model, module): adapter for module, adapter in adapters_of(model, name).items()}
    config = next(iter(adapters.values())).config
    raw = {
        "peft_type": "LORA",
        "task_type": task_of(model),
        "base_model_name_or_path": base,
        "r": config.r,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "target_modules": _shortest(list(adapters), [name_in_files(model, module) for module in linears_of(model)]),
        "modules_to_save": ["score"] if isinstance(model, SCALAR_MODELS) else None,
        **mark(model),
        "fan_in_fan_out": any(is_transposed(core_of(model).config.model_type, f"{n}.weight") for n in adapters),
        "bias": "none",
        "inference_mode": True,
    }
    parameters = _parameters(model, name)
    weights = {PREFIX + key: p.detach().to("cpu").contiguous() for key, p in parameters.items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default") -> LoRAConfig:
    """Put the adapter in a folder on the model, in place; the model computes with it from now on.

    If the model has an adapter of this name already, its weights are replaced. A scalar head in the folder is loaded
    too. Raises: InputError, with the model unchanged, if a file is missing, broken or a pickle, or if the adapter has
    another type or does not fit the model.
    """
    config, weights = read_adapter_config(folder), _read_weights(Path(folder))
    heads, linears = _heads(model), linears_of(model)
    # a policy without value head can load the adapter of a policy with value head
    weights = {key: w for key, w in weights.items() if key in heads or not key.startswith("value_head.")}
    modules = _adapted_modules(folder, model, weights)
    bases = {file_name: base_of(linears[module]) for module, file_name in modules.items()}
    weights = _without_bases(folder, weights, bases)
    _check_shapes(folder, config, weights, bases, heads)
    if name not in adapter_names(model):
        attach(model, list(modules), config, name)
    present = adapters_of(model, name)
    shapes = {(adapter.config.r, adapter.config.scale, adapter.config.use_dora) for adapter in present.values()}
    if present.keys() != modules.keys() or shapes != {(config.r, config.scale, config.use_dora)}:
        raise InputError(f"{folder}: differs from the adapter {name!r} on the model; load it under another name")
    with torch.no_grad():
        for key, p in _parameters(model, name).items():
            if key in weights:  # the folder may lack a value head
                p.copy_(weights[key])
    for layer in lora_layers(model):
        layer.active = name
    return config


@dataclass(frozen=True)
class AdapterFile:
    """The contents of an adapter's folder."""

    config: LoRAConfig
    model_class: type[nn.Module]  # Transformer, RewardModel, ProcessRewardModel or ValueModel
    base: str | None  # folder or hub name of the base model
    numbers: int  # count of the numbers in all weights

    @property
    def variant(self) -> str:
        return ("rs" if self.config.use_rslora else "") + ("DoRA" if self.config.use_dora else "LoRA")


def read_adapter(folder: str | Path) -> AdapterFile:
    """Read an adapter's folder without its base model. Raises: InputError as `load_adapter`."""
    config, raw = read_adapter_config(folder), _read_config(folder)
    base = raw.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise InputError(f"{Path(folder) / CONFIG}: base_model_name_or_path must be text or null, got {base!r}")
    numbers = sum(weight.numel() for weight in _read_weights(Path(folder)).values())
    return AdapterFile(config, class_of_task(raw), base, numbers)


def update_sizes(folder: str | Path) -> dict[str, tuple[tuple[int, int], float]]:
    """Module -> (shape [out, in], Frobenius norm of scale B A).

    |B A|^2 = tr(B^T B A A^T), so the large product B A is never computed.
    """
    config, weights = read_adapter_config(folder), _read_weights(Path(folder))
    sizes = {}
    for key in sorted(weights):
        module = key.removesuffix(f".{PARTS['A']}")
        if module != key and f"{module}.{PARTS['B']}" in weights:
            A, B = weights[key].double(), weights[f"{module}.{PARTS['B']}"].double()
            norm = config.scale * ((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt().item()
            sizes[module] = (len(B), A.shape[1]), norm
    return sizes


def read_adapter_config(folder: str | Path) -> LoRAConfig:
    """adapter_config.json -> LoRAConfig. Raises: InputError if a setting is missing, broken or not supported."""
    path, raw = Path(folder) / CONFIG, _read_config(folder)
    targets = raw.get("target_modules") or ALL
    try:
        config = LoRAConfig(
            r=raw["r"],
            alpha=float(raw["lora_alpha"]),
            dropout=float(raw.get("lora_dropout", 0)),
            target_modules=(targets,) if isinstance(targets, str) else tuple(targets),
            use_rslora=bool(raw.get("use_rslora")),
            use_dora=bool(raw.get("use_dora")),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise not_as_needed(path, CONTENT, repr(error)) from None
    if raw["peft_type"] != "LORA":
        raise InputError(f"{path}: peft_type must be LORA, no other type is supported; got {raw['peft_type']!r}")
    for key, value in raw.items():
        if value and key not in HARMLESS and value not in NEUTRAL.get(key, ()):
            raise InputError(f"{path}: {key} is not supported and must be unset, got {value!r}; use PEFT to merge")
    return config


def _read_config(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: needed an adapter folder with {CONFIG}, found none; check the path")
    return read_json(path, CONTENT, peft_type=str, r=int)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's file, by their names without PEFT's prefix."""
    if not (folder / WEIGHTS).is_file():
        raise missing_weights(folder / WEIGHTS, PICKLE)
    with open_weights(folder / WEIGHTS) as file:
        return {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _adapted_modules(folder: str | Path, model: nn.Module, weights: dict[str, Tensor]) -> dict[str, str]:
    """Our name -> name in the file, for every Linear that the file adapts, in the model's order."""
    names = {module: name_in_files(model, module) for module in linears_of(model)}
    adapted = {key.split(".lora_")[0] for key in weights if ".lora_" in key}
    if not adapted or (unknown := sorted(adapted - {*names.values()})):
        found = f"{len(unknown)} not in the model, such as {unknown[0]}" if adapted else "none"
        raise InputError(
            f"{folder}: needed lora_A and lora_B for modules of the model, found {found}; is the adapter for another "
            f"base? {CONFIG} names its base"
        )
    return {module: file_name for module, file_name in names.items() if file_name in adapted}


def _without_bases(folder: str | Path, weights: dict[str, Tensor], bases: dict[str, nn.Linear]) -> dict[str, Tensor]:
    """The weights without copies of base weights. PEFT saves the base weight of an adapted lm_head.

    Raises: InputError if a copy is not equal to the model's own weight.
    """
    copies = {f"{n}.base_layer.weight": base.weight for n, base in bases.items() if f"{n}.base_layer.weight" in weights}
    for key, weight in copies.items():
        if weights[key].shape != weight.shape or not torch.equal(weights[key].to(weight), weight.detach()):
            raise InputError(f"{folder}: {key} is not the weight of the model; is the adapter for another base?")
    return {key: weight for key, weight in weights.items() if key not in copies}


def _check_shapes(
    folder: str | Path,
    config: LoRAConfig,
    weights: dict[str, Tensor],
    bases: dict[str, nn.Linear],
    heads: dict[str, nn.Parameter],
) -> None:
    """Raise InputError unless the file has exactly the weights that the config and the scalar head need."""
    needed = {key: tuple(p.shape) for key, p in heads.items() if key in weights or key.startswith("score.")}
    for file_name, base in bases.items():
        needed[f"{file_name}.{PARTS['A']}"] = (config.r, base.in_features)
        needed[f"{file_name}.{PARTS['B']}"] = (base.out_features, config.r)
        if config.use_dora:
            needed[f"{file_name}.{PARTS['magnitude']}"] = (base.out_features,)
    if missing := sorted(needed.keys() - weights.keys()):
        raise InputError(f"{folder}: {len(missing)} weights are missing: {', '.join(missing[:3])}; save it again")
    if surplus := sorted(weights.keys() - needed.keys()):
        raise InputError(
            f"{folder}: {len(surplus)} weights do not belong to the model: {', '.join(surplus[:3])}; is it an adapter "
            "of another model class? Weights from modules_to_save are not read; merge them with PEFT"
        )
    for key in sorted(needed):
        if weights[key].shape != needed[key]:
            raise InputError(
                f"{folder}: {key} must be {needed[key]} for the model and {CONFIG}, got {tuple(weights[key].shape)}; "
                "is the adapter for another base?"
            )


def _parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters that an adapter's file holds, by their names in the file."""
    adapters = {name_in_files(model, module): adapter for module, adapter in adapters_of(model, name).items()}
    found = {f"{n}.{PARTS[part]}": p for n, adapter in adapters.items() for part, p in adapter.named_parameters()}
    return found | _heads(model)


def _heads(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the scalar head, by their names in the file."""
    head = getattr(model, "score", None) or getattr(model, "value_head", None)
    name = "value_head" if isinstance(model, Policy) else "score"  # other tools do not know a policy's value head
    return {f"{name}.{part}": p for part, p in head.named_parameters()} if head is not None else {}


def _shortest(adapted: list[str], linears: list[str]) -> list[str]:
    """The last parts of the adapted modules' names, if they fit no other module; else the full names."""
    ends = {name.split(".")[-1] for name in adapted}
    return sorted(ends if {name for name in linears if name.split(".")[-1] in ends} == set(adapted) else adapted)
