"""The flag --parallel and the section [sharding]: how several processes hold the models of a job."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

from minirlhf.errors import InputError, check_range
from minirlhf.runtime.parallel.strategy import Strategy

IN_SLICES = ("fsdp", "hsdp")
# setting of [sharding] -> the strategies on which it has an effect
EFFECTS: dict[str, tuple[str, ...]] = {
    "replicas": ("hsdp",),
    "cpu_offload": IN_SLICES,
    "reshard_after_forward": IN_SLICES,
    "gather": IN_SLICES,
    "param_dtype": IN_SLICES,
    "shard_optimizer": ("ddp",),
}


@dataclass(frozen=True)
class ParallelFlags:
    """A plain flag of every program."""

    parallel: Literal["auto", "none", "ddp", "fsdp", "hsdp"] = "auto"  # [-] several processes hold copies of the models
    #                             (ddp), slices (fsdp), or slices in each of some groups (hsdp); auto: by memory


@dataclass(frozen=True)
class ShardingConfig:
    """Settings of single strategies; see docs/scaling.md."""

    replicas: int | None = None  # [groups] of hsdp: each group holds all slices; none: the number of machines
    cpu_offload: bool = False  # [-] fsdp, hsdp: slices, gradients and moments stay in the memory of the machine
    reshard_after_forward: bool = True  # [-] fsdp, hsdp: free a block's weights until its backward (ZeRO-3); false:
    #                                     keep them (ZeRO-2)
    gather: Literal["auto", "whole", "layers"] = "auto"  # [-] fsdp, hsdp: the weights while the policy samples; auto:
    #                                                     whole if they fit into half of the free memory
    param_dtype: Literal["bf16"] | None = None  # [-] fsdp, hsdp: of gathered weights; none: as the slices
    shard_optimizer: bool = False  # [-] ddp: each process keeps the moments of a part of the weights (ZeRO-1)

    def __post_init__(self) -> None:
        check_range(self, "replicas", least=1)


def with_parallel(cls: type) -> type:
    """The dataclass of plain flags with the field of ParallelFlags."""
    if issubclass(cls, ParallelFlags):
        return cls
    namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return dataclasses.make_dataclass(cls.__name__, [], bases=(cls, ParallelFlags), namespace=namespace, frozen=True)


def mode_of(settings: dict[str, Any]) -> str:
    """The value of --parallel; auto for a JobConfig that a caller has made."""
    return getattr(settings["job"], "parallel", "auto")


def processes() -> int:
    """The number of processes that torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def machines() -> int:
    return max(1, processes() // int(os.environ.get("LOCAL_WORLD_SIZE", str(processes()))))


def strategy_of(settings: dict[str, Any], mode: str) -> Strategy:
    """The strategy that the settings describe. mode: ddp, fsdp or hsdp."""
    sharding = settings.get("sharding") or ShardingConfig()
    values = {name: getattr(sharding, name) for name, modes in EFFECTS.items() if mode in modes}
    values |= {"replicas": sharding.replicas or machines()} if mode == "hsdp" else {}
    values |= {"param_dtype": torch.bfloat16} if values.get("param_dtype") else {"param_dtype": None}
    return Strategy(mode, **values)


def check_parallel(settings: dict[str, Any]) -> None:
    """Refuse a strategy that the processes or the program cannot have, and settings without effect on the strategy."""
    mode, world = mode_of(settings), processes()
    if mode == "none" and world > 1:
        raise InputError(
            f"--parallel none: needed one process, got {world} that would all do the same; start without torchrun, or "
            "give --parallel auto"
        )
    for config in settings.values():
        if world > 1 and (reason := getattr(config, "one_process", "")):
            raise InputError(f"{reason}: got {world} processes; start it without torchrun")
    sharding = settings.get("sharding") or ShardingConfig()
    for name in [field.name for field in dataclasses.fields(sharding)]:
        if getattr(sharding, name) != getattr(ShardingConfig, name) and mode not in EFFECTS[name]:
            modes = " or ".join(f"--parallel {each}" for each in EFFECTS[name])
            raise InputError(
                f"sharding.{name}: has no effect with --parallel {mode}; give {modes}, or drop the setting"
            )
    if mode not in ("auto", "none") and world == 1:
        raise InputError(
            f"--parallel {mode}: needed several processes, got 1; start with torchrun --nproc_per_node N, or drop it"
        )
    replicas = strategy_of(settings, mode).replicas if mode == "hsdp" else 0
    if mode == "hsdp" and (world % replicas or not 1 < replicas < world):
        raise InputError(
            f"sharding.replicas: hsdp needed from 2 groups of equal size, each of several processes, got {replicas} "
            f"groups of {world} processes (default: one for each machine); choose another number, or --parallel fsdp"
        )
