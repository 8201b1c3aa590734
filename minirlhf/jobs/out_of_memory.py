"""A job that needs more memory than there is: told before the first step, and with settings that fit after an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from minirlhf.errors import InputError
from minirlhf.foreign import allocator_error
from minirlhf.jobs.checks import shape_of
from minirlhf.jobs.fitting import Machine, Plan, first_that_fits, fits, flags, planned
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.parallel import machines
from minirlhf.jobs.plan import longest_rows
from minirlhf.jobs.strategies import ROOM
from minirlhf.runtime.distributed import gather, say, world_size
from minirlhf.runtime.memory import in_words, share_of_process
from minirlhf.training.checkpoint import write_whole
from minirlhf.training.settings import settings_to_toml

FITS = "fits.toml"  # in the folder of the job
LESS = 0.8  # of the memory that failed, for the advice after an error: the plan was too low
SAME_RUN = ("microbatch_tokens", "gradient_checkpointing")  # a run may go on with other values of these


@contextmanager
def advised(job: Opened, after: tuple[str, ...]) -> Iterator[None]:
    """Compare the plan of the job with the free memory. In the block, an error of the allocator becomes advice.

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
    least = min(free, LESS * plan.memory.total / ROOM)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (reason := allocator_error(error)):
            raise
        less = first_that_fits(job, shape, after, replace(machine, free=least))
        raise InputError(f"{job.folder}: {reason}; {written(less, job)}") from None


def remedy(found: Plan | None) -> str:
    """Settings that fit, in words."""
    if found is None:
        return "no settings fit: take a smaller model, shorter rows, more processes or another machine"
    return f"{flags(found.changes)} would need {in_words(found.memory.total)}"


def written(found: Plan | None, job: Opened) -> str:
    """Write the settings that fit beside the run -> advice."""
    if found is None:
        return remedy(None)
    write_whole(path := job.folder / FITS, settings_to_toml(found.job.settings))
    goes_on = all(name.rpartition(".")[2] in SAME_RUN for name in found.changes)
    rest = f"go on with --config {path} --output {job.folder} --resume" if goes_on else f"start with --config {path}"
    return f"{remedy(found)} by plan; {rest}"
