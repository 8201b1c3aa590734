"""The base of PPO, GRPO and online preference learning: their common settings, and the updates of one step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from minirlhf.errors import InputError, check_range
from minirlhf.generation.engine import SamplingConfig
from minirlhf.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class OnPolicyConfig(OptimizerConfig):
    steps: int = 80  # [steps] one batch of prompts each
    batch_size: int = 128  # [prompts] sampled per step, over all processes
    minibatch_size: int = 64  # [prompts] per update, over all processes
    epochs: int = 2  # [epochs] of each step over its batch
    microbatch_tokens: int = 16_384  # [tokens] largest forward of one process, padding included
    lr: float = 1e-3  # [per update] peak learning rate of a small model; `--policy DIR` has a default by size

    max_tokens: int = 48  # [tokens] longest completion, its EOS included
    temperature: float = 1.0  # [-] divides the logits in sampling and in all log-probs of policy and reference
    top_k: int = 0  # [tokens] truncated sampling; needs allow_truncation
    top_p: float = 1.0  # [probability] truncated sampling; needs allow_truncation
    allow_truncation: bool = False  # [-] allow top_k and top_p, although training scores the whole distribution
    stop_token: Literal["eos"] | int = "eos"  # [id] the token that ends a completion
    stop_strings: tuple[str, ...] = ()  # [text] each of these texts ends a completion too
    missing_eos_penalty: float = 1.0  # [score] subtracted if a completion reached max_tokens without an end
    target_kl: float | None = None  # [nats per token] stop the step's updates once approx_kl exceeds this

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "steps", "batch_size", "minibatch_size", "epochs", "microbatch_tokens", least=1)
        check_range(self, "temperature", "target_kl", above=0)
        check_range(self, "missing_eos_penalty", least=0)
        self.sampling(eos_ids=(0,))  # refuse bad sampling settings now, not after earlier stages
        who = type(self).__name__
        if self.minibatch_size and self.batch_size % self.minibatch_size:
            nearest = max(1, round(self.batch_size / self.minibatch_size)) * self.minibatch_size
            raise InputError(
                f"{who}: batch_size must be a multiple of minibatch_size, got {self.batch_size} and "
                f"{self.minibatch_size}; the nearest that fits is {nearest}"
            )
        if (self.top_k or self.top_p < 1) and not self.allow_truncation:
            raise InputError(
                f"{who}: top_k {self.top_k} and top_p {self.top_p} sample from a truncated distribution, but "
                "training scores the whole distribution; leave them out or set allow_truncation=true"
            )

    @property
    def minibatches(self) -> int:
        return self.batch_size // self.minibatch_size

    @property
    def updates(self) -> int:
        """Optimizer steps of the whole run, if target_kl never ends a step early."""
        return self.steps * self.epochs * self.minibatches

    def steps_for(self, rows: int) -> int:
        """Steps of a run on this number of prompts. They do not depend on it, because each epoch samples anew."""
        return self.steps

    def sampling(self, eos_ids: tuple[int, ...]) -> SamplingConfig:
        """The settings of `generate`. `eos_ids` are the tokenizer's end tokens."""
        return SamplingConfig(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            stop_ids=eos_ids if self.stop_token == "eos" else (self.stop_token,),
            stop_strings=self.stop_strings,
            batch_size=max(256, self.batch_size),
            microbatch_tokens=self.microbatch_tokens,
        )


def over_minibatches(
    who: str, config: OnPolicyConfig, prompts: int, update: Callable[[range], dict[str, float]]
) -> dict[str, float]:
    """Call `update(prompts of a minibatch)` for every update of one step -> metrics, averaged over the updates.

    Prompts come in random order, so consecutive prompts are a random minibatch. The number of processes changes neither
    the split nor the result.
    Raises: InputError if the prompts of this process cannot be split evenly.
    """
    size, rest = divmod(prompts, config.minibatches)
    if rest:
        raise InputError(
            f"{who}: the {prompts} rows of each process cannot be split into {config.minibatches} equal minibatches; "
            "make minibatch_size a multiple of the number of processes"
        )
    history: list[dict[str, float]] = []
    for i in range(config.epochs * config.minibatches):
        start = i % config.minibatches * size
        history.append(update(range(start, start + size)))
        if not math.isfinite(history[-1]["loss"] + history[-1]["grad_norm"]):
            break  # the optimizer changed nothing; `Run.record` stops the run
        if config.target_kl and history[-1].get("approx_kl", 0.0) > config.target_kl:
            break
    names = {name: None for metrics in history for name in metrics}  # an update may lack some metrics
    values = {name: [metrics[name] for metrics in history if name in metrics] for name in names}
    means = {name: sum(numbers) / len(numbers) for name, numbers in values.items()}
    return {**means, "lr": history[-1]["lr"], "updates": len(history)}


def check_stop_token(who: str, config: OnPolicyConfig, vocab_size: int) -> None:
    """Raise InputError if `stop_token` is no id of the vocabulary."""
    if config.stop_token != "eos" and not 0 <= config.stop_token < vocab_size:
        raise InputError(f"{who}: stop_token must be an id of the vocabulary, got {config.stop_token}")


def clip_of(config: Any) -> dict[str, float | None]:
    """The clip settings, as arguments of `ppo_policy_loss` and `ratio_diagnostics`."""
    return {"clip_eps": config.clip_eps, "clip_eps_high": config.clip_eps_high, "dual_clip": config.dual_clip}
