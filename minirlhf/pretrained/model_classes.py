"""The model classes that a folder can hold, and their names in config.json and in adapter_config.json."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from minirlhf.errors import InputError, shown
from minirlhf.model.policy import RewardModel, ValueModel
from minirlhf.model.process_reward import ProcessRewardModel
from minirlhf.model.transformer import Transformer
from minirlhf.pretrained.families import family_of
from minirlhf.pretrained.safe import check_type


class Names(NamedTuple):
    architecture: str  # config.json: the end of the class name, after the family's part
    task: str  # adapter_config.json: task_type


MODEL_CLASSES: dict[type[nn.Module], Names] = {
    Transformer: Names("ForCausalLM", "CAUSAL_LM"),
    RewardModel: Names("ForSequenceClassification", "SEQ_CLS"),
    ProcessRewardModel: Names("ForTokenClassification", "TOKEN_CLS"),
    # other tools read a score at token t; minirlhf reads this number as the value of token t + 1
    ValueModel: Names("ForTokenClassification", "TOKEN_CLS"),
}
SCALAR_MODELS = (RewardModel, ProcessRewardModel, ValueModel)  # their head has one output
IS_VALUE_MODEL = "value_model"  # minirlhf's own key: True for a value model, absent for a process reward model
IRREGULAR = {
    ("gpt2", Transformer): "GPT2LMHeadModel",
    ("gemma3_text", RewardModel): "Gemma3TextForSequenceClassification",
}


def architecture(model_type: str, model_class: type[nn.Module]) -> str:
    """The name of the class that loads the folder in other tools."""
    regular = family_of(model_type).architecture + MODEL_CLASSES[model_class].architecture
    return IRREGULAR.get((model_type, model_class), regular)


def task_of(model: nn.Module) -> str:
    """The model's task_type in adapter_config.json; a policy counts as a Transformer."""
    return next((names.task for cls, names in MODEL_CLASSES.items() if isinstance(model, cls)), "CAUSAL_LM")


def class_of_task(raw: dict[str, Any]) -> type[nn.Module]:
    """adapter_config.json -> the model class; a Transformer if its task_type is unknown."""
    if raw.get(IS_VALUE_MODEL):
        return ValueModel
    found = (model_class for model_class, names in MODEL_CLASSES.items() if names.task == raw.get("task_type"))
    return next(found, Transformer)


def class_of_architectures(raw: dict[str, Any], model_type: str) -> type[nn.Module]:
    """config.json -> the model class; without `architectures`, a language model.

    Raises: InputError if `architectures` names no known class, or if model_type is missing too.
    """
    names = [] if raw.get("architectures") is None else raw["architectures"]
    check_type("architectures", names, list)
    for name in names:
        check_type("each entry of architectures", name, str)
    if not names and "model_type" not in raw:
        raise InputError("model_type and architectures are missing; a model needs model_type")
    known = {architecture(model_type, cls): cls for cls in MODEL_CLASSES if cls is not ValueModel}
    found = [known[name] for name in names if name in known] or [Transformer] * (not names)
    if not found:
        raise InputError(f"architecture must be one of {', '.join(known)}, got {shown(names)}")
    return ValueModel if found[0] is ProcessRewardModel and raw.get(IS_VALUE_MODEL) else found[0]


def mark(model: nn.Module) -> dict[str, bool]:
    """The extra key for the JSON files of a value model; empty for other models."""
    return {IS_VALUE_MODEL: True} if isinstance(model, ValueModel) else {}
