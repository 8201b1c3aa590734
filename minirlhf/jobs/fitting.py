"""Settings with which a job fits into memory. The search tries what costs least time first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from minirlhf.jobs.checks import SECTIONS, own_stage, stages_of
from minirlhf.jobs.footprint import Footprint
from minirlhf.jobs.learning_rates import rates_of_adapters
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.parallel import mode_of, strategy_of
from minirlhf.jobs.plan import Lengths, footprints, step_of
from minirlhf.jobs.strategies import ROOM, best, of_process
from minirlhf.model.config import ModelConfig
from minirlhf.runtime.parallel.strategy import Strategy
from minirlhf.training.fields import as_text

HALVINGS = 3  # of microbatch_tokens, before the search tries something that costs more


@dataclass(frozen=True)
class Machine:
    """The processes that a job has, and the memory that each may take."""

    processes: int
    machines: int
    free: float  # [bytes] for each process
    rows: Mapping[str, Lengths | None]  # stage -> the lengths of its longest row, see `longest_rows`


@dataclass(frozen=True)
class Plan:
    """The largest stage of a job under some settings."""

    job: Opened
    changes: dict[str, Any]  # flag -> value that differs from the settings that were asked for
    strategy: Strategy
    stage: str
    memory: Footprint  # of a process


def planned(
    job: Opened,
    shape: ModelConfig,
    after: tuple[str, ...],
    machine: Machine,
    changes: dict[str, Any] | None = None,
    stage: str | None = None,
) -> Plan:
    """The plan of a job with its settings. A strategy that the user has named stays.   stage: None: the largest."""
    whole = footprints(job, shape, after, machine.processes, machine.rows)
    stage = stage or max(whole, key=lambda name: whole[name].total)
    largest = whole[stage]
    if (mode := mode_of(job.settings)) in ("auto", "none"):
        strategy, memory = best(job.settings, largest, shape, machine.free, machine.processes, machine.machines)
    else:
        memory = of_process(largest, strategy := strategy_of(job.settings, mode), shape, machine.processes)
    own = changes_for(strategy, job, machine.processes)
    return Plan(with_changes(job, own), {**(changes or {}), **own}, strategy, stage, memory)


def changes_for(strategy: Strategy, job: Opened, processes: int) -> dict[str, Any]:
    """The settings that differ under a strategy. With `auto` a job would choose again, by the memory of that moment."""
    if processes == 1:
        return {}
    wanted = {"parallel": strategy.mode, "sharding.shard_optimizer": strategy.shard_optimizer}
    return {name: value for name, value in wanted.items() if value != value_of(job, name)}


def fits(plan: Plan, machine: Machine) -> bool:
    return plan.memory.total <= ROOM * machine.free


def first_that_fits(job: Opened, shape: ModelConfig, after: tuple[str, ...], machine: Machine) -> Plan | None:
    """The plan of the first settings that fit, in the order of `attempts`; None if nothing fits."""
    for changes in attempts(job, shape, after, machine):
        plan = planned(with_changes(job, changes), shape, after, machine, changes)
        if fits(plan, machine):
            return plan
    return None


def least(job: Opened, shape: ModelConfig, after: tuple[str, ...], machine: Machine) -> Plan:
    """The plan of those `attempts` that need least memory."""
    nothing = replace(machine, free=0.0)  # then each strategy that may be chosen is the one that needs least
    changes = attempts(job, shape, after, machine)
    plans = [planned(with_changes(job, each), shape, after, nothing, each) for each in changes]
    return min(plans, key=lambda plan: plan.memory.total)


def attempts(job: Opened, shape: ModelConfig, after: tuple[str, ...], machine: Machine) -> Iterator[dict[str, Any]]:
    """Changes of settings. Smaller micro-batches keep the result and cost little; checkpointing keeps it and computes
    blocks again; micro-batches of one row keep it too. Adapters train other weights at other learning rates, and need a
    trained model below them.
    """
    sections, sizes, rows = [], {}, {}
    for stage in (*stages_of(job, after), own_stage(job)):
        step = step_of(job, stage, shape, machine.processes, machine.rows[stage])
        sections.append(SECTIONS.get(stage, stage))
        name = f"{sections[-1]}.microbatch_tokens"
        rows[name], sizes[name] = min(value_of(job, name), step.row), min(value_of(job, name), step.rows * step.row)
    halved = [{name: max(1, most >> k) for name, most in sizes.items() if k} for k in range(HALVINGS + 1)]
    levels = ["none", "selective", "full"]  # of checkpointing
    trains = ["all", "lora", "qlora"] if "lora" in job.settings and job.common.policy else [job.common.train]
    for train in trains[trains.index(job.common.train) :]:
        rates = rates_of_adapters(job.settings, sections) if train != job.common.train == "all" else {}
        known = product(levels[levels.index(job.common.gradient_checkpointing) :], halved)
        for checkpointing, smaller in [*known, ("full", rows)]:
            wanted = {**smaller, "gradient_checkpointing": checkpointing, "train": train, **rates}
            yield {name: value for name, value in wanted.items() if value != value_of(job, name)}


def flags(changes: dict[str, Any]) -> str:
    """Changes of settings, as flags of a command line."""
    return " ".join(f"--{name} {as_text(value)}" for name, value in changes.items())


def value_of(job: Opened, name: str) -> Any:
    section, _, field = name.rpartition(".")
    return getattr(job.settings[section or "job"], field)


def with_changes(job: Opened, changes: dict[str, Any]) -> Opened:
    """The job with other values of some flags."""
    settings = dict(job.settings)
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        settings[section or "job"] = replace(settings[section or "job"], **{field: value})
    return replace(job, settings=settings)
