"""A job that needs more memory than there is: told before the first step; after an error, with settings that fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from minirlhf.errors import InputError
from minirlhf.foreign import allocator_error
from minirlhf.jobs.checks import own_stage, shape_of, stages_of
from minirlhf.jobs.fits_file import table, text_of
from minirlhf.jobs.fitting import Machine, Plan, first_that_fits, fits, flags, planned
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.parallel import machines
from minirlhf.jobs.plan import longest_rows
from minirlhf.jobs.strategies import ROOM
from minirlhf.runtime.distributed import gather, say, world_size
from minirlhf.runtime.memory import in_words, share_of_process
from minirlhf.torchrun import show_once
from minirlhf.training.checkpoint import write_whole
from minirlhf.training.journal import peak_memory_mb
from minirlhf.training.run import finished_model

FITS = "fits.toml"  # in the folder of the job
LESS = 0.8  # of the memory that failed, for the advice after an error: the plan was too low
# A run may go on with other values of these.
SAME_RUN = ("microbatch_tokens", "gradient_checkpointing", "parallel", "shard_optimizer")


@contextmanager
def advised(job: Opened, after: tuple[str, ...]) -> Iterator[None]:
    """Compare the plan of the job with the free memory. In the block, an error of the allocator becomes a table of the
    memory by plan, and advice.

    A system without a GPU kills a process that takes too much memory, without a word, so the comparison comes first.
    Raises: InputError for an error of the allocator.
    """
    shape, free = shape_of(job), min(gather(share_of_process(job.device)))
    machine = Machine(world_size(), machines(), free, longest_rows(job, after))
    plan = planned(job, shape, after, machine)
    if not fits(plan, machine):
        found = first_that_fits(job, shape, after, machine)
        say(
            f"{plan.stage} needs about {in_words(plan.memory.total)} of memory by plan, {in_words(free)} are free on "
            f"{job.device.type}: the system may end the job; {remedy(found)}"
        )
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (reason := allocator_error(error)):
            raise
        failed = planned(job, shape, after, machine, stage=stage_in_progress(job, after))
        show_once(f"{memory_in_words(failed, free)}:\n\n{table(failed)}\n")
        machine = replace(machine, free=min(free, LESS * plan.memory.total / ROOM))
        found = first_that_fits(job, shape, after, machine)
        raise InputError(f"{job.folder}: {reason}; {written(found, job)}") from None


def stage_in_progress(job: Opened, after: tuple[str, ...]) -> str:
    """The first stage of the job without a finished model."""
    stages = [*stages_of(job, after), own_stage(job)]
    return next((stage for stage in stages if finished_model(job.folder / stage) is None), stages[-1])


def memory_in_words(plan: Plan, free: float) -> str:
    """A line above the table of a plan: its stage, the memory at the start, and the largest memory of this process."""
    device = plan.job.device
    peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 1e6 * peak_memory_mb()
    return (
        f"out of memory: {in_words(free)} were free on {device.type} at the start, and this process held up to "
        f"{in_words(peak)}; by plan, {plan.stage} needs in each process"
    )


def remedy(found: Plan | None) -> str:
    """Settings that fit, in words."""
    if found is None:
        return "no settings fit: take a smaller model, shorter rows, more processes or another machine"
    return f"{flags(found.changes)} would need {in_words(found.memory.total)}"


def written(found: Plan | None, job: Opened) -> str:
    """Write the settings that fit beside the run -> advice."""
    if found is None:
        return remedy(None)
    write_whole(path := job.folder / FITS, text_of(found))
    goes_on = all(name.rpartition(".")[2] in SAME_RUN for name in found.changes)
    rest = f"go on with --config {path} --output {job.folder} --resume" if goes_on else f"start with --config {path}"
    return f"{remedy(found)} by plan; {rest}"
