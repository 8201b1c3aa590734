"""The memory and disk that a job needs, from its settings, the shapes of its models and the lengths of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from minirlhf.adapters import LoRAConfig, apply_lora, count_parameters
from minirlhf.algorithms.on_policy import OnPolicyConfig
from minirlhf.data.dealing import length
from minirlhf.data.encoding import EncodedRow
from minirlhf.jobs.checks import SECTIONS, empty, own_stage, part_of, stages_of
from minirlhf.jobs.footprint import FP32, MOMENTS, Footprint, Step, footprint
from minirlhf.jobs.given_models import computes_in_bf16, narrower
from minirlhf.jobs.models import EVERY, resolve_model
from minirlhf.jobs.opened import Opened
from minirlhf.model.config import ModelConfig
from minirlhf.model.footprint import parameters
from minirlhf.model.prefix_tree import LEAST
from minirlhf.pretrained.weights import read_config

WITH_REFERENCE = ("ppo", "grpo", "dpo", "unpaired", "online_dpo")
QUANTISED = 0.6  # bytes of a weight in 4 bits, with its scales
PARTS_OF = {"ppo": "prompts", "grpo": "prompts", "online_dpo": "prompts", "dpo": "pairs"}
PARTS_OF |= {"unpaired": "unpaired", "distillation": "sft"}  # stage -> the part of the task that it trains on
SIDES = {"reward_model": 2, "dpo": 2, "online_dpo": 2}  # section -> completions of a row in one forward
Lengths = tuple[int, int]  # tokens of a row's prompt, and of its longest answer
LOOKED_AT = 1000  # rows, for the longest of them


def footprints(
    job: Opened, shape: ModelConfig, after: tuple[str, ...], processes: int, rows: Mapping[str, Lengths | None]
) -> dict[str, Footprint]:
    """Stage -> the memory of one of several processes that hold their models whole.

    rows: stage -> the lengths of its longest row, see `longest_rows`; None: the whole context.
    """
    n, trained, model = parameters(shape), trained_weights(job, shape), model_bytes(job, shape)
    frozen = bytes_of_a_frozen_weight(job) * n

    def of(stage: str, shape: ModelConfig, weights: float, trained: int) -> Footprint:
        step = step_of(job, stage, shape, processes, rows[stage])
        options = {"rank": rank_of(job), "half": computes_in_bf16(job.common)}
        options |= {"every": EVERY[job.common.gradient_checkpointing], "cpu": job.device.type == "cpu"}
        return footprint(shape, step, weights=weights, trained=trained, **options)

    weights = {"sft": model, "reward": frozen + model}
    found = {stage: of(stage, shape, weights[stage], trained) for stage in stages_of(job, after)}
    own, section = own_stage(job), job.section
    if section == "distillation":
        student = student_shape(job, shape)
        return {**found, own: of(own, student, FP32 * (n + parameters(student)), parameters(student))}
    all_weights = model
    if section in WITH_REFERENCE:
        all_weights += frozen if job.common.train == "all" else 0  # adapters share the base with the reference
    if "reward" in after:
        all_weights += reward_bytes(job, frozen)
    if getattr(job.config, "separate_value_model", False) or getattr(job.common, "value", None):
        all_weights, trained = all_weights + model, 2 * trained
    return {**found, own: of(own, shape, all_weights, trained)}


def step_of(job: Opened, stage: str, shape: ModelConfig, processes: int, row: Lengths | None) -> Step:
    """The sizes of a step on one process. row: as in `footprints`."""
    section, config, context = SECTIONS.get(stage, stage), config_of(job, stage), shape.max_position_embeddings
    prompt, answer = row or (0, context)
    new = getattr(config, "max_tokens", 0)  # of completions that are sampled
    if new and job.environment:  # of an episode; the environment's texts are mostly short
        new = min(new * job.environment.max_turns, context - 1)
    if isinstance(config, OnPolicyConfig):
        prompt, answer = min(prompt or answer, context - new), new
    pair = SIDES.get(section, 1)
    sides = getattr(config, "group_size", pair)
    batch = math.ceil(config.batch_size / processes) * sides
    update = math.ceil(getattr(config, "minibatch_size", config.batch_size) / processes) * sides
    fitting = config.microbatch_tokens // pair // (prompt + answer) * pair  # a pair is never parted
    packed = job.device.type == "cpu" and not job.common.compile  # see model/packing.py
    head = section not in ("reward_model", "process_reward")
    return Step(
        prompt=prompt,
        answer=answer,
        rows=update,
        micro=min(update, max(pair, fitting)),
        sides=sides,
        shared=packed and prompt >= LEAST and shape.attn_logit_softcapping is None,
        partial=packed and head,
        sampled=min(batch, max(256, config.batch_size)) if new else 0,
        head=head,
    )


def config_of(job: Opened, stage: str) -> Any:
    """The settings of a stage; of GRPO with the choices of its paper."""
    config = job.settings[SECTIONS.get(stage, stage)]
    return getattr(config, "recipe", config)


def longest_rows(job: Opened, after: tuple[str, ...]) -> dict[str, Lengths | None]:
    """Stage -> the lengths of its longest row. A stage takes its rows, so ask before the first stage begins."""
    return {stage: longest_row(job, stage) for stage in (*stages_of(job, after), own_stage(job))}


def longest_row(job: Opened, stage: str) -> Lengths | None:
    """The lengths of the longest of the first rows that a stage trains on; None if they are not in ids."""
    if not len(rows := rows_of_stage(job, stage)):
        return None
    row = max(rows[:LOOKED_AT], key=length)
    return len(row.prompt), length(row) - len(row.prompt)


def rows_of_stage(job: Opened, stage: str) -> Sequence[EncodedRow]:
    """The rows that a stage trains on; none if they are not in ids, or if the stage has taken them."""
    wanted = part_of(job, stage) or PARTS_OF.get(stage)
    return next((rows for (part, *_), (rows, _) in job.encoded.items() if part == wanted and len(rows)), [])


def rank_of(job: Opened) -> int:
    """The rank of the adapters; 0 if whole models are trained."""
    return 0 if job.common.train == "all" or not job.common.policy else job.settings["lora"].r


def disk_of_stages(job: Opened, shape: ModelConfig, after: tuple[str, ...]) -> float:
    """Bytes of the checkpoints that the job keeps, and of its final models."""
    trained = trained_weights(job, shape)
    kept = job.settings["run"].keep + 2  # the best too, and the new checkpoint before the oldest goes
    return len([*stages_of(job, after), own_stage(job)]) * (
        kept * (FP32 + MOMENTS) * trained + FP32 * parameters(shape)
    )


def model_bytes(job: Opened, shape: ModelConfig) -> float:
    """Bytes of the weights of a model in training, adapters included."""
    adapters = FP32 * trained_weights(job, shape) if job.common.train != "all" else 0
    return bytes_of_a_frozen_weight(job) * parameters(shape) + adapters


def trained_weights(job: Opened, shape: ModelConfig) -> int:
    return adapter_parameters(shape, job.settings["lora"]) if rank_of(job) else parameters(shape)


@lru_cache(maxsize=8)  # the search for settings that fit asks again and again
def adapter_parameters(shape: ModelConfig, lora: LoRAConfig) -> int:
    """Parameters of the adapters of a model."""
    return count_parameters(apply_lora(empty(shape), lora))[0]


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
