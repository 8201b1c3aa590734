"""The memory of a process in one training step, by part and by moment. Arithmetic only: no model is made.

A step has three moments of much memory. While completions are sampled, the cache exists and gradients do not. When the
backward pass begins, all activations exist, and gradients only of an earlier micro-batch. When it ends, all gradients
exist and no activations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from minirlhf.generation.decoder import JOINED
from minirlhf.model.config import ModelConfig
from minirlhf.model.footprint import (
    BF16,
    FP32,
    block_parameters,
    cache_bytes,
    head_bytes,
    head_parameters,
    kept_bytes,
    parameters,
)

# The allocator keeps freed blocks that no later request fits. The resident memory of the steps measured in
# docs/scaling.md is within 10% of `KEPT + (1 + SPLIT) * bytes in use`.
KEPT, SPLIT = 2**25, 0.15
MOMENTS = 8  # bytes of a trained weight: AdamW keeps two numbers of fp32


@dataclass(frozen=True)
class Footprint:
    """Bytes of a process. Activations and logits are those of the largest micro-batch."""

    weights: float  # of all models
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0  # what the forward keeps for the backward pass
    logits: float = 0  # a chunk of them, and the gradients of the head while it passes backward
    hidden: float = 0  # the trunk's output or its gradient, with padding
    casts: float = 0  # the copies of the weights in bf16 that autocast makes for each product
    gathered: float = 0  # weights that a process of slices gathers at a time
    cache: float = 0  # keys, values and logits of the completions in progress
    sampler: float = 0  # the sampler's own copy of the weights
    embedding: float = 0  # gradients of a tied embedding that are added: the head's, the embedding's own, earlier ones
    several: bool = False  # micro-batches in an update: the second finds the gradients of the first

    @property
    def moments(self) -> dict[str, dict[str, float]]:
        """Moment of a step -> part -> bytes."""
        always = {"weights": self.weights, "gathered": self.gathered, "optimizer": self.optimizer}
        begins = {"gradients": self.gradients * self.several, "activations": self.activations}
        return {
            "sampling": {**always, "cache": self.cache, "sampler": self.sampler} if self.cache else {},
            "backward begins": {**always, **begins, "casts": self.casts, "logits": self.logits + self.hidden},
            "backward ends": {**always, "gradients": self.gradients + self.embedding},
        }

    @property
    def in_use(self) -> float:
        """Bytes at the moment of most memory, without the blocks that the allocator keeps."""
        return max(sum(parts.values()) for parts in self.moments.values())

    @property
    def total(self) -> float:
        """Bytes that the process takes from its device."""
        return self.taken(self.in_use)

    def taken(self, in_use: float) -> float:
        """Bytes that the process takes from its device while it uses some of them."""
        return KEPT + (1 + SPLIT) * in_use

    def with_slices(self, parts: int, shape: ModelConfig, half: bool) -> Footprint:
        """Weights, gradients and moments in slices. half: weights are gathered in bf16, so autocast copies none."""
        sliced = {name: getattr(self, name) / parts for name in ("weights", "gradients", "optimizer")}
        casts = 0 if half else self.casts
        return replace(self, **sliced, gathered=gathered_bytes(shape, half), casts=casts, sampler=0)

    def with_shared_optimizer(self, parts: int) -> Footprint:
        """ZeRO-1: the moments of a part of the weights."""
        return replace(self, optimizer=self.optimizer / parts)


def gathered_bytes(shape: ModelConfig, half: bool = False) -> float:
    """Bytes of the weights that a process gathers at a time: embedding and head, with their gradients; two blocks."""
    numbers = 2 * (head_parameters(shape) + block_parameters(shape) / shape.num_hidden_layers)
    return numbers * (BF16 if half else FP32)


@dataclass(frozen=True)
class Step:
    """The sizes of one step of an algorithm on one process, if all rows are as long as the longest."""

    prompt: int  # tokens of the longest row, up to its answer
    answer: int  # learned tokens of the longest row
    rows: int  # of one update; a pair has two
    micro: int  # rows of the largest micro-batch
    sides: int = 1  # rows of one prompt
    shared: bool = False  # rows of one prompt compute it once, see model/prefix_tree.py
    partial: bool = False  # the last block computes the answers alone
    sampled: int = 0  # completions in progress at a time
    head: bool = True  # the loss reads log-probs; reward models have no such head

    @property
    def row(self) -> int:
        return self.prompt + self.answer

    @property
    def tokens(self) -> int:
        """Tokens that the largest micro-batch computes: a shared prompt counts once."""
        prompts = math.ceil(self.micro / self.sides) if self.shared else self.micro
        return prompts * self.prompt + self.micro * self.answer

    @property
    def several(self) -> bool:
        """True if an update has several micro-batches."""
        return self.rows > self.micro


def footprint(
    shape: ModelConfig,
    step: Step,
    *,
    weights: float,
    trained: int,
    rank: int = 0,
    half: bool = False,
    every: int = 0,
    cpu: bool = True,
) -> Footprint:
    """The footprint of a step in one whole process.

    weights: bytes of the weights of all models.   trained: number of trained weights, of all models together.
    rank:    of LoRA; 0: whole models are trained.   half: bf16 autocast.   every, cpu: see `kept_bytes`.
    """
    read = step.micro * step.answer if step.partial else None
    activations = kept_bytes(shape, step.tokens, read=read, every=every, half=half, rank=rank, row=step.row, cpu=cpu)
    casts = BF16 * block_parameters(shape) if half and not rank else 0
    if every:
        casts *= 1 - 1 / every + 1 / shape.num_hidden_layers
    cache = sampler = 0.0
    if step.sampled:
        cache = cache_bytes(shape, step.sampled, step.row, half)
        cache += 4 * FP32 * step.sampled * shape.vocab_size  # logits, log-probs, and probabilities in fp64
        copied = half or rank or parameters(shape) <= JOINED  # see `Decoder`
        sampler = parameters(shape) * (BF16 if half else FP32) if copied else 0
    tied = shape.tie_word_embeddings and not rank
    return Footprint(
        weights=weights,
        gradients=FP32 * trained,
        optimizer=MOMENTS * trained,
        activations=activations,
        logits=head_bytes(shape, step.micro * step.answer, half=half, trained=not rank) if step.head else 0,
        hidden=FP32 * shape.hidden_size * step.micro * step.row,
        casts=casts,
        cache=cache,
        sampler=sampler,
        embedding=FP32 * head_parameters(shape) * (2 + step.several) if tied else 0,
        several=step.several,
    )
