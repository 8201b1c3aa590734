"""The time of a step, roughly: its operations by the rate of a usual processor."""

from __future__ import annotations

import os

from minirlhf.algorithms.on_policy import OnPolicyConfig
from minirlhf.jobs.checks import own_stage, shape_of, stages_of
from minirlhf.jobs.footprint import Step
from minirlhf.jobs.given_models import computes_in_bf16
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.plan import config_of, longest_rows, rank_of, rows_of_stage, step_of
from minirlhf.model.config import ModelConfig
from minirlhf.model.footprint import BF16, FP32, parameters
from minirlhf.runtime.distributed import world_size

# (operations, bytes of memory) a second: about half of what the makers promise
GPU_BF16, GPU_FP32, CPU_CORE = (3e14, 1.5e12), (3e13, 1.5e12), (5e10, 1e10)
UPDATE = 0.01  # seconds
CLASSES = ((1, "less than a second"), (60, "seconds"), (3600, "minutes"), (86400, "hours"))


def time_class(job: Opened, shape: ModelConfig, stage: str, step: Step, gpu: bool) -> str:
    """The time of a step of a stage in words: seconds, minutes, hours."""
    seconds = seconds_of_step(job, shape, stage, step, gpu)
    return next((name for most, name in CLASSES if seconds < most), "days")


def seconds_of_stages(job: Opened, after: tuple[str, ...]) -> dict[str, float | None]:
    """Stage -> roughly its seconds, without evaluations; None if its rows are not in ids, or it trains no decoder.

    The rate is that of one processor core or one GPU: only the ratios of the stages are of use.
    """
    if "model" not in job.settings:
        return dict.fromkeys([*stages_of(job, after), own_stage(job)])
    shape, processes, gpu = shape_of(job), world_size(), job.device.type == "cuda"
    found: dict[str, float | None] = {}
    for stage, longest in longest_rows(job, after).items():
        if longest is None:
            found[stage] = None
            continue
        steps = config_of(job, stage).steps_for(len(rows_of_stage(job, stage)))
        step = step_of(job, stage, shape, processes, longest)
        found[stage] = float(f"{steps * seconds_of_step(job, shape, stage, step, gpu):.3g}")
    return found


def seconds_of_step(job: Opened, shape: ModelConfig, stage: str, step: Step, gpu: bool) -> float:
    """Operations over their rate and, for sampling, a read of all weights for each new token.

    A forward takes 2 operations for each weight and token, a backward pass 4, or 2 if the weights are frozen. Of a
    small model most of the time is that of Python and of the start of kernels, once for each update.
    """
    half, config, n = computes_in_bf16(job.common), config_of(job, stage), parameters(shape)
    rate, bandwidth = (GPU_BF16 if half else GPU_FP32) if gpu else (x * (os.cpu_count() or 1) for x in CPU_CORE)
    update = 2 + (2 if rank_of(job) else 4) + {"none": 0, "selective": 1, "full": 2}[job.common.gradient_checkpointing]
    if not isinstance(config, OnPolicyConfig):
        return n * update * step.rows * step.row / rate + UPDATE
    updates = config.epochs * config.minibatches
    operations = update * updates * step.rows + 3 * 2 * step.sampled  # sampler, reference and reward read the rows
    return (
        UPDATE * updates
        + n * operations * step.row / rate
        + config.max_tokens * n * (BF16 if half else FP32) / bandwidth
    )
