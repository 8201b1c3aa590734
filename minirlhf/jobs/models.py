"""Models of a job: loaded or made, frozen or adapted, and moved to the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minirlhf.errors import InputError
from minirlhf.jobs.settings import JobConfig, changed
from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import Policy, copy_of
from minirlhf.model.transformer import Transformer, Trunk, run_block
from minirlhf.runtime.compile import maybe_compile
from minirlhf.runtime.device import resolve_device, resolve_precision
from minirlhf.runtime.distributed import say
from minirlhf.runtime.randomness import seed_everything
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.run import finished_model

SMALL_MODEL = 1_000_000  # parameters; a smaller model trains faster on one thread
ALL_THREADS = torch.get_num_threads()  # torch's own choice, read before a job changes it


def first_policy(job: JobConfig, config: ModelConfig, tokenizer: Tokenizer) -> Policy:
    """The model of `--policy`, or a new one with random weights that depend on the seed alone."""
    if job.policy:
        from minirlhf.pretrained import load_policy

        policy = load_policy(resolve_model(job.policy), dtype=weights_dtype(job))
        check_vocabulary(policy.transformer.config, tokenizer, job.policy)
        if unread := [*(f"model.{name}" for name in changed(config)), *({"vocab_size"} & set(changed(job)))]:
            say(f"not read, because {job.policy} has its own: {', '.join(unread)}")
        return policy
    seed_everything(job.seed)
    return Policy(Transformer(replace(config, vocab_size=tokenizer.vocab_size)))


def load_finished(folder: Path, job: JobConfig, device: torch.device) -> Policy:
    """The policy that a finished stage has written, on the device."""
    from minirlhf.pretrained import load_policy

    return to_device(load_policy(folder), job, device)


def weights_dtype(job: JobConfig) -> torch.dtype | None:
    """Trained weights are fp32, because bf16 loses small updates. Frozen weights keep the dtype of their file (None) if
    the job computes in bf16 or will quantise them.
    """
    return None if job.train == "qlora" or (job.train == "lora" and computes_in_bf16(job)) else torch.float32


def computes_in_bf16(job: JobConfig) -> bool:
    return resolve_precision(job.precision, resolve_device(job.device)) == torch.bfloat16


def adapt(model: nn.Module, settings: dict[str, Any], device: torch.device) -> nn.Module:
    """Freeze, quantise and add LoRA as `--train` and `--freeze` ask, in place; then move the model to the device."""
    from minirlhf.adapters import apply_lora, count_parameters, freeze

    job = settings["job"]
    if job.train == "all":
        # A reward model has no lm_head, so a pattern that matches nothing is fine there.
        freeze(model, job.freeze, strict=isinstance(model, Policy))
        if not any(p.requires_grad for p in model.parameters()):
            raise InputError(f"--freeze {','.join(job.freeze)}: no parameter is left to train; name fewer")
        if job.freeze:
            say("{:,} of {:,} numbers are trained".format(*count_parameters(model)))
    else:
        seed_everything(job.seed)  # the same adapter, whatever ran before
        convert_base(model, job)
        apply_lora(model, settings["lora"])
        say("{}: {:,} of {:,} numbers are trained".format(job.train, *count_parameters(model)))
    return to_device(model, job, device)


def convert_base(model: nn.Module, job: JobConfig) -> None:
    """Convert the frozen base of adapters, in place: Linears to 4 bits for qlora, other weights to fp32 unless the job
    computes in bf16.
    """
    from minirlhf.adapters import memory_report, quantise_linears

    if job.train == "qlora":
        quantise_linears(model)
        report = memory_report(model)
        say(f"in 4 bits: {report['quantised_bytes']:,} bytes, {report['quantised_share_of_fp32']:.3f} of fp32")
    if not computes_in_bf16(job):
        model.float()  # weights in 4 bits are buffers of integers and stay


def reference_for(policy: Policy) -> Policy:
    """The policy's starting point, frozen. It is the shared base if adapters are trained, else a copy."""
    from minirlhf.adapters import adapter_names, reference_of

    return reference_of(policy) if adapter_names(policy) else copy_of(policy)


def to_device(model: nn.Module, job: JobConfig, device: torch.device) -> nn.Module:
    """Move a model to the device, with the job's settings of memory and speed."""
    for module in model.modules():
        if isinstance(module, Trunk):
            module.gradient_checkpointing = job.gradient_checkpointing
            module.run_block = maybe_compile(run_block, compiles(job, device))
    return model.to(device)


def compiles(job: JobConfig, device: torch.device) -> bool:
    return device.type == "cuda" if job.compile is None else job.compile


def choose_threads(model: nn.Module, job: JobConfig, device: torch.device) -> None:
    """Without `--threads`: one thread for a small model on a CPU, all threads for a large one."""
    if device.type == "cpu" and job.threads is None:
        small = sum(p.numel() for p in model.parameters()) < SMALL_MODEL
        torch.set_num_threads(1 if small else ALL_THREADS)


def resolve_model(folder: str | Path) -> Path:
    """The model's folder for a folder that a user names: the folder itself, or `model/` in a finished run."""
    final = finished_model(folder)
    return final if final and not (Path(folder) / "config.json").exists() else Path(folder)


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Raise InputError if the tokenizer has ids that the model does not know."""
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary holds "
            f"{config.vocab_size}; they do not belong together"
        )
