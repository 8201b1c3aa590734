"""The model that a stage begins with: made or loaded, and ready to train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from minirlhf.jobs.models import to_device
from minirlhf.jobs.settings import JobConfig
from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import Policy
from minirlhf.model.transformer import Transformer
from minirlhf.runtime.distributed import world_size
from minirlhf.runtime.randomness import seed_everything
from minirlhf.text.tokenizer import Tokenizer


def first_policy(job: JobConfig, config: ModelConfig, tokenizer: Tokenizer) -> Policy:
    """The model of `--policy`, or a new model. The random weights of a new model depend on the seed alone."""
    if job.policy:
        from minirlhf.jobs.given_models import given_policy

        return given_policy(job, config, tokenizer)
    return new_policy(replace(config, vocab_size=tokenizer.vocab_size), job.seed)


def new_policy(shape: ModelConfig, seed: int) -> Policy:
    """A policy with random weights. In slices it has the same weights, and no process ever holds all of them."""
    seed_everything(seed)
    if world_size() == 1:
        return Policy(Transformer(shape))
    from minirlhf.runtime.parallel.copies import fresh

    return fresh(lambda: Policy(Transformer(shape)))


def prepare(model: nn.Module, settings: dict[str, Any], device: torch.device) -> nn.Module:
    """Freeze, quantise and add LoRA as `--train` and `--freeze` ask, in place; then move the model to the device."""
    job = settings["job"]
    if job.train == "all" and not job.freeze:
        return to_device(model, job, device)
    from minirlhf.jobs.given_models import adapt

    return adapt(model, settings, device)
