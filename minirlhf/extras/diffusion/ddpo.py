"""DDPO: policy gradients for denoising, a decision process of T steps.   Black et al. 2023, arXiv:2305.13301.

State: x_k and the label. Action: x_{k+1}, with a Gaussian log-prob. Reward: the score of the result, after step T.
B chains = N prompts times G samples; everything per step is [B, T].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from minirlhf.data.batches import Draw
from minirlhf.errors import InputError, check_range
from minirlhf.extras.diffusion.chain import Chain
from minirlhf.extras.diffusion.scoring import ImageReward, scored
from minirlhf.extras.diffusion.starts import starts
from minirlhf.losses import discounted_returns, group_advantages, kl_shaped_rewards, ppo_policy_loss
from minirlhf.losses.policy import ratio_diagnostics
from minirlhf.runtime.distributed import all_sum, backward, wrap
from minirlhf.training.optimizer import Optimizer, OptimizerConfig
from minirlhf.training.update import Sums, load_state, micro_batches, state_of


@dataclass(frozen=True)
class DDPOConfig(OptimizerConfig):
    steps: int = 25  # [steps] of sampling and training
    batch_size: int = 4  # [prompts] per step, over all processes
    group_size: int = 32  # [samples] of each prompt; their scores are compared
    loss: Literal["clipped", "reinforce"] = "clipped"  # [-] DDPO_IS with the surrogate of PPO, or DDPO_SF
    updates_per_step: int = 2  # [updates] on the samples of a step, each on an equal part of every prompt's samples
    clip_eps: float = 0.2  # [-] half-width of the trust region of the ratio of a denoising step
    kl_coef: float = 0.1  # [score per nat] price of the KL to the reference
    scale: Literal["group", "batch", "none"] = "group"  # [-] standard deviation that divides the advantages
    microbatch_size: int = 256  # [samples] in one forward, with all their steps
    lr: float = 2e-4  # [per update] peak learning rate

    needs_gradient: ClassVar[bool] = False  # of the reward

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "steps", "batch_size", "updates_per_step", "microbatch_size", least=1)
        check_range(self, "group_size", least=2)
        check_range(self, "clip_eps", above=0)
        check_range(self, "kl_coef", least=0)
        if self.group_size % self.updates_per_step:
            raise InputError(
                f"DDPOConfig: updates_per_step must divide group_size, got {self.updates_per_step} and "
                f"{self.group_size}"
            )
        if self.loss == "reinforce" and self.updates_per_step > 1:
            raise InputError(
                "DDPOConfig: loss=reinforce is right for one update on fresh samples only; needed updates_per_step=1, "
                f"got {self.updates_per_step}; set it to 1, or use loss=clipped"
            )

    def check_chain(self, chain: Chain) -> None:
        """Raise InputError if a step of the chain has no log-prob."""
        chain.check_noisy("DDPO")


class Chains(NamedTuple):
    """Samples with everything that the updates need."""

    latents: Tensor  # [B, T + 1, ...]
    label: Tensor  # [B]
    old_logps: Tensor  # [B, T] nats
    advantages: Tensor  # [B, T]


class DDPOTrainer:
    """Denoiser, frozen reference, reward -> a denoiser whose samples score higher.

    Args:
        shape:     of a sample, such as (1, 16, 16).
        reference: a frozen denoiser for the KL; None without `kl_coef` only.
    """

    headline = ("score_mean", "kl", "eval/score", "eval/gold")
    best = ("eval/score", "max")
    saved = ("optimizer",)

    def __init__(
        self,
        denoiser: nn.Module,
        reference: nn.Module | None,
        reward: ImageReward,
        chain: Chain,
        config: DDPOConfig,
        *,
        shape: tuple[int, ...],
        seed: int = 0,
    ) -> None:
        config.check_chain(chain)
        if config.kl_coef and reference is None:
            raise InputError("DDPOTrainer: kl_coef needs a reference, got none; pass a copy of the denoiser")
        self.denoiser, self.wrapped, self.reference, self.reward = denoiser, wrap(denoiser), reference, reward
        self.chain, self.config, self.shape, self.seed = chain, config, shape, seed
        self.models = {"denoiser": denoiser}
        self.optimizer = Optimizer(self.models, config, config.steps * config.updates_per_step)
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """Sample chains of a batch of labels, score the results, and update the denoiser.

        Raises: InputError if the reward's scores have another shape or are not finite.
        """
        chains, facts = self.collect(batch)
        metrics: dict[str, float] = {}
        parts = self.config.updates_per_step
        for part in range(parts):  # every prompt has samples in every part
            new = self.update(Chains(*(tensor[part::parts] for tensor in chains)))
            metrics = {name: metrics.get(name, 0.0) + value / parts for name, value in new.items()}
        return {**facts, **metrics}

    @torch.no_grad()
    def collect(self, batch: list[Draw]) -> tuple[Chains, dict[str, float]]:
        """Sample G chains of each label -> (chains, statistics of their scores)."""
        config, chain = self.config, self.chain
        label, noise = starts(batch, config.group_size, chain.steps, self.shape, self.seed, "ddpo", self.denoiser)
        latents = chain.sample(self.denoiser, label, noise)
        scores = scored(self.reward, latents[:, -1], label)
        means = self._means(self.denoiser, latents, label)
        old_logps, rewards = chain.logps(means, latents), torch.zeros(latents.shape[:2])[:, 1:].to(latents)
        mask, kls = torch.ones_like(rewards, dtype=torch.bool), torch.zeros_like(rewards)
        ref_logps = old_logps
        if self.reference is not None:
            ref_means = self._means(self.reference, latents, label)
            ref_logps, kls = chain.logps(ref_means, latents), chain.kls(means, ref_means)
        rewards = kl_shaped_rewards(scores, logps=old_logps, ref_logps=ref_logps, mask=mask, kl_coef=config.kl_coef)
        # the score is the reward of every step's future; KL of past steps is no step's doing
        returns = discounted_returns(rewards, mask=mask)
        columns = [group_advantages(column, config.group_size, config.scale) for column in returns.unbind(1)]
        facts = torch.stack([torch.ones_like(scores), scores, scores.square(), kls.sum(-1)]).double().sum(-1)
        count, total, squares, kl = all_sum(facts).tolist()
        spread = max(squares / count - (total / count) ** 2, 0.0) ** 0.5
        facts = {"score_mean": total / count, "score_std": spread, "kl": kl / count}
        return Chains(latents, label, old_logps, torch.stack(columns, 1)), facts

    def update(self, chains: Chains) -> dict[str, float]:
        """One update of the denoiser."""
        count = all_sum(torch.tensor(float(chains.advantages.numel()), device=chains.latents.device))
        sums, size = Sums(), self.config.microbatch_size
        groups = [Chains(*group) for group in zip(*(tensor.split(size) for tensor in chains), strict=True)]
        for group in micro_batches(groups, self.wrapped):
            means = self.chain.all_means(self.wrapped, group.latents, group.label)
            logps = self.chain.logps(means, group.latents)
            losses = self.losses(logps, group)
            backward(losses.sum() / count)
            given = {"old_logps": group.old_logps, "advantages": group.advantages, "clip_eps": self.config.clip_eps}
            sums.add(count, loss=losses, **ratio_diagnostics(logps, **given))
        return self.optimizer.step(sums)

    def losses(self, logps: Tensor, chains: Chains) -> Tensor:
        """The loss of each step -> [B, T].

        clipped:   the surrogate of PPO (DDPO_IS, Eq. 5 of the paper).
        reinforce: -logps * advantages (DDPO_SF, Eq. 4).
        """
        if self.config.loss == "reinforce":
            return -logps * chains.advantages
        old = {"old_logps": chains.old_logps, "advantages": chains.advantages}
        return ppo_policy_loss(logps, **old, clip_eps=self.config.clip_eps)

    def _means(self, denoiser: nn.Module, latents: Tensor, label: Tensor) -> Tensor:
        size = self.config.microbatch_size
        pieces = zip(latents.split(size), label.split(size), strict=True)
        return torch.cat([self.chain.all_means(denoiser, *piece) for piece in pieces])

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)
