"""Denoising as a chain of T Gaussian steps: noise levels, the mean of a step, log-probs, samples.

x_t = a x_0 + b noise,  a^2 + b^2 = 1;  the level of x_t is a^2, "alpha bar" in the papers: 0 is noise, 1 is clean.
A denoiser predicts v = a noise - b x_0 (Salimans & Ho 2022, arXiv:2202.00512): unlike the noise, v says something about
x_0 at every level.   denoiser(x [N, ...], level [N], label [N]) -> v [N, ...];  label 0 means no condition.

B chains, T steps, N = any number of single steps. Column k of [B, T] speaks about step k, from latents[:, k] to
latents[:, k + 1]; latents[:, 0] is noise and latents[:, T] is the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from minirlhf.errors import InputError, check_range
from minirlhf.runtime.randomness import keyed_uniforms

LEVELS = 1000  # of a schedule; a sampler visits some of them


@dataclass(frozen=True)
class ChainConfig:
    """How a sample is made."""

    schedule: Literal["cosine", "linear"] = "cosine"  # [-] noise levels: cosine (arXiv:2102.09672) or linear (DDPM)
    denoising_steps: int = 10  # [steps] T, from noise to a sample
    eta: float = 1.0  # [-] noise of a step: 1 as in DDPM, 0 as in DDIM
    min_std: float = 0.1  # [-] least standard deviation of a step; without it the last step has no noise, and so no
    #                        log-prob
    guidance: float = 1.0  # [-] classifier-free guidance: 1 is the plain conditional model, more follows the label more

    def __post_init__(self) -> None:
        check_range(self, "denoising_steps", least=1, most=LEVELS)
        check_range(self, "eta", least=0, most=1)
        check_range(self, "min_std", least=0, most=1)
        check_range(self, "guidance", least=0, most=100)


def levels(schedule: str) -> Tensor:
    """[LEVELS + 1] float64, falling from 1 (clean) to nearly 0 (noise).

    linear: beta from 1e-4 to 0.02 (Ho et al. 2020, arXiv:2006.11239).
    cosine: cos^2((t + 0.008) / 1.008 * pi / 2) for t in [0, 1] (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17), with
        the paper's bound beta <= 0.999.
    """
    if schedule == "linear":
        betas = torch.linspace(1e-4, 0.02, LEVELS, dtype=torch.float64)
    elif schedule == "cosine":
        t = torch.arange(LEVELS + 1, dtype=torch.float64) / LEVELS
        falling = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
        betas = (1 - falling[1:] / falling[:-1]).clamp(max=0.999)
    else:
        raise InputError(f"schedule: needed cosine or linear, got {schedule!r}")
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])


class Chain:
    """The steps of a sampler as Gaussians: x_{k+1} ~ N(mean(x_k), std_k^2).

    With a = the level of x_k and a' = the level of x_{k+1} (DDIM, Song et al. 2020, arXiv:2010.02502, Eq. 12 and 16):

        sigma = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a'),   std = max(sigma, min_std)
        mean  = sqrt(a') x_0 + sqrt(1 - a' - sigma^2) noise,     x_0 and noise as the denoiser predicts them
    """

    def __init__(self, config: ChainConfig) -> None:
        self.config, self.steps = config, config.denoising_steps
        grid = torch.linspace(LEVELS, 0, self.steps + 1).round().long()
        visited = levels(config.schedule)[grid]
        level, following = visited[:-1], visited[1:]
        sigma = config.eta * ((1 - following) / (1 - level)).sqrt() * (1 - level / following).clamp(min=0).sqrt()
        self.level = level  # [T] float64, of the step's input
        self.keep = following.sqrt()  # [T], factor of x_0
        self.direction = (1 - following - sigma.square()).clamp(min=0).sqrt()  # [T], factor of the noise
        self.std = sigma.clamp(min=config.min_std)  # [T]

    def means(self, denoiser: nn.Module, x: Tensor, step: Tensor, label: Tensor) -> Tensor:
        """Means of single steps.   x [N, ...]; step, label [N] int64 -> [N, ...]. The only place with a gradient."""
        level, keep, direction = (_like(table[step.cpu()], x) for table in (self.level, self.keep, self.direction))
        v = guided(denoiser, x, level.flatten(), label, self.config.guidance)
        clean, noise = level.sqrt() * x - (1 - level).sqrt() * v, (1 - level).sqrt() * x + level.sqrt() * v
        return keep * clean + direction * noise

    def stds(self, step: Tensor, x: Tensor) -> Tensor:
        """Standard deviations of single steps, in a shape that multiplies x.   step [N] -> [N, 1, ...]."""
        return _like(self.std[step.cpu()], x)

    def step(self, denoiser: nn.Module, x: Tensor, k: int, label: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Step k of all chains -> (x_{k+1}, its mean), both [B, ...]."""
        step = torch.full((len(x),), k)
        mean = self.means(denoiser, x, step, label)
        return mean + self.stds(step, x) * noise, mean

    @torch.no_grad()
    def sample(self, denoiser: nn.Module, label: Tensor, noise: Tensor) -> Tensor:
        """label [B], noise [B, T + 1, ...] -> latents [B, T + 1, ...]; the samples are latents[:, T]."""
        latents = [noise[:, 0]]
        for k in range(self.steps):
            latents.append(self.step(denoiser, latents[-1], k, label, noise[:, k + 1])[0])
        return torch.stack(latents, 1)

    def all_means(self, denoiser: nn.Module, latents: Tensor, label: Tensor) -> Tensor:
        """Means of all steps of given chains, in one forward.   latents [B, T + 1, ...] -> [B, T, ...]."""
        x = latents[:, :-1].flatten(0, 1)
        step = torch.arange(self.steps).repeat(len(latents))
        return self.means(denoiser, x, step, label.repeat_interleave(self.steps)).unflatten(0, (-1, self.steps))

    def logps(self, means: Tensor, latents: Tensor) -> Tensor:
        """log N(x_{k+1}; mean_k, std_k^2), summed over all numbers of a sample -> [B, T] nats."""
        std = _like(self.std, means[0])
        z = (latents[:, 1:] - means) / std
        return (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).flatten(2).sum(-1)

    def kls(self, means: Tensor, ref_means: Tensor) -> Tensor:
        """KL of each step's Gaussian to the reference's, from the same x_k: |difference|^2 / (2 std^2) -> [B, T] nats.

        Their sum over a chain, averaged over chains of the policy, is the KL between both distributions of chains. The
        KL between the distributions of results is at most as large.
        """
        return 0.5 * ((means - ref_means) / _like(self.std, means[0])).square().flatten(2).sum(-1)

    def check_noisy(self, who: str) -> None:
        """Raise InputError if a step has no noise: a step without noise has no log-prob and no KL."""
        if bad := [k for k, std in enumerate(self.std.tolist()) if std == 0]:
            raise InputError(f"{who}: step {bad[0]} has no noise, so no log-prob; needed min_std above 0")


def guided(denoiser: nn.Module, x: Tensor, level: Tensor, label: Tensor, guidance: float) -> Tensor:
    """v(no label) + guidance (v(label) - v(no label)) -> [N, ...].   Ho & Salimans 2022, arXiv:2207.12598, Eq. 6."""
    if guidance == 1:
        return denoiser(x, level, label)
    twice = denoiser(torch.cat([x, x]), torch.cat([level, level]), torch.cat([torch.zeros_like(label), label]))
    free, conditional = twice.chunk(2)
    return free + guidance * (conditional - free)


def keyed_noise(seed: int, stream: str, keys: Sequence[Sequence[int]], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers [len(keys), *shape], float64: row i is a pure function of (seed, stream, keys[i])."""
    columns = [torch.tensor(column)[:, None] for column in zip(*keys, strict=True)]
    uniforms = keyed_uniforms(seed, stream, *columns, torch.arange(math.prod(shape)))
    return math.sqrt(2) * torch.erfinv((2 * uniforms - 1).clamp(min=-1 + 1e-15)).reshape(len(keys), *shape)


def denoising_loss(denoiser: nn.Module, schedule: str, clean: Tensor, label: Tensor, uniforms: Tensor, noise: Tensor):
    """|v - prediction|^2, a mean over the numbers of a sample -> [N]: the loss of pretraining.

    Args:
        clean, noise: [N, ...].   label: [N].   uniforms: [N] in [0, 1), they choose a level for each sample.
    """
    level = _like(levels(schedule)[1 + (uniforms * LEVELS).long().cpu()], clean)
    a, b = level.sqrt(), (1 - level).sqrt()
    v = denoiser(a * clean + b * noise, level.flatten(), label)
    return (v - (a * noise - b * clean)).square().flatten(1).mean(-1)


def _like(table: Tensor, x: Tensor) -> Tensor:
    """[N] -> [N, 1, ...] in dtype, device and dimensions of x [N, ...]."""
    return table.to(x).view(-1, *[1] * (x.dim() - 1))
