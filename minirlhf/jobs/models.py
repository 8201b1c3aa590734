"""Models of a job: their folders, their device, their threads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from minirlhf.jobs.settings import JobConfig
from minirlhf.model.policy import Policy, copy_of
from minirlhf.model.transformer import Trunk, run_block
from minirlhf.runtime.device import SMALL_MODEL
from minirlhf.runtime.distributed import world_size
from minirlhf.training.run import finished_model

EVERY = {"none": 0, "selective": 2, "full": 1}  # --gradient_checkpointing -> every n-th block is computed again
ALL_THREADS = torch.get_num_threads()  # torch's own choice, read before a job changes it


def load_finished(folder: Path, job: JobConfig, device: torch.device) -> Policy:
    """The policy that a finished stage has written, on the device, in the dtype in which the job computes."""
    from minirlhf.pretrained import load_policy

    dtype = None if torch.is_autocast_enabled(device.type) else torch.float32
    return to_device(load_policy(folder, dtype=dtype), job, device)


def reference_for(policy: Policy) -> Policy:
    """The policy's starting point, frozen. It is the shared base if adapters are trained, else a copy."""
    from minirlhf.adapters import adapter_names, reference_of

    return reference_of(policy) if adapter_names(policy) else copy_of(policy)


def to_device(model: nn.Module, job: JobConfig, device: torch.device) -> nn.Module:
    """Move a model to the device, with the job's settings of memory and speed."""
    for trunk in [module for module in model.modules() if isinstance(module, Trunk)]:
        trunk.gradient_checkpointing = EVERY[job.gradient_checkpointing]
        if compiles(job, device):
            from minirlhf.runtime.compile import maybe_compile  # here, so that the core loads no leaf

            trunk.run_block = maybe_compile(run_block, enabled=True)
    if world_size() > 1:
        from minirlhf.runtime.parallel.copies import placed

        return placed(model, device)
    return model.to(device)


def compiles(job: JobConfig, device: torch.device) -> bool:
    return device.type == "cuda" if job.compile is None else job.compile


def choose_threads(model: nn.Module, job: JobConfig, device: torch.device) -> None:
    """Without `--threads`: one thread for a small model on a CPU, all threads for a large one."""
    if device.type == "cpu" and job.threads is None:
        small = sum(p.numel() for p in model.parameters()) < SMALL_MODEL
        torch.set_num_threads(1 if small else ALL_THREADS)


def resolve_model(folder: str | Path) -> Path:
    """The model that a user names: its folder, `model/` in a finished run, or another name; see `named_model`."""
    if (final := finished_model(folder)) and not (Path(folder) / "config.json").exists():
        return final
    from minirlhf.jobs.pipeline import named_model

    return named_model(folder)
