"""Points in the plane: a ring of Gaussians whose best denoiser is a formula, so that results can be checked exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Ring:
    """`modes` Gaussians of standard deviation `std` on the unit circle, with equal weights. One mode: a Gaussian."""

    def __init__(self, modes: int = 8, std: float = 0.15) -> None:
        angles = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
        self.centres, self.std = torch.stack([angles.cos(), angles.sin()], -1), std  # [M, 2]

    def log_density(self, x: Tensor) -> Tensor:
        """x [N, 2] -> [N] nats."""
        return self._log_joint(x, 1.0, self.std**2).logsumexp(-1) - math.log(len(self.centres))

    def expected_clean(self, x: Tensor, level: Tensor) -> Tensor:
        """E[x_0 | x_t] -> [N, 2]: each Gaussian's conditional mean, weighted by its share of the density at x_t."""
        a, kept = level.sqrt()[:, None], level[:, None] * self.std**2
        variance = kept + 1 - level[:, None]
        share = self._log_joint(x, a[..., None], variance).softmax(-1)  # [N, M]
        centres = self.centres.to(x)
        means = centres + (a * self.std**2 / variance)[..., None] * (x[:, None] - a[..., None] * centres)
        return (share[..., None] * means).sum(1)

    def _log_joint(self, x: Tensor, a: Tensor | float, variance: Tensor | float) -> Tensor:
        variance = torch.as_tensor(variance, dtype=x.dtype)
        squares = (x[:, None] - a * self.centres.to(x)).square().sum(-1)
        return -0.5 * squares / variance - torch.log(2 * math.pi * variance)


class RingDenoiser(nn.Module):
    """The ring's best denoiser plus a trained correction, 0 at the start: the first policy is the reference."""

    def __init__(self, ring: Ring, width: int = 64) -> None:
        super().__init__()
        self.ring = ring
        self.correction = nn.Sequential(
            nn.Linear(5, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )
        nn.init.zeros_(self.correction[-1].weight)
        nn.init.zeros_(self.correction[-1].bias)

    def forward(self, x: Tensor, level: Tensor, label: Tensor) -> Tensor:
        """x [N, 2], level [N], label [N] (not used) -> v [N, 2] = (a x - E[x_0 | x]) / b."""
        a, b = level.sqrt()[:, None], (1 - level).sqrt()[:, None]
        seen = torch.cat([x, a, b, a * b], -1)
        return (a * x - self.ring.expected_clean(x, level)) / b + self.correction(seen)
