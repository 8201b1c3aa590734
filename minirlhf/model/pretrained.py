"""Read and write models as folders in the Hugging Face layout: config.json and model.safetensors.

Module names are those of the Llama there, so nothing is renamed; the value head, which that layout does not know,
stands in a file of its own beside them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minirlhf.errors import InputError
from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import Policy, ProcessRewardModel, RewardModel, ValueModel
from minirlhf.model.transformer import Transformer

CONFIG, WEIGHTS, VALUE_HEAD = "config.json", "model.safetensors", "value_head.safetensors"
# What the transformer computes and config.json may say otherwise: anything else there would mean other logits
FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_scaling": None, "pretraining_tp": 1}
ARCHITECTURES = {
    Transformer: "LlamaForCausalLM",
    RewardModel: "LlamaForSequenceClassification",
    ProcessRewardModel: "LlamaForTokenClassification",
    ValueModel: "MinirlhfValueModel",
}


def save_pretrained(
    model: Transformer | Policy | RewardModel | ValueModel, folder: str | Path, token_ids: dict[str, int] | None = None
) -> None:
    """Write config.json and model.safetensors (and value_head.safetensors for a policy that has one) into `folder`.

    `token_ids` (pad_token_id, bos_token_id, eos_token_id; see `Tokenizer.token_ids`) go into config.json, where other
    tools look for them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, Policy):
        if model.value_head is not None:
            save_file(_on_cpu(model.value_head.state_dict()), folder / VALUE_HEAD, {"format": "pt"})
        else:
            (folder / VALUE_HEAD).unlink(missing_ok=True)  # of a policy that was saved here before
        model = model.transformer
    save_file(_on_cpu(model.state_dict()), folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps({**_hf_config(model), **(token_ids or {})}, indent=2) + "\n")


def load_pretrained(folder: str | Path) -> Transformer | RewardModel | ValueModel:
    """The model in a folder, on the CPU; config.json's `architectures` says which kind.

    Raises: InputError if a file is missing or broken, or a weight is missing, left over or of another shape.
    """
    folder = Path(folder)
    config, kind = read_config(folder)
    transformer = Transformer(config)
    model = transformer if kind is Transformer else kind(transformer)
    load_weights(model, folder / WEIGHTS)
    return model


def load_into(model: Transformer | Policy | RewardModel | ValueModel, folder: str | Path) -> None:
    """Fill a model that exists from the folder `save_pretrained` wrote it to. Raises: InputError as `load_weights`."""
    if isinstance(model, Policy):
        if model.value_head is not None:
            load_weights(model.value_head, Path(folder) / VALUE_HEAD)
        model = model.transformer
    load_weights(model, Path(folder) / WEIGHTS)


def load_policy(folder: str | Path, value_head: bool = False) -> Policy:
    """A policy from a folder of a causal model; its value head too if one is asked for and stands there.

    Raises: InputError as `load_pretrained`, and if the folder holds a reward or value model.
    """
    transformer = load_pretrained(folder)
    if not isinstance(transformer, Transformer):
        raise InputError(f"{folder}: needed a language model, got a {type(transformer).__name__}; check the folder")
    policy = Policy(transformer, value_head)
    if value_head and (Path(folder) / VALUE_HEAD).exists():
        load_weights(policy.value_head, Path(folder) / VALUE_HEAD)
    return policy


def load_reward_model(folder: str | Path) -> RewardModel:
    """A reward model from its folder. Raises: InputError as `load_pretrained`, and if the folder holds another kind."""
    model = load_pretrained(folder)
    if not isinstance(model, RewardModel):
        raise InputError(f"{folder}: needed a reward model, got a {type(model).__name__}; check the folder")
    return model


def read_config(folder: str | Path) -> tuple[ModelConfig, type[nn.Module]]:
    """config.json -> (ModelConfig, which class its weights are for). Raises: InputError."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: needed a model folder with {CONFIG}, found none; check the path")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["vocab_size"], architectures = int(raw["vocab_size"]), list(raw["architectures"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: needed a model's JSON with vocab_size and architectures ({error!r})") from None
    kinds = {name: kind for kind, name in ARCHITECTURES.items()}
    kind = next((kinds[name] for name in architectures if name in kinds), None)
    if kind is None:
        raise InputError(f"{path}: architecture must be one of {', '.join(kinds)}, got {architectures}")
    rope = raw.get("rope_parameters") or {}  # where newer writers keep the base of the wavelengths
    if not isinstance(rope, dict):
        raise InputError(f"{path}: rope_parameters must be an object, got {rope!r}")
    raw = {"rope_theta": rope.get("rope_theta", ModelConfig.rope_theta), **raw}
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"{path}: rope_parameters must be of type default, got {rope['rope_type']!r}")
    for name, needed in FIXED.items():
        if raw.get(name, needed) != needed:
            raise InputError(f"{path}: {name} must be {needed}, the only one there is here, got {raw[name]!r}")
    known = {key: value for key, value in raw.items() if key in ModelConfig.__dataclass_fields__}
    for name, hint in get_type_hints(ModelConfig).items():
        if name in known and not isinstance(known[name], float | int if hint is float else hint):
            raise InputError(f"{path}: {name} must be {getattr(hint, '__name__', hint)}, got {known[name]!r}")
    config = ModelConfig(**known)
    derived = config.head_width * config.num_attention_heads == config.hidden_size
    return (dataclasses.replace(config, head_dim=None) if derived else config), kind


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` from a safetensors file, all names and shapes as they are in the model. Raises: InputError."""
    if not path.is_file():
        there = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".safetensors"))
        raise InputError(
            f"{path}: needed this file, found {', '.join(there) or 'no weights'}; pickles and shards are not "
            "read, save the model as one safetensors file"
        )
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: needed a complete safetensors file ({error}); copy or save it again") from None
    expected = model.state_dict()
    if missing := sorted(expected.keys() - weights.keys()):
        raise InputError(f"{path}: {len(missing)} weights are missing: {', '.join(missing[:3])}; is it another model?")
    if surplus := sorted(weights.keys() - expected.keys()):
        raise InputError(f"{path}: {len(surplus)} weights are not the model's: {', '.join(surplus[:3])}")
    for name, tensor in expected.items():
        if tensor.shape != weights[name].shape:
            raise InputError(
                f"{path}: {name} must be {tuple(tensor.shape)} as config.json says, got {tuple(weights[name].shape)}"
            )
    model.load_state_dict(weights)


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}


def _hf_config(model: nn.Module) -> dict:
    config = {**dataclasses.asdict(model.config), "head_dim": model.config.head_width}
    dtype = next(model.parameters()).dtype
    labels = {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}}
    return {
        "architectures": [ARCHITECTURES[type(model)]],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **config,
        **(labels if isinstance(model, RewardModel | ProcessRewardModel) else {}),
    }
