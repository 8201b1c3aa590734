"""What a job needs of memory and disk, from the shapes of its models: weights, gradients, optimizer, checkpoints.

Activations and the cache of sampling come on top. They depend on microbatch_tokens and on the batch of sampling; the
step of `minirlhf check` shows them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minirlhf.adapters import apply_lora, count_parameters
from minirlhf.jobs.checks import empty, own_stage, stages_of
from minirlhf.jobs.given_models import computes_in_bf16, narrower
from minirlhf.jobs.learning_rates import parameters
from minirlhf.jobs.models import resolve_model
from minirlhf.jobs.opened import Opened
from minirlhf.model.config import ModelConfig
from minirlhf.pretrained.weights import read_config

WITH_REFERENCE = ("ppo", "grpo", "dpo", "unpaired", "online_dpo")
FP32, QUANTISED = 4.0, 0.6  # bytes of a weight
GRADIENT_AND_MOMENTS = 12  # bytes of a trained weight beside the weight itself: AdamW keeps two numbers of fp32
MOMENTS = 8


def memory_of_stages(job: Opened, shape: ModelConfig, after: tuple[str, ...]) -> dict[str, float]:
    """Stage -> bytes of its models, gradients and optimizers. They stay as long as the stage runs."""
    n, trained = parameters(shape), training_bytes(job, shape)
    frozen = bytes_of_a_frozen_weight(job) * n
    stages = {"sft": trained, "reward": frozen + trained}
    needed = {stage: stages[stage] for stage in stages_of(job, after)}
    section, own = job.section, trained
    if section in WITH_REFERENCE:
        own += frozen if job.common.train == "all" else 0  # adapters share the base with the reference
    if "reward" in after:
        own += reward_bytes(job, frozen)
    if getattr(job.config, "separate_value_model", False) or getattr(job.common, "value", None):
        own += trained
    if section == "distillation":
        own = FP32 * n + (FP32 + GRADIENT_AND_MOMENTS) * parameters(student_shape(job, shape))
    return {**needed, own_stage(job): own}


def disk_of_stages(job: Opened, shape: ModelConfig, after: tuple[str, ...]) -> float:
    """Bytes of the checkpoints that the job keeps, and of its final models."""
    trained = trained_weights(job, shape)
    kept = job.settings["run"].keep + 2  # the best too, and the new checkpoint before the oldest goes
    return len([*stages_of(job, after), own_stage(job)]) * (
        kept * (FP32 + MOMENTS) * trained + FP32 * parameters(shape)
    )


def training_bytes(job: Opened, shape: ModelConfig) -> float:
    """Bytes of a model in training."""
    adapters = FP32 * trained_weights(job, shape) if job.common.train != "all" else 0
    base = bytes_of_a_frozen_weight(job) * parameters(shape)
    return base + adapters + GRADIENT_AND_MOMENTS * trained_weights(job, shape)


def trained_weights(job: Opened, shape: ModelConfig) -> int:
    if job.common.train == "all" or not job.common.policy:
        return parameters(shape)
    return count_parameters(apply_lora(empty(shape), job.settings["lora"]))[0]


def bytes_of_a_frozen_weight(job: Opened) -> float:
    if job.common.train == "qlora":
        return QUANTISED
    return 2.0 if job.common.train == "lora" and computes_in_bf16(job.common) else FP32


def reward_bytes(job: Opened, trained_here: float) -> float:
    """Bytes of the reward models beside the policy; a function needs none."""
    names = (job.common.reward or "").split(",")
    folders = [name.strip() for name in names if name.strip() and Path(name.strip()).is_dir()]
    given = sum(FP32 * parameters(read_config(resolve_model(folder))[0]) for folder in folders)
    return given if job.common.reward or job.task.reward else trained_here


def student_shape(job: Any, teacher: ModelConfig) -> ModelConfig:
    if job.common.student:
        return read_config(resolve_model(job.common.student))[0]
    return narrower(teacher, job.common.student_width)
