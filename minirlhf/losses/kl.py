"""Estimators of KL(policy || reference) from sampled tokens, and the controllers of its coefficient.

d is logps - ref_logps, on tokens drawn from the policy (Schulman 2020, "Approximating KL divergence",
http://joschu.net/blog/kl-approx.html). The estimators take and return [B, T] nats, and raise ValueError if the shapes
differ. The sum over a row estimates the KL per sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.masking import check_same_shape

MAX_LOG_RATIO = 20.0  # exp(20) = 5e8 is a broken update already; far beyond it fp32 overflows and gradients turn nan


def kl_k1(logps: Tensor, *, ref_logps: Tensor) -> Tensor:
    """d. Unbiased, noisy, negative for about half of the tokens.

    In the reward its policy gradient is exactly the gradient of the KL; as a loss term its expected gradient is zero.
    """
    check_same_shape("kl_k1", logps=logps, ref_logps=ref_logps)
    return logps - ref_logps


def kl_k2(logps: Tensor, *, ref_logps: Tensor) -> Tensor:
    """d^2 / 2. Biased, never negative, little noise.

    If d is the log-ratio of a whole sequence, the gradient of this loss is the gradient of the KL. A sum over tokens
    leaves out the KL of later tokens.
    """
    check_same_shape("kl_k2", logps=logps, ref_logps=ref_logps)
    return 0.5 * (logps - ref_logps).square()


def kl_k3(logps: Tensor, *, ref_logps: Tensor) -> Tensor:
    """exp(-d) - 1 + d. Unbiased as a value, never negative.

    If d is the log-ratio of a whole sequence, the gradient of this loss is the gradient of KL(reference || policy),
    the other direction. Token by token it is the gradient of this KL at each prefix that the policy visits. d is
    clamped to at least -20: below -20 the value stays large but finite and the gradient is 0.
    """
    check_same_shape("kl_k3", logps=logps, ref_logps=ref_logps)
    log_ratio = (logps - ref_logps).clamp(min=-MAX_LOG_RATIO)
    return torch.expm1(-log_ratio) + log_ratio


class FixedKLController:
    """A constant coefficient, in score units per nat."""

    def __init__(self, init: float) -> None:
        self.coef = float(init)

    def update(self, kl: float, n: int) -> None:
        """Do nothing. AdaptiveKLController's method has the same signature."""

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]


class AdaptiveKLController(FixedKLController):
    """A coefficient that moves until the measured KL is `target` nats per sequence.

    coef <- coef (1 + clip(kl / target - 1, -0.2, 0.2) n / horizon).   Ziegler et al. 2019, arXiv:1909.08593, 2.2.

    Args:
        init:    the first coefficient, score units per nat.
        target:  nats per sequence, > 0.
        horizon: > 0, the number of sequences in which an error of 20% moves the coefficient by 20%.
    Raises: ValueError if target or horizon is not positive.
    """

    def __init__(self, init: float, target: float, horizon: int) -> None:
        if not (target > 0 and horizon > 0):
            raise ValueError(f"AdaptiveKLController: target and horizon must be > 0, got {target} and {horizon}")
        super().__init__(init)
        self.target, self.horizon = target, horizon

    def update(self, kl: float, n: int) -> None:
        """Adapt to the mean KL (nats per sequence, finite) of n sequences."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * n / self.horizon
