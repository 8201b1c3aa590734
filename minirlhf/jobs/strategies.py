"""The strategy of a job: the one that the user names, or the first one whose models fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from minirlhf.jobs.checks import shape_of
from minirlhf.jobs.footprint import Footprint
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.parallel import machines, mode_of, strategy_of
from minirlhf.jobs.plan import footprints, longest_rows
from minirlhf.model.config import ModelConfig
from minirlhf.runtime.distributed import gather, say, world_size
from minirlhf.runtime.memory import in_words, share_of_process
from minirlhf.runtime.parallel.strategy import Strategy, using

ROOM = 0.9  # of the free memory may be used by plan: the plan is within 15% of the measured peaks


@contextmanager
def in_parallel(job: Opened, after: tuple[str, ...]) -> Iterator[Strategy]:
    """Within this context all models of the job are held as its strategy says. Prints the strategy and its reason."""
    if world_size() == 1:
        with using(Strategy()) as strategy:
            yield strategy
        return
    strategy, reason = chosen(job, after)
    say(reason)
    if strategy.shards and job.common.train != "all":
        say("adapters stay whole on each process; the frozen base is in slices")
    with using(strategy):
        yield strategy


def chosen(job: Opened, after: tuple[str, ...]) -> tuple[Strategy, str]:
    """-> (the strategy, a line that says why)."""
    mode, processes = mode_of(job.settings), f"{world_size()} processes"
    if mode != "auto":
        return strategy_of(job.settings, mode), f"{processes}, --parallel {mode}"
    shape = shape_of(job)
    needed = footprints(job, shape, after, world_size(), longest_rows(job, after))
    stage, whole = max(needed.items(), key=lambda item: item[1].total)
    free = min(gather(share_of_process(job.device)))
    strategy, memory = best(job.settings, whole, shape, free, world_size(), machines())
    reason = f"{processes}, --parallel auto: {named(strategy)}, because {stage} needs about {in_words(whole.total)}"
    reason += " in a whole process"
    if strategy != strategy_of(job.settings, "ddp"):
        reason += f" and {in_words(memory.total)} so"
    reason += f"; {in_words(free)} of {job.device.type} memory are free for each process"
    if memory.total > ROOM * free:
        reason += ", which may not suffice: `minirlhf plan` looks for settings that fit"
    return strategy, reason


def best(
    settings: dict[str, Any], whole: Footprint, shape: ModelConfig, free: float, processes: int, machines: int
) -> tuple[Strategy, Footprint]:
    """-> (the first strategy that fits, else the one that needs least; the memory of a process under it).

    ddp sends least. ZeRO-1 sends the new weights too. hsdp sends slices within a machine only; fsdp needs least memory.

    whole: the memory of a process that holds its models whole.   free: bytes that a process may take.
    """
    options = [*strategies_of(settings, processes, machines)]
    found = [(strategy, of_process(whole, strategy, shape, processes)) for strategy in options]
    return next((each for each in found if each[1].total <= ROOM * free), found[-1])


def strategies_of(settings: dict[str, Any], processes: int, machines: int) -> Iterator[Strategy]:
    """The strategies that the job can have, the fastest first."""
    ddp = strategy_of(settings, "ddp")
    yield ddp
    if processes > 1:
        yield replace(ddp, shard_optimizer=True)
        if machines > 1 and processes % machines == 0 and machines < processes:
            yield replace(strategy_of(settings, "hsdp"), replicas=machines)
        yield strategy_of(settings, "fsdp")


def of_process(whole: Footprint, strategy: Strategy, shape: ModelConfig, processes: int) -> Footprint:
    """The memory of a process under a strategy."""
    if strategy.shards:
        parts = processes // (strategy.replicas if strategy.mode == "hsdp" else 1)
        return whole.with_slices(parts, shape, half=strategy.param_dtype is not None)
    return whole.with_shared_optimizer(processes) if strategy.shard_optimizer else whole


def named(strategy: Strategy) -> str:
    """The strategy as `--parallel` and docs/scaling.md call it."""
    return "ddp with ZeRO-1" if strategy.shard_optimizer else strategy.mode
