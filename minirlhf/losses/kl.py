"""Estimators of KL(policy || reference) from sampled tokens, and the controllers of its coefficient.

With d = logps - ref_logps on tokens drawn from the policy (Schulman 2020, "Approximating KL divergence",
http://joschu.net/blog/kl-approx.html). All three return [B, T] nats; summed over a row they estimate KL per sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.masking import check_same_shape

MAX_LOG_RATIO = 20.0  # exp(20) = 5e8 is a broken update already; beyond it fp32 squares overflow and gradients turn nan


def kl_k1(logps: Tensor, *, ref_logps: Tensor) -> Tensor:
    """d. Unbiased, noisy, negative for about half of the tokens.

    In the reward its policy gradient is exactly that of the KL; as a loss term its expected gradient is zero.
    Raises: ValueError if the shapes differ.
    """
    check_same_shape("kl_k1", logps=logps, ref_logps=ref_logps)
    return logps - ref_logps


def kl_k2(logps: Tensor, *, ref_logps: Tensor) -> Tensor:
    """d^2 / 2. Biased but never negative and calm.

    With d the log-ratio of a whole sequence, its gradient as a loss is that of the KL; token by token it leaves out the
    KL still to come.
    Raises: ValueError if the shapes differ.
    """
    check_same_shape("kl_k2", logps=logps, ref_logps=ref_logps)
    return 0.5 * (logps - ref_logps).square()


def kl_k3(logps: Tensor, *, ref_logps: Tensor) -> Tensor:
    """exp(-d) - 1 + d. Unbiased as a value, never negative.

    With d the log-ratio of a whole sequence, its gradient is that of KL(reference || policy), the other direction;
    token by token, of that KL at each prefix which the policy visits. d is held at -20 at least, so that a token the
    policy has lost altogether gives a large number instead of infinity, and no gradient.
    Raises: ValueError if the shapes differ.
    """
    check_same_shape("kl_k3", logps=logps, ref_logps=ref_logps)
    log_ratio = (logps - ref_logps).clamp(min=-MAX_LOG_RATIO)
    return torch.expm1(-log_ratio) + log_ratio


class FixedKLController:
    """A coefficient that stays as it is, in score units per nat."""

    def __init__(self, init: float) -> None:
        self.coef = init

    def update(self, kl: float, n: int) -> None:
        """Nothing to adapt; the signature is the adaptive one's."""

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]


class AdaptiveKLController(FixedKLController):
    """Moves the coefficient so that the measured KL comes to `target` nats per sequence.

    coef <- coef (1 + clip(kl / target - 1, -0.2, 0.2) n / horizon).   Ziegler et al. 2019, arXiv:1909.08593, 2.2.

    Args:
        init:    the first coefficient, score units per nat.
        target:  nats per sequence, > 0.
        horizon: sequences after which a full error (20%) has acted once, > 0.
    Raises: ValueError if target or horizon is not positive.
    """

    def __init__(self, init: float, target: float, horizon: int) -> None:
        if not (target > 0 and horizon > 0):
            raise ValueError(f"AdaptiveKLController: target and horizon must be > 0, got {target} and {horizon}")
        super().__init__(init)
        self.target, self.horizon = target, horizon

    def update(self, kl: float, n: int) -> None:
        """Take in the mean KL (nats per sequence, finite) of n sequences."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * n / self.horizon
