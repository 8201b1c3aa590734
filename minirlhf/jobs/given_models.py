"""Models that a user gives: loaded from folders, and prepared as `--train` and `--freeze` ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minirlhf.adapters import apply_lora, count_parameters, freeze, memory_report, quantise_linears
from minirlhf.adapters.quantised import quantised_slices
from minirlhf.algorithms.distillation_checks import check_same_tokenizer
from minirlhf.data.encoding import encode_texts
from minirlhf.data.wrapping import Wrapped
from minirlhf.errors import InputError, shown
from minirlhf.jobs.data_flags import flags_of
from minirlhf.jobs.models import resolve_model, to_device
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.settings import JobConfig, changed
from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import Policy, RewardModel, ValueModel, copy_of
from minirlhf.model.transformer import Transformer
from minirlhf.pretrained import load_policy, load_pretrained, load_reward_model
from minirlhf.pretrained.model_weights import is_sharded
from minirlhf.pretrained.weights import Uninitialised, empty_policy, read_config
from minirlhf.rewards.scoring import RewardModelScorer
from minirlhf.runtime.device import resolve_device
from minirlhf.runtime.distributed import say, world_size
from minirlhf.runtime.randomness import seed_everything
from minirlhf.text.checkpoint_tokenizer.answer_end import lines_about_answers
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.text.vocabulary import largest_needed_id, names_beyond
from minirlhf.training.checkpoint import is_complete


def given_policy(job: JobConfig, config: ModelConfig, tokenizer: Tokenizer) -> Policy:
    """The model of `--policy`. Names the settings of new models that the user has set: they have no effect here."""
    policy = load_policy(resolve_model(job.policy), dtype=weights_dtype(job))
    check_vocabulary(policy.transformer.config, tokenizer, job.policy)
    if unread := [*(f"model.{name}" for name in changed(config)), *({"vocab_size"} & set(changed(job)))]:
        say(f"not read, because {job.policy} has its own: {', '.join(unread)}")
    return policy


def given_student(job: Opened, student: str) -> Policy:
    """The model of the folder `student`, all of it trained. Raises: InputError if its tokenizer is not the job's."""
    policy = load_policy(resolve_model(student), dtype=torch.float32)
    check_student(job, student)
    return to_device(policy, job.common, job.device)


def check_student(job: Opened, student: str) -> None:
    """Raise InputError if the folder is no policy, or its tokenizer is not the job's. The weights are not read."""
    folder = resolve_model(student)
    empty_policy(folder)
    check_same_tokenizer(f"--student {student}", Tokenizer.load(folder), job.tokenizer)


def check_value(job: Opened, value: str, shape: ModelConfig) -> None:
    """Raise InputError if the folder holds no reward or value model, or it cannot read the policy's texts."""
    folder = value_folder(value)
    config, model_class = read_config(folder)
    if model_class not in (RewardModel, ValueModel):
        raise InputError(
            f"--value {value}: needed a reward or value model, got a {model_class.__name__}; check the folder"
        )
    if (ours := shape.max_position_embeddings) > config.max_position_embeddings:
        theirs = config.max_position_embeddings
        raise InputError(f"--value {value}: needed a context of {ours} tokens, as the policy, got {theirs}")
    check_same_tokenizer(f"--value {value}", Tokenizer.load(folder), job.tokenizer)


def value_folder(value: str) -> Path:
    """The model of a folder: a value model in the newest checkpoint of a PPO run, or a model that was given itself."""
    checkpoints = [path for path in Path(value).glob("checkpoints/step-*/value") if is_complete(path.parent)]
    return max(checkpoints, key=lambda path: int(path.parent.name[5:])) if checkpoints else resolve_model(value)


def value_model_for(job: Opened, base: Policy) -> ValueModel | None:
    """The value model of `--value`, or one on a copy of the policy's trunk; None: the policy has a value head."""
    if given := getattr(job.common, "value", None):
        return given_value(job, given)
    return ValueModel(copy_of(base).transformer) if job.config.separate_value_model else None


def given_value(job: Opened, value: str) -> ValueModel:
    """The value model of `--value`. A reward model becomes a value model: its scores are the first values."""
    model = load_pretrained(value_folder(value), torch.float32)
    if isinstance(model, ValueModel):
        return model
    with torch.device("meta"), Uninitialised():
        converted = ValueModel(Transformer(model.config))
    converted.model = model.model
    converted.value_head.load_state_dict({"weight": model.score.weight.data, "bias": torch.zeros(1)}, assign=True)
    return converted


def narrower(shape: ModelConfig, width: int) -> ModelConfig:
    """A shape with another hidden size; the MLP shrinks in the same ratio.   Raises: InputError if it fits no model."""
    inner = int(width / shape.hidden_size * shape.intermediate_size)
    return replace(shape, hidden_size=width, intermediate_size=inner)


def weights_dtype(job: JobConfig) -> torch.dtype | None:
    """Trained weights are fp32, because bf16 loses small updates. Frozen weights keep the dtype of their file (None) if
    the job computes in bf16 or will quantise them.
    """
    return None if job.train == "qlora" or (job.train == "lora" and computes_in_bf16(job)) else torch.float32


def computes_in_bf16(job: JobConfig) -> bool:
    """True if the program's `session` has chosen bf16, or the user has."""
    return job.precision == "bf16" or torch.is_autocast_enabled(resolve_device(job.device).type)


def adapt(model: nn.Module, settings: dict[str, Any], device: torch.device) -> nn.Module:
    """Freeze, quantise and add LoRA as `--train` and `--freeze` ask, in place; then move the model to the device."""
    job = settings["job"]
    if world_size() > 1:
        from minirlhf.runtime.parallel.copies import placed
        from minirlhf.runtime.parallel.strategy import current

        if job.train != "qlora" or current().shards:
            # the base goes into slices first; the adapters then stay whole. A base in 4 bits is a copy in any case.
            model = placed(model, device, own=job.train != "qlora")
    if job.train == "all":
        # A reward model has no lm_head, so a pattern may match nothing in it.
        freeze(model, job.freeze, strict=isinstance(model, Policy))
        if not any(p.requires_grad for p in model.parameters()):
            raise InputError(f"--freeze {','.join(job.freeze)}: no parameter is left to train; freeze fewer")
        if job.freeze:
            say("{:,} of {:,} numbers are trained".format(*count_parameters(model)))
    else:
        seed_everything(job.seed)  # the new adapter depends on the seed alone
        model = converted_base(model, job)
        apply_lora(model, settings["lora"])
        say("{}: {:,} of {:,} numbers are trained".format(job.train, *count_parameters(model)))
    return to_device(model, job, device)


def converted_base(model: nn.Module, job: JobConfig) -> nn.Module:
    """The frozen base of adapters: Linears in 4 bits for qlora, other weights in fp32 unless the job computes in bf16.

    A base in slices moves into new slices for qlora; otherwise `model` is changed in place.
    """
    dtype = None if computes_in_bf16(job) else torch.float32  # weights in 4 bits are integers, so they stay in 4 bits
    if job.train != "qlora":
        return model.to(dtype=dtype)
    if is_sharded(model):
        from minirlhf.runtime.parallel.copies import moved

        model = moved(model, lambda base: quantised_slices(base, dtype))
    else:
        model = quantise_linears(model).to(dtype=dtype)
    report = memory_report(model)
    say(f"in 4 bits: {report['quantised_bytes']:,} bytes, {report['quantised_share_of_fp32']:.3f} of fp32")
    return model


def check_vocabulary(
    config: ModelConfig, tokenizer: Tokenizer, folder: str | Path, tell: Callable[[str], None] = say
) -> None:
    """Raise InputError if the tokenizer gives ids that the model does not know.

    Tell of unknown tokens that only some texts contain, of settings in the tokenizer's folder that no code here
    follows, and of answers that end with another token than the folder names.
    """
    if (largest := largest_needed_id(tokenizer)) >= config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer gives ids up to {largest}, the model's vocabulary holds {config.vocab_size}; "
            "they do not belong together"
        )
    if names := names_beyond(tokenizer, config.vocab_size):
        tell(f"{folder}: the model has no row for {shown(names)}; texts with these tokens are refused")
    for line in (*tokenizer.parts.notes, *lines_about_answers(tokenizer.parts)):
        tell(f"{folder}: {line}")


def scorer_of(job: Opened, model: RewardModel) -> RewardModelScorer:
    """The scores of the job's own reward model. They read prompts as its training does."""
    return RewardModelScorer(model, job.tokenizer, job.config.microbatch_tokens, flags_of(job.common).wrap)


def load_scorer(job: Opened, folder: Path, microbatch_tokens: int) -> RewardModelScorer:
    """The reward model of a folder. Raises: InputError if its chat template refuses prompts of the task."""
    model, tokenizer = load_reward_model(folder, torch.float32), Tokenizer.load(folder)
    check_vocabulary(model.config, tokenizer, folder)
    wrap = flags_of(job.common).wrap
    prompts = Wrapped.of([*job.task.prompts, *job.task.held_out_prompts], tokenizer, wrap)
    check_readable(tokenizer, prompts, folder, model.config.vocab_size, job.task.unit)
    return RewardModelScorer(to_device(model, job.common, job.device), tokenizer, microbatch_tokens, wrap)


def check_readable(
    tokenizer: Tokenizer, prompts: Sequence[dict], folder: Path, vocabulary: int, unit: str = "line"
) -> None:
    """Raise InputError if a reward model cannot read some prompts. Without this check the job would stop at
    such a prompt, perhaps after hours.
    """
    rows = [{**row, "completion": "Yes."} for row in prompts]
    for responses in ((), ("completion",)):
        encoded = encode_texts(tokenizer, rows, responses, vocabulary, sampled=True)
        refusals = [(row, error) for row, error in zip(rows, encoded, strict=True) if isinstance(error, InputError)]
        if refusals:
            row, error = refusals[0]
            raise InputError(
                f"{folder}: this reward model's {'chat template' if tokenizer.templates else 'tokenizer'} refuses "
                f"{len(refusals)} of {len(rows)} {'answers to ' if responses else ''}prompts, such as {unit} "
                f"{row.get('line')} ({error}); leave these rows out"
            )
