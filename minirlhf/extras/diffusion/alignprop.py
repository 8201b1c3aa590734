"""AlignProp and DRaFT: the gradient of a differentiable reward, through the last K denoising steps.

Prabhudesai et al. 2023, arXiv:2310.03739 (AlignProp); Clark et al. 2023, arXiv:2309.17400 (DRaFT-K).
B chains, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minirlhf.data.batches import Draw
from minirlhf.errors import InputError, check_range
from minirlhf.extras.diffusion.chain import Chain, denoising_loss
from minirlhf.extras.diffusion.scoring import ImageReward, scored
from minirlhf.extras.diffusion.starts import starts
from minirlhf.runtime.distributed import all_sum, backward, wrap
from minirlhf.runtime.randomness import keyed_uniforms
from minirlhf.training.optimizer import Optimizer, OptimizerConfig
from minirlhf.training.update import Sums, load_state, micro_batches, state_of


@dataclass(frozen=True)
class AlignPropConfig(OptimizerConfig):
    steps: int = 40  # [steps] of sampling and training, one update each
    batch_size: int = 8  # [samples] per step, over all processes
    last_steps: int | None = None  # [steps] K: the gradient goes through so many last denoising steps; none: all
    checkpointing: bool = True  # [-] keep the inputs of a denoising step only, and compute the step again backwards
    kl_coef: float = 0.1  # [score per nat] price of the KL to the reference, over the last K steps
    mix_coef: float = 0.0  # [-] weight of the pretraining loss on drawn images, against drift
    microbatch_size: int = 256  # [samples] in one forward and backward
    lr: float = 3e-4  # [per update] peak learning rate

    needs_gradient: ClassVar[bool] = True  # of the reward

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "steps", "batch_size", "last_steps", "microbatch_size", least=1)
        check_range(self, "kl_coef", "mix_coef", least=0)

    def check_chain(self, chain: Chain) -> None:
        """Raise InputError if the chain has fewer than `last_steps` steps."""
        if (self.last_steps or 1) > chain.steps:
            raise InputError(
                f"AlignPropConfig: last_steps must be at most the number of denoising steps, got {self.last_steps} and "
                f"{chain.steps}; leave it out for all steps"
            )


class AlignPropTrainer:
    """Denoiser, frozen reference, differentiable reward -> a denoiser whose samples score higher.

    Args:
        shape:     of a sample, such as (1, 16, 16).
        reference: a frozen denoiser for the KL; None without `kl_coef` only.
        drawn:     (draws) -> (clean samples [B, ...], labels [B]): data of pretraining, for `mix_coef`.
    Raises: InputError if `last_steps` is more than the chain has.
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
        config: AlignPropConfig,
        *,
        shape: tuple[int, ...],
        drawn: Any = None,
        seed: int = 0,
    ) -> None:
        config.check_chain(chain)
        if reference is not None:
            chain.check_noisy("AlignPropTrainer: the KL to the reference")
        for coefficient, part, name in ((config.kl_coef, reference, "reference"), (config.mix_coef, drawn, "drawn")):
            if coefficient and part is None:
                raise InputError(f"AlignPropTrainer: a coefficient above 0 needs {name}, got none")
        self.denoiser, self.wrapped, self.reference, self.reward = denoiser, wrap(denoiser), reference, reward
        self.chain, self.config, self.shape, self.drawn, self.seed = chain, config, shape, drawn, seed
        self.models = {"denoiser": denoiser}
        self.optimizer = Optimizer(self.models, config, config.steps)
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of labels.

        Raises: InputError if the reward has no gradient, or its scores have another shape or are not finite.
        """
        sums, config, device = Sums(), self.config, next(self.denoiser.parameters()).device
        count = all_sum(torch.tensor(float(len(batch)), device=device))
        size = config.microbatch_size
        groups = [batch[start : start + size] for start in range(0, len(batch), size)]
        for draws in micro_batches(groups, self.wrapped):
            label, noise = starts(draws, 1, self.chain.steps, self.shape, self.seed, "alignprop", self.denoiser)
            samples, kls = self.rollout(label, noise)
            scores = scored(self.reward, samples, label)
            if not scores.requires_grad:
                raise InputError(
                    "AlignPropTrainer: the reward has no gradient with respect to the samples; use a differentiable "
                    "reward, or DDPO"
                )
            losses = config.kl_coef * kls - scores
            if config.mix_coef:
                losses = losses + config.mix_coef * self.pretraining_losses(draws)
            backward(losses.sum() / count)
            sums.add(count, loss=losses, score_mean=scores, kl=kls)
        return self.optimizer.step(sums)

    def rollout(self, label: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """-> (samples [B, ...] with gradient through the last K steps, KL of these steps [B] nats).

        Noise is fixed before, so x_{k+1} = mean(x_k) + std_k noise is a differentiable function of x_k.
        """
        first = self.chain.steps - (self.config.last_steps or self.chain.steps)
        x, kls = noise[:, 0], torch.zeros(len(noise)).to(noise)
        for k in range(self.chain.steps):
            with torch.set_grad_enabled(k >= first):
                given = (x, k, label, noise[:, k + 1])
                if self.config.checkpointing and k >= first:
                    x, kl = checkpoint(self._step, *given, use_reentrant=False)
                else:
                    x, kl = self._step(*given)
            kls = kls + kl if k >= first else kls
        return x, kls

    def _step(self, x: Tensor, k: int, label: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        following, mean = self.chain.step(self.wrapped, x, k, label, noise)
        if self.reference is None:
            return following, torch.zeros_like(mean.flatten(1)[:, 0])
        ref_mean = self.chain.step(self.reference, x, k, label, noise)[1]
        return following, 0.5 * ((mean - ref_mean) / self.chain.std[k]).square().flatten(1).sum(-1)

    def pretraining_losses(self, draws: list[Draw]) -> Tensor:
        """The loss of pretraining on as many drawn samples -> [B]."""
        clean, label = self.drawn(draws)
        keys = torch.tensor([[draw.epoch, draw.index] for draw in draws]).unbind(1)
        uniforms = keyed_uniforms(self.seed, "mixed levels", *keys)
        noise = starts(draws, 1, 0, self.shape, self.seed, "mixed noise", self.denoiser)[1][:, 0]
        return denoising_loss(self.wrapped, self.chain.config.schedule, clean, label, uniforms, noise)

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)
