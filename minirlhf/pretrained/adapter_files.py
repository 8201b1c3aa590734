"""Adapters as folders in PEFT's layout: adapter_config.json and adapter_model.safetensors, both ways."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minirlhf.adapters.lora import (
    LoRAConfig,
    adapter_names,
    adapters_of,
    attach,
    base_of,
    check_names,
    linears_of,
)
from minirlhf.adapters.select import ALL, core_of, name_in_files
from minirlhf.errors import InputError
from minirlhf.model.policy import Policy, ProcessRewardModel, RewardModel, ValueModel
from minirlhf.model.transformer import Transformer
from minirlhf.pretrained.families import is_transposed

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."  # of every name in PEFT's files
PARTS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
TASKS = {RewardModel: "SEQ_CLS", ProcessRewardModel: "TOKEN_CLS", ValueModel: "TOKEN_CLS"}
IS_VALUE_MODEL = "value_model"  # a key of ours in adapter_config.json, which tells it from a process reward model
# Keys of adapter_config.json that do not change what the files compute; any other one that is set does
HARMLESS = {"auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules"}
HARMLESS |= {"fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "revision"}
HARMLESS |= {"megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size"}
HARMLESS |= {IS_VALUE_MODEL, "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "task_type"}


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    name: str = "default",
    *,
    base: str | None = None,
) -> None:
    """Write one adapter, and the model's head of one number if it has one, in PEFT's layout.

    Modules have the names of the family's own checkpoints there. `base`: folder or hub name of the base, for those who
    read the file.
    """
    check_names(model, [name])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    adapted = {name_in_files(model, n): one for n, one in adapters_of(model, name).items()}
    config = next(iter(adapted.values())).config
    described = {
        "peft_type": "LORA",
        "task_type": next((task for kind, task in TASKS.items() if isinstance(model, kind)), "CAUSAL_LM"),
        "base_model_name_or_path": base,
        "r": config.r,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "target_modules": _shortest(list(adapted), [name_in_files(model, n) for n in linears_of(model)]),
        "modules_to_save": ["score"] if type(model) in TASKS else None,
        **({IS_VALUE_MODEL: True} if isinstance(model, ValueModel) else {}),
        "fan_in_fan_out": any(is_transposed(core_of(model).config.model_type, f"{n}.weight") for n in adapted),
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {PREFIX + n: p.detach().to("cpu").contiguous() for n, p in _saved(model, name).items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default") -> LoRAConfig:
    """Put the adapter in a folder on the model and make it the active one; if there is one of that name, fill it.

    A head saved with it is filled too. Raises: InputError, with the model as it was, if a file is missing, broken or a
    pickle, the adapter is of another type, or it does not fit the model.
    """
    config, weights = read_adapter_config(folder), _read_weights(Path(folder))
    heads, linears = _heads(model), linears_of(model)
    ours = {name_in_files(model, n): n for n in linears}
    weights = {n: w for n, w in weights.items() if n in heads or not n.startswith("value_head.")}  # not all want values
    adapted = {n.split(".lora_")[0] for n in weights if ".lora_" in n}
    if not adapted or (unknown := sorted(adapted - ours.keys())):
        found = f"{len(unknown)} not in the model, such as {unknown[0]}" if adapted else "none"
        raise InputError(
            f"{folder}: needed lora_A and lora_B for modules of the model, found {found}; is the adapter for another "
            f"base? {CONFIG} names it"
        )
    places = {ours[n]: n for n in ours if n in adapted}
    bases = {n: base_of(linears[name]) for name, n in places.items()}
    weights = _without_bases(folder, weights, bases)
    _check_shapes(folder, config, weights, bases, heads)
    if name not in adapter_names(model):
        attach(model, list(places), config, name)
    present = adapters_of(model, name)
    kinds = {(one.config.r, one.config.scale, one.config.use_dora) for one in present.values()}
    if present.keys() != places.keys() or kinds != {(config.r, config.scale, config.use_dora)}:
        raise InputError(f"{folder}: differs from the adapter {name!r} on the model; load it under another name")
    with torch.no_grad():
        for n, p in _saved(model, name).items():
            if n in weights:  # all but a value head that was not saved
                p.copy_(weights[n])
    return config


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter's folder says of itself."""

    config: LoRAConfig
    model: type[nn.Module]  # Transformer, RewardModel, ProcessRewardModel or ValueModel
    base: str | None  # folder or hub name of the model it is for
    numbers: int  # that it holds

    @property
    def kind(self) -> str:
        return ("rs" if self.config.use_rslora else "") + ("DoRA" if self.config.use_dora else "LoRA")


def read_adapter(folder: str | Path) -> AdapterFile:
    """An adapter's folder without its base. Raises: InputError as `load_adapter`."""
    config, raw = read_adapter_config(folder), _read_json(folder)
    base, task = raw.get("base_model_name_or_path"), raw.get("task_type")
    if not isinstance(base, str | None):
        raise InputError(f"{Path(folder) / CONFIG}: base_model_name_or_path must be text or null, got {base!r}")
    numbers = sum(weight.numel() for weight in _read_weights(Path(folder)).values())
    model = next((kind for kind in TASKS if TASKS[kind] == task), Transformer)
    return AdapterFile(config, ValueModel if raw.get(IS_VALUE_MODEL) else model, base, numbers)


def update_sizes(folder: str | Path) -> dict[str, tuple[tuple[int, int], float]]:
    """Module -> shape [out, in] and Frobenius norm of scale B A, which is never built: |B A|^2 = tr(B^T B A A^T)."""
    config, weights = read_adapter_config(folder), _read_weights(Path(folder))
    found = {}
    for name in sorted(weights):
        module = name.removesuffix(f".{PARTS['A']}")
        if module != name and f"{module}.{PARTS['B']}" in weights:
            A, B = weights[name].double(), weights[f"{module}.{PARTS['B']}"].double()
            norm = config.scale * ((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt().item()
            found[module] = (len(B), A.shape[1]), norm
    return found


def read_adapter_config(folder: str | Path) -> LoRAConfig:
    """adapter_config.json -> LoRAConfig. Raises: InputError for what would compute something else here."""
    path, raw = Path(folder) / CONFIG, _read_json(folder)
    try:
        kind, targets = raw["peft_type"], raw.get("target_modules") or ALL
        config = LoRAConfig(
            r=whole(raw["r"]),
            alpha=float(raw["lora_alpha"]),
            dropout=float(raw.get("lora_dropout", 0)),
            target_modules=(targets,) if isinstance(targets, str) else tuple(targets),
            use_rslora=bool(raw.get("use_rslora")),
            use_dora=bool(raw.get("use_dora")),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: needed JSON with peft_type, r and lora_alpha ({error!r})") from None
    if kind != "LORA":
        raise InputError(f"{path}: peft_type must be LORA, the only one there is here, got {kind!r}")
    neutral = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva")}
    for key, value in raw.items():
        if value and key not in HARMLESS and value not in neutral.get(key, ()):
            raise InputError(f"{path}: {key} is not known here and must be unset, got {value!r}; merge it with PEFT")
    return config


def whole(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")
    return value


def _read_json(folder: str | Path) -> dict:
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: needed an adapter folder with {CONFIG}, found none; check the path")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: needed JSON with peft_type, r and lora_alpha ({error!r})") from None
    return raw


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's file, without PEFT's prefix."""
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLE).exists():
            raise InputError(
                f"{folder / PICKLE}: a pickle can run code and is not read; convert it where you trust it: "
                f"safetensors.torch.save_file(torch.load('{PICKLE}', weights_only=True), '{WEIGHTS}')"
            )
        raise InputError(f"{folder / WEIGHTS}: needed this file, found none; is the download complete?")
    try:
        return {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    except (SafetensorError, OSError) as error:
        message = f"{folder / WEIGHTS}: needed a complete safetensors file ({error}); copy or save it again"
        raise InputError(message) from None


def _without_bases(folder: str | Path, weights: dict[str, Tensor], bases: dict[str, nn.Linear]) -> dict[str, Tensor]:
    """PEFT saves the weight of an adapted lm_head beside its adapter. It must be the one there is."""
    copies = {f"{n}.base_layer.weight": base.weight for n, base in bases.items() if f"{n}.base_layer.weight" in weights}
    for name, own in copies.items():
        if weights[name].shape != own.shape or not torch.equal(weights[name].to(own), own.detach()):
            raise InputError(f"{folder}: {name} is not the weight of the model; is the adapter for another base?")
    return {name: weight for name, weight in weights.items() if name not in copies}


def _check_shapes(
    folder: str | Path,
    config: LoRAConfig,
    weights: dict[str, Tensor],
    bases: dict[str, nn.Linear],
    heads: dict[str, nn.Parameter],
) -> None:
    """Raise InputError unless the file holds what adapters of this config on these Linears do, and the score head."""
    needed = {n: tuple(p.shape) for n, p in heads.items() if n in weights or n.startswith("score.")}
    for n, base in bases.items():
        needed[f"{n}.{PARTS['A']}"] = (config.r, base.in_features)
        needed[f"{n}.{PARTS['B']}"] = (base.out_features, config.r)
        if config.use_dora:
            needed[f"{n}.{PARTS['magnitude']}"] = (base.out_features,)
    if missing := sorted(needed.keys() - weights.keys()):
        raise InputError(f"{folder}: {len(missing)} weights are missing: {', '.join(missing[:3])}; save it again")
    if surplus := sorted(weights.keys() - needed.keys()):
        raise InputError(
            f"{folder}: {len(surplus)} weights have no place in the model: {', '.join(surplus[:3])}; is it an adapter "
            "of another kind of model? What modules_to_save adds is not read, merge that with PEFT"
        )
    for name in sorted(needed):
        if weights[name].shape != needed[name]:
            raise InputError(
                f"{folder}: {name} must be {needed[name]} by the model and {CONFIG}, got {tuple(weights[name].shape)}; "
                "is the adapter for another base?"
            )


def _saved(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters that belong in an adapter's files, by their names there."""
    parts = [(name_in_files(model, n), one) for n, one in adapters_of(model, name).items()]
    return {f"{n}.{PARTS[part]}": p for n, one in parts for part, p in one.named_parameters()} | _heads(model)


def _heads(model: nn.Module) -> dict[str, nn.Parameter]:
    """The head of one number, by its parameters' names in the files."""
    head = getattr(model, "score", None) or getattr(model, "value_head", None)
    name = "value_head" if isinstance(model, Policy) else "score"  # of a policy's files nobody else reads it
    return {f"{name}.{n}": p for n, p in head.named_parameters()} if head is not None else {}


def _shortest(adapted: list[str], linears: list[str]) -> list[str]:
    """Last parts of names if all modules that end so are adapted, else full names."""
    leaves = {name.split(".")[-1] for name in adapted}
    return sorted(leaves if {n for n in linears if n.split(".")[-1] in leaves} == set(adapted) else adapted)
